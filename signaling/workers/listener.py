"""The listener in front of the workers: it reads the path of a request, and gives the connection to a worker.

The bytes that it read go with the descriptor. Requests that name no topic it answers itself.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from signaling.core.ice import IceServers
from signaling.core.topic_rules import TopicRules
from signaling.errors import StartError
from signaling.limits import Limits
from signaling.server.address_text import address_text
from signaling.server.asking import Asker
from signaling.server.endpoints import ListenAddress
from signaling.server.http import HttpFactory
from signaling.transport.private_api import speaks_proxy_protocol
from signaling.transport.tcp_connection import to_address
from signaling.transport.tcp_port import accept_on
from signaling.workers.ipc import encode_handoff
from signaling.workers.queries import WorkerQueries
from signaling.workers.supervisor import Supervisor, WorkerSettings
from signaling.workers.topic_router import NO_TOPIC, TopicRouter

_READ_BYTES = 4_096
# The channel, two pipes for what the worker prints, and one more while a new worker takes the place of another.
_FILES_PER_WORKER = 4


def drain_seconds(limits: Limits) -> float:
    """Return how long a worker may take to drain."""
    return limits.drain_spread_seconds + limits.shutdown_timeout_seconds


class WorkerListener(HttpFactory):
    """Accepts connections, and gives each to the worker that owns its topic.

    Args:
        settings: how the workers are run; what changes holds for those that start later.
        arguments: of ``HttpFactory``; of the bounds on connections, a worker's share.

    Attributes:
        supervisor: runs the workers.
        router: says which worker owns a topic.
        asker: passes an operator's queries to the workers.
    """

    def __init__(self, settings: WorkerSettings, **arguments: Any) -> None:
        super().__init__(**arguments, reserved_files=_FILES_PER_WORKER * settings.count)
        self.settings = settings
        self.router = TopicRouter(settings.count, self.limits, self.path_prefix)
        self.supervisor = Supervisor(self.reactor, settings, self.events)
        self.asker: Asker = WorkerQueries(self.supervisor, self.router, are_nodes=settings.are_nodes)
        # A second request on a connection could be for a worker.
        self.site.most_requests = 1

    def change(
        self, *, ice_servers: IceServers | None = None, topic_rules: TopicRules | None = None, **more: Any
    ) -> None:
        """Change how the listener runs from now on, as ``HttpFactory.change``.

        Args:
            ice_servers: ignored, as the listener has no peers; the workers change theirs themselves.
            topic_rules: ignored as well.
        """
        super().change(**more)

    def change_limits(self, limits: Limits) -> None:
        """Let other limits hold from now on; the workers change theirs themselves."""
        super().change_limits(limits)
        self.settings.drain_seconds = drain_seconds(limits)

    def owns(self, topic: str) -> bool:
        """Return False: every topic is a worker's."""
        return False

    @property
    def unready_reasons(self) -> dict[str, list[str]]:
        """Why a balancer should send new clients elsewhere: the server stops, or a worker is not ready."""
        reasons, supervisor = super().unready_reasons, self.supervisor
        if reasons["drain"]:
            return reasons
        return {**reasons, "backplane": supervisor.backplane_reasons, "workers": supervisor.worker_reasons}

    def accept_on(self, port: Any) -> Any:
        """Return what to keep in place of a port whose connections are routed."""
        return accept_on(port, port.factory, self.poller, self.connection_limits.accepts_per_pass, self.route)

    def accept(self, connection: socket.socket, protocol: Any, address: Any, *rest: Any) -> None:
        """Route a connection that a port of Twisted's accepted; the arguments are those of ``tcp.Port.transport``."""
        connection.setblocking(False)
        self.route(connection.detach(), address if isinstance(address, tuple) else os.fsencode(address))

    def route(self, descriptor: int, address: Any) -> None:
        """Give a connection to the worker of its topic, or answer it; the arguments are those of ``serve``."""
        UnroutedConnection(self, descriptor, address)

    def start_services(self) -> None:
        """Start the workers."""
        self.supervisor.start()

    def drain_started(self) -> Iterable[Callable[[], object]]:
        """Let the workers drain at the same time as the listener."""
        self.supervisor.drain()
        return ()

    def stop_services(self) -> Deferred[None]:
        """Wait until the workers have ended."""
        return self.supervisor.drain()

    def abort_rest(self) -> None:
        """Abort the workers' connections."""
        self.supervisor.abort()


