"""The listener in front of workers: it reads a request line, and gives the connection to the worker of its topic.

The bytes that it read travel with the descriptor. What names no topic it answers itself, as a signaling server that
lets nobody join. For the connections that it has not given away the bounds of that server hold.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IReadDescriptor, IStreamServerEndpoint
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from signaling.admission import file_limits
from signaling.admission.connection_limits import ConnectionLimits
from signaling.errors import StartError
from signaling.server.address_text import address_text
from signaling.server.endpoints import Listener
from signaling.server.factory import SignalingFactory
from signaling.transport.private_api import speaks_proxy_protocol
from signaling.workers.supervisor import ABOUT, Plan, Workers
from signaling.workers.topic_router import ELSEWHERE, Router

_READ_BYTES = 4_096
# Its channel and what it writes past its log, and one more while another takes its place.
_FILES_OF_A_WORKER = 4


class Dispatcher(SignalingFactory):
    """The listener's own server, and its workers.

    Args:
        plan: how the workers are run.
        how: what ``SignalingFactory`` takes; of the bounds, a worker's share.

    Attributes:
        workers: the processes that topics live in.
        router: tells them apart.
    """

    def __init__(self, plan: Plan, **how: Any) -> None:
        super().__init__(**how)
        # Fewer connections than a worker has: some of the files are the workers'.
        files = file_limits.file_limit(self.reactor) - _FILES_OF_A_WORKER * plan.count
        self.connection_limits = ConnectionLimits(self.limits, max(1, files), self.reactor.seconds)
        self.router = Router(plan.count, self.limits)
        self.workers = Workers(self.reactor, plan, self.events)
        self.site.most_requests = 1

    def owns(self, topic: str) -> bool:
        """Let nobody join here."""
        return False

    @property
    def unready_reasons(self) -> dict[str, list[str]]:
        """Why a balancer should send newcomers elsewhere: one of the workers is missing, or all stop."""
        own, workers = super().unready_reasons, self.workers
        return own if own["drain"] else {**own, "workers": workers.missing, "backplane": workers.unready_reasons}

    def drain_started(self) -> Iterable[Callable[[], object]]:
        """Let the workers close their peers and end."""
        self.workers.drain()
        return ()

    def last_connection_lost(self) -> Deferred[None]:
        """Wait for the workers."""
        return self.workers.drain()

    def abort_rest(self) -> None:
        """End every connection of the workers at once."""
        self.workers.hurry()

    def arrive(self, connection: socket.socket, protocol: Any, address: Any, port: Any, *rest: Any) -> Arrival:
        """Take a connection in place of a transport; ``twisted.internet.tcp.Port.transport`` tells of the arguments."""

        def serve() -> Any:
            answering = self.buildProtocol(_peer_address(port, address))
            transport: Any = type(port).transport(connection, answering, address, port, *rest)
            answering.makeConnection(transport)
            return answering

        return Arrival(self, connection, lambda: address_text(_peer_address(port, address)), serve)


@implementer(IReadDescriptor)
class Arrival:
    """A connection that nobody has yet. To the factory it is one of its connections of no peer.

    Args:
        dispatcher: bounds it, and knows the workers.
        connection: accepted.
        address: writes the client's down, for the log.
        serve: makes the dispatcher's own protocol on the connection.
    """

    waiting = 0

    def __init__(
        self, dispatcher: Dispatcher, connection: socket.socket, address: Callable[[], str], serve: Callable[[], Any]
    ) -> None:
        self._dispatcher = dispatcher
        self._socket = connection
        self._fileno = connection.fileno()
        self._family = int(connection.family)
        self._address = address
        self._serve = serve
        self._data = b""
        self._since = 0.0
        self._worker: int | None = None
        self._ours = True
        dispatcher.gate.open(self, address)  # type: ignore[arg-type]
        # Most requests are there already, and then the reactor need not hear of this connection.
        if self.doRead() is not None:
            self._close()
        elif self._ours and self._worker is None:
            dispatcher.reactor.addReader(self)

    def fileno(self) -> int:
        """Tell the descriptor, for the reactor; also after it was given away, which the reactor asks again."""
        return self._fileno

    def logPrefix(self) -> str:
        """Name it in a log."""
        return "arrival"

    def doRead(self) -> Any:
        """Read until the request's path is there."""
        if not self._ours:
            return None
        try:
            data = self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        if not self._data:
            self._since = self._dispatcher.reactor.seconds()
            self._dispatcher.handshake_timeouts.set(self)
        self._data += data
        worker = self._dispatcher.router.route(self._data)
        if worker is not None:
            self._dispatch(worker)
        return None

    def _dispatch(self, worker: int) -> None:
        self._worker = worker
        self._dispatcher.reactor.removeReader(self)
        if worker == ELSEWHERE:
            self._leave()
            self._serve().dataReceived(self._data)
        else:
            self._dispatcher.workers[worker].take(self)

    # For a worker

    def parcel(self) -> bytes:
        """Write ``ABOUT`` it, and the bytes that were read."""
        return ABOUT.pack(self._dispatcher.reactor.seconds() - self._since, self._family) + self._data

    def handed_over(self) -> None:
        """Close this process's descriptor, and leave the connection alone."""
        self._leave()
        self._socket.close()
        self._dispatcher.shutdown.connection_lost()

    # The end

    def _leave(self) -> None:
        """Be no connection of the dispatcher's any more."""
        self._ours = False
        self._dispatcher.gate.remove(self)  # type: ignore[arg-type]

    def _close(self) -> None:
        if not self._ours:
            return
        self._leave()
        if self._worker is None:
            self._dispatcher.reactor.removeReader(self)
        else:
            self._dispatcher.workers[self._worker].forget(self)
        self._socket.close()
        self._dispatcher.shutdown.connection_lost()

    def connectionLost(self, reason: Any) -> None:
        """Hear that the client is gone."""
        self._close()

    def abort(self, reason: str) -> None:
        """End it at once."""
        self._close()

    def close_for_shutdown(self, code: int = 0) -> None:
        """End it because the server stops."""
        self._close()

    def close_timed_out(self) -> None:
        """End it at once."""
        self._close()

    def handshake_timed_out(self) -> None:
        """End it because its request, or its worker, did not come in time."""
        dispatcher = self._dispatcher
        dispatcher.counters.handshake_timeouts += 1
        reason = f"no complete request within {dispatcher.limits.handshake_timeout_seconds:g} s"
        if self._worker is not None:
            reason = f"{dispatcher.workers[self._worker].state or 'its worker took no connections'}"
        dispatcher.events.refused(self._address(), None, reason)
        self._close()


