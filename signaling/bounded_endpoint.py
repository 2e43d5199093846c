"""Bounds what an HTTP client receives: Twisted bounds the lines of a head, but not their number, and no body."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer


@implementer(IStreamClientEndpoint)
class BoundedEndpoint:
    """Connects, and ends a connection on which an answer is too long.

    Args:
        endpoint: connects.
        max_bytes: of an answer, head and body together.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, max_bytes: int) -> None:
        self._endpoint = endpoint
        self._max_bytes = max_bytes
        self._latest: Any = None

    @property
    def exceeded(self) -> bool:
        """Whether the latest answer was too long."""
        return self._latest is not None and self._latest.received > self._max_bytes

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Connect; the protocol is the factory's own, which has the methods that an ``Agent`` calls."""
        factory: Any = WrappingFactory(protocolFactory)
        factory.protocol = _Bounded
        factory.max_bytes = self._max_bytes
        # Each would log its start and its end, with each connection.
        factory.noisy = protocolFactory.noisy = False
        return self._endpoint.connect(factory).addCallback(self._connected)

    def _connected(self, wrapper: Any) -> Any:
        self._latest = wrapper
        return wrapper.wrappedProtocol

    def abort(self) -> None:
        """End the latest connection at once."""
        if self._latest is not None:
            self._latest.abortConnection()


class _Bounded(ProtocolWrapper):
    """Counts the bytes since the latest request."""

    received = 0

    def write(self, data: bytes) -> None:
        self.received = 0
        super().write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.received = 0
        super().writeSequence(data)

    def dataReceived(self, data: bytes) -> None:
        room = max(0, self.factory.max_bytes - self.received)
        self.received += len(data)
        # The status may be in what is short enough.
        super().dataReceived(data[:room])
        if len(data) > room:
            self.abortConnection()
