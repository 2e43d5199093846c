"""What a signaling server and the workers' listener share: ports that speak HTTP first.

A connection's first request is read here. An upgrade of ``/ws/{topic}`` is checked and can join; every other request is
given, with the bytes read so far, to a ``twisted.web`` site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from constantly import NamedConstant
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import connectionDone
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from signaling.admission import open_files
from signaling.admission.client_address import Client, ProxyHeader, TrustedProxies
from signaling.admission.connection_limits import ConnectionLimits
from signaling.admission.logged_addresses import AddressDetail, LoggedAddresses
from signaling.admission.origins import Origins
from signaling.auth.cred import Access
from signaling.core.counters import Counters
from signaling.core.join_request import JoinRequest
from signaling.errors import Refused
from signaling.limits import Limits
from signaling.log.events import Events
from signaling.server.address_text import address_text
from signaling.server.connection_gate import ConnectionGate
from signaling.server.shutdown import Shutdown, ShutdownState
from signaling.transport.private_api import awaits_proxy_header
from signaling.transport.tcp_port import accept_on
from signaling.web.credentials import subprotocol
from signaling.web.join_parsing import check_join, query_values
from signaling.web.path_prefix import check_path_prefix
from signaling.web.resources import site_folders
from signaling.web.site import BoundedChannel, SignalingSite
from signaling.web.static_files import pages
from signaling.websocket.handshake import asks_for_websocket, check_upgrade
from signaling.websocket.protocol import WebSocketConnection, WebSocketConnectionFactory
from signaling.websocket.request_head import Head, HeaderValues

if TYPE_CHECKING:
    from twisted.cred.portal import Portal
    from twisted.internet.interfaces import IReactorTime
    from twisted.web.resource import Resource


R = TypeVar("R")


class HttpProtocol(WebSocketConnection[R]):
    """A connection that serves HTTP requests, until one of them opens a WebSocket on it."""

    factory: HttpFactory
    _http: BoundedChannel | None = None
    # For the log, once a request has named them.
    _address: str | None = None
    _subject: str | None = None

    def address_of_connection(self) -> str:
        """Return the text of the client's address; empty if it is not known yet."""
        # A haproxy: endpoint reads the client's address from the first bytes; until then it has the proxy's.
        return "" if awaits_proxy_header(self.transport) else address_text(self.transport.getPeer())

    def requestReceived(self, head: Head) -> None:
        """Answer an upgrade of ``/ws/{topic}`` here, and leave every other request to the site."""
        path, _, query = head.target.partition(b"?")
        folder, _, segment = path.rpartition(b"/")
        asks = head.key is not None or (head.may_upgrade and asks_for_websocket(head.values))
        if folder != self.factory.topic_folder or not segment or not asks:
            data, self.data = self.data, b""
            self.factory.handshake_timeouts.clear(self)
            self._http = channel = self.factory.site.channel_for(self)
            channel.makeConnection(self.transport)
            channel.begin(head, data)
            return
        try:
            request, key = self.factory.check(segment, query, head.values, head.key)
        except Refused as refused:
            self._address = self.factory.client(self.transport.getPeer(), head.values).text
            self.refuse_join(refused, head.values)
        else:
            self.join(request, key, head.values)

    def join(self, request: JoinRequest, key: bytes, values: HeaderValues) -> None:
        """Let a client join its topic, or refuse it; for a server that has topics to override.

        Args:
            key: the checked ``Sec-WebSocket-Key``.
            values: the request's headers.
        """
        raise NotImplementedError

    def leave_http(self) -> None:
        """Handle all further bytes here instead of in the HTTP channel."""
        self._http = None

    def request_data_received(self, data: bytes) -> None:
        """Pass on what belongs to HTTP requests."""
        if self._http is not None:
            self._http.dataReceived(data)
        else:
            super().request_data_received(data)

    def schedule_next_request(self) -> None:
        """Let the HTTP channel read its next request when it is this connection's turn."""
        self.factory.scheduler.add(self)

    def on_turn(self) -> None:
        """Continue what waited for this turn, in the HTTP channel or here."""
        if self._http is not None:
            self._http.answer_next()
        else:
            super().on_turn()

    def refuse_join(self, refused: Refused, values: HeaderValues) -> None:
        """Refuse a request to join; only a page of an allowed origin can read why."""
        self._refuse(refused, self.factory.origins.cors(values(b"origin")))

    def refuse(self, refused: Refused) -> None:
        """Answer a request that is not well-formed; any page can read why, as it may be a check."""
        self._refuse(refused, {b"Access-Control-Allow-Origin": b"*"})

    def _refuse(self, refused: Refused, cors: dict[bytes, bytes]) -> None:
        if self.state != self.STATE_CONNECTING:
            return
        refused.headers = {**cors, **refused.headers}
        super().refuse(refused)
        self.factory.counters.requests_refused[refused.status] += 1
        self._log_refusal(refused.status, refused.reason)

    def handshake_timed_out(self) -> None:
        """End a connection whose request took too long, and log it."""
        super().handshake_timed_out()
        self.factory.counters.handshake_timeouts += 1
        self._log_refusal(None, self.end_reason)

    def _log_refusal(self, status: int | None, reason: str) -> None:
        address = self._address or address_text(self.transport.getPeer())
        self.factory.events.refused(address, status, reason, self._subject)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Clean up after the connection was lost."""
        channel, self._http = self._http, None
        if channel is not None:
            channel.connectionLost(reason)
        super().connectionLost(reason)
        self.factory.gate.discard(self)


@implementer(IProtocolNegotiationFactory)
class HttpFactory(WebSocketConnectionFactory):
    """What such connections share: bounds, the site, the log, and the end.

    Args:
        limits: the bounds.
        allow_origins: the pages that may connect, as for ``Origins``.
        trusted_proxies: who may name another client, as for ``TrustedProxies``.
        proxy_header: in which header, ``X-Forwarded-For`` or ``Forwarded``.
        path_prefix: the path below which everything is, on ports of this server's own; empty for none.
        serve_client: whether ``/signaling.js`` and ``/sealing.js`` are served.
        demo: whether ``/`` is served.
        portal: checks tokens; None means that there are none.
        reactor: runs the timers; None means the global reactor.
        log_level: events below it are not logged.
        log_addresses: how much of the addresses of clients is logged: ``off``, ``network`` or ``full``.
        reserved_files: descriptors that are not for connections.

    Attributes:
        counters: what happened so far.
        connection_limits: how many connections may join.
        gate: the connections that have not joined.
        shutdown: the end of the server.
        site: answers requests.
        topic_folder: the path of a topic without its last segment.
        events: the log.
        logged_addresses: decides what is shown of the addresses of clients.
        has_services: whether there is anything for ``start_services`` to start.

    Raises:
        ValueError: if an origin, a proxy, its header, the path prefix or ``log_addresses`` is malformed.
    """

    protocol: Any = HttpProtocol
    has_services = True

    def __init__(  # noqa: PLR0913 - each is one thing that an operator may want
        self,
        limits: Limits | None = None,
        *,
        allow_origins: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
        proxy_header: str = ProxyHeader.X_FORWARDED_FOR,
        path_prefix: str = "",
        serve_client: bool = False,
        demo: bool = False,
        portal: Portal | None = None,
        reactor: IReactorTime | None = None,
        log_level: NamedConstant = LogLevel.info,
        log_addresses: str = AddressDetail.FULL,
        reserved_files: int = 0,
    ) -> None:
        reactor = reactor or _global_reactor()
        super().__init__(limits or Limits(), reactor)
        self.counters = Counters()
        self.origins = Origins(allow_origins)
        self._proxies = TrustedProxies(trusted_proxies, ProxyHeader(proxy_header))
        self.logged_addresses = LoggedAddresses(AddressDetail(log_addresses))
        self.events = Events(log_level, reactor.seconds, self.logged_addresses)
        files = max(1, open_files.file_limit(reactor) - reserved_files)
        self.connection_limits = ConnectionLimits(self.limits, files, reactor.seconds)
        self.gate: ConnectionGate[Any] = ConnectionGate(
            self.connections,
            self.handshake_timeouts,
            self.connection_limits,
            self.limits.max_connections_per_address,
            self._proxies,
            self.counters,
            self.events.connection_evicted,
        )
        self.shutdown = Shutdown(self, reactor, self.limits)
        served = pages(client=serve_client, demo=demo)
        self.path_prefix = check_path_prefix(path_prefix)
        self.topic_folder = f"{path_prefix}/ws".encode()
        root, self._folder = site_folders(self, served)
        self.site = SignalingSite(root, self.limits, reactor)
        self.access = Access(portal, self.events.login_failed) if portal is not None else None
        self._start: Any = None

    def change(
        self,
        *,
        limits: Limits | None = None,
        allow_origins: Iterable[str] | None = None,
        trusted_proxies: Iterable[str] | None = None,
        portal: Portal | None = None,
        log_level: NamedConstant | None = None,
    ) -> None:
        """Change how the server runs from now on. No connection is closed, and what is None stays as it is.

        Args:
            limits: ``resume_window_seconds`` has to be the same.
            portal: checks new logins; only for a server that has had one.

        Raises:
            ValueError: an argument is wrong; then nothing was changed.
        """
        origins = self.origins if allow_origins is None else Origins(allow_origins)
        proxies = self._proxies
        if trusted_proxies is not None:
            proxies = TrustedProxies(trusted_proxies, proxies.header)
        if limits is not None and limits.resume_window_seconds != self.limits.resume_window_seconds:
            raise ValueError("resume_window_seconds: it cannot change while the server runs")
        if portal is not None and self.access is None:
            raise ValueError("portal: access control cannot begin while the server runs")
        self.origins, self._proxies, self.gate.proxies = origins, proxies, proxies
        if portal is not None and self.access is not None:
            self.access.portal = portal
        if log_level is not None:
            self.events.set_level(log_level)
        if limits is not None:
            self.change_limits(limits)

    def change_limits(self, limits: Limits) -> None:
        """Let other limits hold from now on; those of a connection's messages hold for its next ones."""
        super().change_limits(limits)
        self.connection_limits.limits_changed()
        self.gate.most_of_one_address = limits.max_connections_per_address
        self.site.timeOut = limits.handshake_timeout_seconds

    def add_resource(self, name: bytes, resource: Resource) -> None:
        """Serve another resource, below the path prefix."""
        self._folder.putChild(name, resource)

    def acceptableProtocols(self) -> list[bytes]:
        """Offer HTTP/1.1 over TLS; Twisted would refuse every client that names protocols, as all browsers do."""
        return [b"http/1.1"]

    def check(
        self, segment: bytes, query: bytes, values: HeaderValues, key: bytes | None = None
    ) -> tuple[JoinRequest, bytes]:
        """Check all of a request to join that needs no I/O.

        Args:
            segment: the topic, still percent-encoded.
            query: what follows the question mark, still encoded.
            values: the request's headers.
            key: ``Head.key``.

        Returns:
            The request, and the checked ``Sec-WebSocket-Key``.

        Raises:
            Refused: for the first reason of 400, 426, 403 and 421.
        """
        request = check_join(segment, query, self.limits)
        if key is None:
            key = check_upgrade(values)
        self._check_client(request, query, values, values(b"origin"))
        request.subprotocol = subprotocol(values)
        return request, key

    def _check_client(self, request: JoinRequest, query: bytes, values: HeaderValues, origins: Sequence[bytes]) -> None:
        if self.access is not None:
            request.credential = self.access.presented(values, query)
        if not self.origins.allow_any:
            self.origins.check(origins)
        if not self.owns(request.topic):
            raise Refused(421, "this topic lives in another process: open a new connection, with a plain request")

    def check_only(self, segment: bytes, query: bytes, values: HeaderValues, address: Any) -> Deferred[None]:
        """Check what ``check`` checks, except the handshake, and whether the client could join.

        Args:
            address: of the connection's other end, an ``IAddress`` provider.

        Returns:
            Fails with ``Refused`` if the upgrade would be refused. To cancel it ends a login.
        """
        try:
            request = check_join(segment, query, self.limits)
            # A page sends no Origin to its own server with a GET, but it does with an upgrade.
            own = [value for value in query_values(query, "check") if b"://" in value]
            self._check_client(request, query, values, values(b"origin") or own)
        except Refused as refused:
            return fail(refused)
        return self.would_join(request, self.client(address, values))

    def would_join(self, request: JoinRequest, client: Client) -> Deferred[None]:
        """Check whether a client could join; for a server that has topics to override."""
        raise NotImplementedError

    def owns(self, topic: str) -> bool:
        """Return whether clients join the topic in this process."""
        return True

    def client(self, address: Any, values: HeaderValues) -> Client:
        """Return where a request comes from.

        Args:
            address: of the connection's other end, an ``IAddress`` provider.
            values: the request's headers.
        """
        host, text = getattr(address, "host", None), address_text(address)
        if self._proxies.empty:
            return Client(text, host)
        return self._proxies.client(host, text, values(self._proxies.header_name))

    def accept_on(self, port: Any) -> Any:
        """Return what to keep in place of a port that has just begun to listen for this server."""
        return accept_on(port, self, self.poller, self.connection_limits.accepts_per_pass, self.serve)

    def connection_made(self, connection: HttpProtocol[Any]) -> None:
        """Take a new connection; if there are too many that have not joined, evict the oldest."""
        self.gate.open(connection, connection.address_of_connection)

    def handshakeRefused(self, address: Any, values: HeaderValues, refused: Refused) -> None:
        """Count and log a request to join that the site refused."""
        self.counters.requests_refused[refused.status] += 1
        self.events.refused(self.client(address, values).text, refused.status, refused.reason)

    def check_refused(self, address: Any, values: HeaderValues, refused: Refused) -> None:
        """Count and log a check, as it tries a credential as well as a request to join does."""
        self.counters.checks_refused[refused.status] += 1
        self.events.check_refused(self.client(address, values).text, refused.status, refused.reason)

    def cancel_idle_timers(self) -> None:
        """Leave no timer behind when the last connection is gone, and go on with a drain."""
        super().cancel_idle_timers()
        self.shutdown.connection_lost()

    @property
    def unready_reasons(self) -> dict[str, list[str]]:
        """Why a balancer should send new clients elsewhere, by what is checked."""
        return {"drain": ["the server is stopping"] if self.shutdown.unready else []}

    def doStart(self) -> None:
        """Start with the first port, or again after a drain: a ``SignalingResource`` counts as a port that stays."""
        super().doStart()
        if self.shutdown.draining:
            self.startFactory()

    def startFactory(self) -> None:
        """Call ``start_services`` in the reactor's next pass; Twisted calls this with the first port."""
        if self.shutdown.state is ShutdownState.DRAINING:
            # What runs has to stop first.
            self.shutdown.drain().addCallback(self._start_if_used)
            return
        self.shutdown.restart()
        if self._start is None and self.has_services:
            # Not at once: twistd listens before it sheds its privileges.
            self._start = self.reactor.callLater(0, self.start_services)

    def _start_if_used(self, _: None) -> None:
        if self.numPorts:
            self.startFactory()

    def postpone_start(self) -> None:
        """Put a start that is still to come behind the closing of ports: after the last one there is none."""
        if self._start is not None and self._start.active():
            self._start.cancel()
            self._start = self.reactor.callLater(0, self.start_services)

    def stopFactory(self) -> None:
        """Forget a start that is still to come; what runs is stopped by a drain."""
        if self._start is not None and self._start.active():
            self._start.cancel()
            self._start = None

    def start_services(self) -> None:
        """Start what lives as long as the server; for a subclass to override."""

    def stop_services(self) -> Deferred[None]:
        """Stop it, after the last connection; fires when that is done."""
        return succeed(None)

    def drain_started(self) -> Iterable[Callable[[], object]]:
        """Return what is to be closed besides connections: nothing."""
        return ()

    def last_connection_lost(self) -> Deferred[None]:
        """Stop the services, if they were started."""
        self.stopFactory()
        started, self._start = self._start, None
        return self.stop_services() if started is not None else succeed(None)

    def abort_rest(self) -> None:
        """No-op: there is nothing to abort but connections."""


def _global_reactor() -> Any:
    # Importing it installs it, which is the application's to decide.
    from twisted.internet import reactor  # noqa: PLC0415

    return reactor