class UnroutedConnection:
    """A connection whose topic is not known yet, or whose worker does not take it yet.

    Args:
        listener: bounds it, and knows the workers.
        descriptor: accepted, and non-blocking.
        address: of the other end, as for ``Handoff``.
    """

    __slots__ = ("_address", "_data", "_descriptor", "_first_byte_at", "_is_open", "_listener", "_poller", "_worker")

    def __init__(self, listener: WorkerListener, descriptor: int, address: Any) -> None:
        assert listener.poller is not None
        self._listener = listener
        self._poller = listener.poller
        self._descriptor = descriptor
        self._address = address
        self._data = b""
        self._first_byte_at = 0.0
        self._worker: int | None = None
        self._is_open = True
        # Nearly every request is there already, and is handed off before anything else has to know of it.
        self.on_readable()
        if self._is_open:
            listener.gate.open(self, self._address_text)
            if self._worker is None:
                self._poller.watch(self, descriptor)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def _address_text(self) -> str:
        return address_text(to_address(self._address))

    def on_readable(self) -> None:
        """Read until the request's path is there."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            return
        if not self._data:
            self._first_byte_at = self._listener.reactor.seconds()
            self._listener.handshake_timeouts.set(self)
        self._data += data
        worker = self._listener.router.route(self._data)
        if worker is not None:
            self._worker = worker
            self._poller.unwatch(self._descriptor)
            if worker == NO_TOPIC:
                self._leave()
                self._listener.serve(self._descriptor, self._address, self._data)
            else:
                self._listener.supervisor[worker].take(self)

    def on_events(self, events: int) -> None:
        """Find out by reading how it ended."""
        self.on_readable()

    # For a worker

    def handoff_message(self) -> bytes:
        """Return a ``Handoff``, encoded."""
        handshake_seconds = self._listener.reactor.seconds() - self._first_byte_at
        return encode_handoff((handshake_seconds, self._address, self._data))

    def handed_off(self) -> None:
        """Close this process's descriptor, and leave the connection open."""
        self._leave()
        # At once: it is not watched any more, so no event of this pass is still to come.
        self._close_descriptor()

    # The end

    def _leave(self) -> None:
        self._is_open = False
        self._listener.gate.remove(self)

    def _close(self) -> None:
        if not self._is_open:
            return
        self._leave()
        if self._worker is not None:
            self._listener.supervisor[self._worker].forget(self)
        self._poller.unwatch(self._descriptor)
        self._poller.end_soon(self, connectionDone)

    def _close_descriptor(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._listener.shutdown.connection_lost()

    def end(self, reason: Failure) -> None:
        """Close the descriptor."""
        if self._is_open:
            self._leave()
            self._poller.unwatch(self._descriptor)
        self._close_descriptor()

    def fail(self, reason: Failure) -> None:
        """Close it, because routing it raised ``reason``."""
        self._close()

    def abort(self, reason: str) -> None:
        """Close it, because it is evicted."""
        self._close()

    def close_for_shutdown(self, code: int) -> None:
        """Close it, because the server stops."""
        self._close()

    def close_timed_out(self) -> None:
        """Close it, because the server waits no longer."""
        self._close()

    def handshake_timed_out(self) -> None:
        """Close it, because its request did not arrive in time, or its worker did not take it in time."""
        listener = self._listener
        listener.counters.handshake_timeouts += 1
        reason = f"no complete request within {listener.limits.handshake_timeout_seconds:g} s"
        if self._worker is not None:
            reason = listener.supervisor[self._worker].unready_reason or "its worker took no connections"
        listener.events.refused(self._address_text(), None, reason)
        self._close()


class _NoProtocol(Protocol):
    def makeConnection(self, transport: Any) -> None:
        """Do nothing: an ``UnroutedConnection`` reads."""


_NO_PROTOCOL = _NoProtocol()


class _PortFactory(Factory):
    """Stands in for the listener at a port, because a connection has no protocol before it is routed."""

    noisy = False

    def __init__(self, listener: WorkerListener) -> None:
        self._listener = listener

    def logPrefix(self) -> str:
        name: str = self._listener.logPrefix()
        return name

    def startFactory(self) -> None:
        self._listener.doStart()

    def stopFactory(self) -> None:
        self._listener.doStop()

    def buildProtocol(self, addr: Any) -> Any:
        return _NO_PROTOCOL


@implementer(IStreamServerEndpoint)
class RoutingEndpoint:
    """An endpoint whose connections are routed to workers.

    Args:
        endpoint: listens.
    """

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def listen(self, protocolFactory: Any) -> Deferred[IListeningPort]:
        """Listen for a ``WorkerListener``; fails with ``StartError`` if what clients send cannot be read here."""
        factory = _PortFactory(protocolFactory)
        listening: Deferred[IListeningPort] = self._endpoint.listen(factory)
        return listening.addCallback(self._route, factory, protocolFactory)

    def _route(self, port: Any, factory: _PortFactory, listener: WorkerListener) -> IListeningPort:
        if not (isinstance(port, tcp.Port) and port.factory is factory):
            port.stopListening()
            raise StartError("this kind of endpoint hides the request line; run without --workers")
        port.transport = listener.accept  # type: ignore[assignment]
        return port


def routing(address: ListenAddress) -> ListenAddress:
    """Return ``address`` with a ``RoutingEndpoint``.

    Raises:
        StartError: if what clients send cannot be read there, and what to do.
    """
    if address.certificates is not None:
        raise StartError(
            f"{address.text}: --workers cannot read what is encrypted here; end TLS at a proxy in front"
            " (docs/proxies.md), or run without --workers"
        )
    if speaks_proxy_protocol(address.endpoint):
        raise StartError(
            f"{address.text}: --workers does not read the PROXY protocol; let the proxy send X-Forwarded-For"
            " (--trusted-proxy), or run without --workers"
        )
    return address._replace(endpoint=RoutingEndpoint(address.endpoint))
