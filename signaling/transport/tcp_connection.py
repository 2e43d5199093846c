"""A TCP connection of a server: it reads when its poller says so, and writes at once if nothing waits.

A UNIX socket takes the same way if its descriptor came from another process.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IConsumer, IHalfCloseableProtocol, IPushProducer, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from signaling.transport.poller import BROKEN, READABLE, WRITABLE, Poller

_log = Logger()

_READ_BYTES = 65_536
_RESET = struct.pack("ii", 1, 0)
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
_LOST = Failure(ConnectionLost())
_ABORTED = Failure(ConnectionAborted())

_read, _write = os.read, os.write


class ConnectionState(IntEnum):
    """What a connection does."""

    OPEN = 0  # reads unless it is paused, and takes what is written
    FINISHING = 1  # ends as soon as what waits is written
    ENDING = 2  # ends after the events that are handled now
    ENDED = 3


_OPEN, _FINISHING, _ENDING, _ENDED = ConnectionState
# In place of bytes that wait, where nothing can be written any more.
_CLOSED = bytearray()


@implementer(ITCPTransport, IPushProducer, IConsumer)
class TcpConnection:
    """A transport, with Twisted's interfaces, on a descriptor of its own.

    Unlike Twisted's own it pauses its producer as soon as the kernel takes no more, and has no socket object: that
    would cost an idle connection more than anything else here. ``loseConnection`` waits until a producer that does not
    stream is unregistered, but not for one that streams.

    Args:
        descriptor: connected, and non-blocking; it is closed with the connection.
        address: of the other end, an ``IAddress`` provider; None means that it is looked up when it is needed.

    Attributes:
        protocol: receives what is read; None once the connection has ended.
        progress: grows whenever bytes that had to wait leave.
    """

    __slots__ = (
        "_address",
        "_descriptor",
        "_events",
        "_half_closed",
        "_poller",
        "_producer",
        "_state",
        "_streaming",
        "_waiting",
        "progress",
        "protocol",
    )

    def __init__(self, descriptor: int, protocol: Any, poller: Poller, address: Any = None) -> None:
        self.protocol = protocol
        self.progress = 0
        self._descriptor = descriptor
        self._poller = poller
        self._address = address
        self._state = _OPEN
        self._events = READABLE
        self._waiting: bytearray | None = None
        self._half_closed = False
        self._producer: Any = None
        self._streaming = True
        poller.watch(self, descriptor)

    # Reading

    def on_readable(self) -> None:
        """Read once, and pass it on."""
        try:
            data = _read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._end_soon(_LOST)
            return
        if data:
            self.protocol.dataReceived(data)
        else:
            self._reached_end()

    def _reached_end(self) -> None:
        """End, because the other end closed its half, unless the protocol can live with one half."""
        if not self._events & READABLE:
            # It was paused after the poller had asked the kernel: the end will be reported again.
            return
        if not IHalfCloseableProtocol.providedBy(self.protocol):
            # What could not be written has used up the error.
            self._end_soon(_LOST if self._waiting is _CLOSED and not self._half_closed else connectionDone)
            return
        self._watch(self._events & ~READABLE)
        self.protocol.readConnectionLost()

    def on_events(self, events: int) -> None:
        """Read, write, or notice that the connection is lost."""
        if events & READABLE:
            self.on_readable()
        elif events & ~WRITABLE:
            # Without an error both ends have closed their half.
            both = self._half_closed and self._waiting is _CLOSED
            self._end_soon(connectionDone if both and not events & BROKEN else _LOST)
        if events & WRITABLE and self._state < _ENDING:
            self._write_waiting()

    def pauseProducing(self) -> None:
        """Read nothing."""
        if self._state == _OPEN:
            self._watch(self._events & ~READABLE)

    def resumeProducing(self) -> None:
        """Read again."""
        if self._state == _OPEN:
            self._watch(self._events | READABLE)

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._poller.change(self._descriptor, events)

    # Writing

    def write(self, data: bytes) -> None:
        """Write ``data``, or keep what the kernel does not take; it is dropped if nothing can be written any more."""
        if self._waiting is not None:
            if self._waiting is not _CLOSED:
                self._waiting += data
                # For a producer that does not stream, everything waits: it is asked again when all is written.
                self._watch(self._events | WRITABLE)
            return
        try:
            sent = _write(self._descriptor, data)
        except OSError as error:
            if error.errno not in _FULL:
                # Broken: that is reported, too, after what can still be read.
                self._waiting = _CLOSED
                return
            sent = 0
        if sent != len(data):
            self._wait(data[sent:])

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Write several pieces as one."""
        self.write(b"".join(data))

    def _wait(self, data: bytes) -> None:
        self._waiting = bytearray(data)
        self._watch(self._events | WRITABLE)
        if self._producer is not None and self._streaming:
            self._producer.pauseProducing()

    def _write_waiting(self) -> None:
        waiting = self._waiting
        if not waiting:
            self._watch(self._events & ~WRITABLE)
            self._finish()
            return
        try:
            sent = _write(self._descriptor, waiting)
        except OSError as error:
            if error.errno not in _FULL:
                self._end_soon(_LOST)
            return
        self.progress += sent
        del waiting[:sent]
        if waiting:
            return
        self._watch(self._events & ~WRITABLE)
        if not self._asks:
            self._waiting = None
        if self._producer is not None:
            self._producer.resumeProducing()
        self._finish()

    @property
    def _asks(self) -> bool:
        return self._producer is not None and not self._streaming

    def _finish(self) -> None:
        """Close what was asked to be closed, if nothing waits, and nothing more is asked for."""
        if self._waiting or self._asks:
            return
        if self._state == _FINISHING:
            self._end_soon(connectionDone)
        elif self._half_closed and self._waiting is None:
            self._shut_down()

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait for the kernel to take them."""
        return len(self._waiting) if self._waiting is not None else 0

    # Producers

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Pause a producer while bytes wait, or ask one that does not stream for more whenever all is written.

        Raises:
            RuntimeError: if there is one already.
        """
        if self._producer is not None:
            raise RuntimeError(f"{self._producer!r} is registered already, so {producer!r} cannot be")
        if self._waiting is _CLOSED:
            producer.stopProducing()
            return
        self._producer, self._streaming = producer, streaming
        if not streaming:
            if self._waiting is None:
                self._waiting = bytearray()
            producer.resumeProducing()
        elif self._waiting:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """Let the producer go."""
        self._producer = None
        if not self._waiting and self._waiting is not _CLOSED:
            self._waiting = None
        self._finish()

    # The end

    def loseConnection(self) -> None:
        """Close, after what waits is written."""
        if self._state == _OPEN:
            self._state = _FINISHING
            self._finish()
            if self._state == _FINISHING:
                self._watch(self._events & ~READABLE)

    def loseWriteConnection(self) -> None:
        """Close this end's half, after what waits is written; what the other end sends is still read."""
        if self._half_closed or self._state != _OPEN:
            return
        self._half_closed = True
        if IHalfCloseableProtocol.providedBy(self.protocol):
            # It is called back in a pass of its own.
            self._watch(self._events | WRITABLE)
        else:
            self._finish()

    def _shut_down(self) -> None:
        self._waiting = _CLOSED
        with suppress(OSError):
            self._with_socket(lambda end: end.shutdown(socket.SHUT_WR))
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.writeConnectionLost()

    def abortConnection(self) -> None:
        """Reset the connection; what waits is dropped."""
        if self._state < _ENDING:
            self._end_soon(_ABORTED)

    def fail(self, reason: Failure) -> None:
        """End soon, because the protocol raised ``reason``."""
        self._end_soon(reason)

    def _end_soon(self, reason: Failure) -> None:
        if self._state < _ENDING:
            self._state = _ENDING
            self._waiting = _CLOSED
            self._poller.unwatch(self._descriptor)
            self._poller.end_soon(self, reason)

    def end(self, reason: Failure) -> None:
        """Close the descriptor, and call the protocol's ``connectionLost``."""
        if self._state == _ENDED:
            return
        if self._state < _ENDING:
            self._poller.unwatch(self._descriptor)
        self._state = _ENDED
        self._waiting = _CLOSED
        end, self._descriptor = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self._descriptor), -1
        try:
            if reason is _ABORTED:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                # To close it is not enough while another process has it, too.
                end.shutdown(socket.SHUT_RDWR)
        except OSError:
            # It was reset before.
            pass
        end.close()
        producer, self._producer = self._producer, None
        protocol, self.protocol = self.protocol, None
        try:
            if producer is not None:
                producer.stopProducing()
        finally:
            protocol.connectionLost(reason)

    @property
    def connected(self) -> bool:
        """Whether ``connectionLost`` of the protocol is still to come."""
        return self._state != _ENDED

    @property
    def disconnecting(self) -> bool:
        """Whether it was closed, at this end or by the other one."""
        return self._state != _OPEN

    # What a socket can do

    def _with_socket(self, use: Any) -> Any:
        end = socket.socket(fileno=self._descriptor)
        try:
            return use(end)
        finally:
            end.detach()

    def getPeer(self) -> Any:
        """Return the address of the other end; of one that is gone, an empty one."""
        if self._address is not None:
            return self._address
        try:
            return to_address(self._with_socket(lambda end: end.getpeername()))
        except (OSError, ValueError):
            return IPv4Address("TCP", "", 0)

    def forget_address(self) -> None:
        """Ask the kernel if the address of the other end is needed again: it takes a tenth of an idle connection."""
        self._address = None

    def getHost(self) -> Any:
        """Return the address of this end."""
        return to_address(self._with_socket(lambda end: end.getsockname()))

    def getTcpNoDelay(self) -> bool:
        """Return whether small writes leave at once."""
        return bool(self._with_socket(lambda end: end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Let small writes leave at once; those of a UNIX socket always do."""
        with suppress(OSError):
            self._with_socket(lambda end: end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled))

    def getTcpKeepAlive(self) -> bool:
        """Return whether the kernel checks that the other end is there."""
        return bool(self._with_socket(lambda end: end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Let the kernel check that the other end is there."""
        self._with_socket(lambda end: end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled))


def to_address(address: Any) -> IPv4Address | IPv6Address | UNIXAddress:
    """Return the ``IAddress`` provider of an address that ``socket.accept`` returned."""
    if isinstance(address, str | bytes):
        return UNIXAddress(address)
    if len(address) == 2:
        return IPv4Address("TCP", *address)
    host, *rest = address
    # Of a link-local address, the interface is part of the text.
    return IPv6Address("TCP", socket.getnameinfo(address, _NUMERIC)[0] if address[3] else host, *rest)


def serve(descriptor: int, address: Any, factory: Any, poller: Poller, data: bytes = b"") -> Any:
    """Serve a new connection with the protocol that ``factory`` builds; closes it if there is none, or on an error.

    Args:
        descriptor: as for ``TcpConnection``.
        address: of the other end, as ``socket.accept`` returns it; None means that it is looked up when it is needed.
        data: its first bytes, if they have been read.

    Returns:
        The protocol; None if there is none.
    """
    transport = protocol = None
    try:
        peer = to_address(address) if address is not None else None
        protocol = factory.buildProtocol(peer)
        if protocol is not None:
            transport = TcpConnection(descriptor, protocol, poller, peer)
            protocol.makeConnection(transport)
            if data:
                protocol.dataReceived(data)
            return protocol
    except Exception:
        _log.failure("an error in a new connection")
        if transport is not None:
            transport.fail(Failure())
            return protocol
    os.close(descriptor)
    return None