def _peer_address(port: tcp.Port, address: Any) -> Any:
    """Return the ``IAddress`` provider of the other end of a connection that was accepted."""
    if port.addressFamily == socket.AF_UNIX:
        return UNIXAddress(address)
    kind = IPv6Address if port.addressFamily == socket.AF_INET6 else IPv4Address
    return kind("TCP", *address)


class _Arrivals(Factory):
    """Stands in for the dispatcher at a port, whose connections are no protocol's yet."""

    noisy = False

    def buildProtocol(self, addr: Any) -> Any:
        return _UNHEARD


class _Unheard(Protocol):
    def makeConnection(self, transport: Any) -> None:
        """Leave the connection to its ``Arrival``."""


_UNHEARD = _Unheard()


@implementer(IStreamServerEndpoint)
class PeekedEndpoint:
    """An endpoint whose connections are looked at before anybody has them.

    Args:
        endpoint: listens.
    """

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def listen(self, protocolFactory: Any) -> Deferred[IListeningPort]:
        """Listen for a dispatcher; fails with ``StartError`` where the endpoint hides what connections bring."""
        front = _Arrivals()
        listening: Deferred[IListeningPort] = self._endpoint.listen(front)
        return listening.addCallback(self._look, front, protocolFactory)

    def _look(self, port: Any, front: _Arrivals, dispatcher: Dispatcher) -> IListeningPort:
        if not (isinstance(port, tcp.Port) and port.factory is front):
            port.stopListening()
            raise StartError("this kind of endpoint hides the request line; run without --workers")
        port.transport = dispatcher.arrive  # type: ignore[assignment]
        return port


def peeked(listener: Listener) -> Listener:
    """Let workers share what comes to ``listener``.

    Raises:
        StartError: where it cannot be peeked at, and what to do.
    """
    if listener.certificates is not None:
        raise StartError(
            f"{listener.where}: --workers cannot read what is encrypted here; end TLS at a proxy in front"
            " (docs/proxies.md), or run without --workers"
        )
    if speaks_proxy_protocol(listener.endpoint):
        raise StartError(
            f"{listener.where}: --workers does not read the PROXY protocol; let the proxy send X-Forwarded-For"
            " (--trusted-proxy), or run without --workers"
        )
    return listener._replace(endpoint=PeekedEndpoint(listener.endpoint))
