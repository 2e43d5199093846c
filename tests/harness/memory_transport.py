"""The server's end of a TCP connection in memory, and a clock that calls back as a reactor does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.task import Clock
from zope.interface import implementer

from tests.harness.frames import TEXT, server_frames


class PassingClock(Clock):
    """A fake clock that leaves to the next pass what is scheduled during one, as a reactor does."""

    def advance(self, amount: float) -> None:
        self.rightNow += amount
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


@implementer(ITCPTransport, IPushProducer)
class MemoryTransport:
    """A transport that moves nothing by itself: the test takes what was written, and passes on what the client sent.

    Like Twisted's TCP transport it buffers, pauses its producer above ``bufferSize`` and resumes it when it is empty.

    Args:
        host: the client's address.
        port: the client's port.

    Attributes:
        dataBuffer: what was written and not taken.
        taking: whether the client reads.
        reading: whether the server reads.
        lost: whether the connection is gone; the test sets it.
    """

    bufferSize = 65_536
    offset = _tempDataLen = 0

    def __init__(self, host: str = "192.0.2.1", port: int = 40_000) -> None:
        self.protocol: Any = None
        self.dataBuffer = b""
        self.taking = self.reading = True
        self.no_delay = False
        self.write_ended = self.disconnecting = self.aborted = self.lost = False
        self.producer: Any = None
        self.producer_paused = False
        self._address = host, port
        self._log: list[bytes] = []

    def write(self, data: bytes) -> None:
        if self.lost or self.write_ended or not data:
            return
        self.dataBuffer += data
        self._log.append(data)
        if self.producer is not None and len(self.dataBuffer) > self.bufferSize:
            self.producer_paused = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    @property
    def writes(self) -> int:
        """How often the server wrote so far."""
        return len(self._log)

    @property
    def written(self) -> bytes:
        """All that the server wrote so far, taken or not."""
        return b"".join(self._log)

    def texts_written(self) -> list[str]:
        """Return all text messages that the server wrote after its handshake, taken or not."""
        _, _, frames = self.written.partition(b"\r\n\r\n")
        return [payload.decode() for first, payload in server_frames(frames) if first & 0xF == TEXT]

    def take(self, size: int | None = None) -> bytes:
        """Take bytes out of the buffer, as a kernel does; None means all."""
        taken = self.dataBuffer if size is None else self.dataBuffer[:size]
        self.dataBuffer = self.dataBuffer[len(taken) :]
        if not self.dataBuffer and self.producer_paused:
            self.producer_paused = False
            self.producer.resumeProducing()
        return taken

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None, "a producer is registered already"
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None
        self.producer_paused = False

    def loseConnection(self) -> None:
        self.disconnecting = True

    def loseWriteConnection(self) -> None:
        self.write_ended = True

    def abortConnection(self) -> None:
        self.aborted = True

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = not self.disconnecting

    def stopProducing(self) -> None:
        self.loseConnection()

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = bool(enabled)

    def getTcpNoDelay(self) -> bool:
        return self.no_delay

    def setTcpKeepAlive(self, enabled: bool) -> None: ...

    def getTcpKeepAlive(self) -> bool:
        return False

    def getPeer(self) -> IPv4Address | IPv6Address:
        kind = IPv6Address if ":" in self._address[0] else IPv4Address
        return kind("TCP", *self._address)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.2", 8081)
