"""What a connection asks of its transport, and how one that is not ours answers that."""

from __future__ import annotations

from typing import Any, Protocol

from zope.interface import directlyProvides, providedBy

from signaling.transport.poller import Poller
from signaling.transport.private_api import is_plain_tcp, pending_bytes, take_descriptor
from signaling.transport.tcp_connection import TcpConnection


class WritingProtocol(Protocol):
    """What an adapted transport asks of the connection on it."""

    def bytes_wait(self) -> None:
        """Bytes wait for the transport, and none did before."""


class AdaptedTransport:
    """A transport of Twisted's, or of anybody else, for a connection that expects a ``TcpConnection``.

    All that is not defined here is the transport's own.

    Args:
        transport: an ``ITransport`` and ``IPushProducer`` provider.
        protocol: the connection on it, until that sets it to None.

    Attributes:
        adapted: the transport.
    """

    def __init__(self, transport: Any, protocol: WritingProtocol) -> None:
        self.protocol: WritingProtocol | None = protocol
        self.adapted = transport
        self._accepted_bytes = 0
        directlyProvides(self, providedBy(transport))

    def write(self, data: bytes) -> None:
        """Write ``data``, which nearly always waits until the reactor's next pass."""
        waited = self.pending_bytes
        self._accepted_bytes += len(data)
        self.adapted.write(data)
        if not waited and self.protocol is not None:
            self.protocol.bytes_wait()

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait; 0 if the transport does not say."""
        return pending_bytes(self.adapted)

    @property
    def progress(self) -> int:
        """Grows whenever bytes that had to wait leave."""
        return self._accepted_bytes - self.pending_bytes

    def forget_address(self) -> None:
        """No-op: the address is the transport's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapted, name)


def adapt(transport: Any, protocol: WritingProtocol, poller: Poller | None) -> Any:
    """Return a ``TcpConnection``, or what answers like one.

    Args:
        transport: of a connection, and no ``TcpConnection``; its descriptor is taken if it is a plain TCP connection of
            Twisted's that is all the protocol's, with nothing to write.
        protocol: the connection.
        poller: for its ``TcpConnection``; None if there can be none.
    """
    if poller is not None and is_plain_tcp(transport, protocol):
        try:
            connection = TcpConnection(transport.fileno(), protocol, poller)
        except OSError:
            # No descriptor is left for the poller itself, or there are as many watches as epoll(7) allows. Twisted's
            # transport is watched already, and stays.
            pass
        else:
            take_descriptor(transport)
            return connection
    return AdaptedTransport(transport, protocol)
