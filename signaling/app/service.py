"""The server as a Twisted service: it listens when it starts, and drains when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure

from signaling.admin.site import AdminFactory
from signaling.admission.open_files import raise_file_limit
from signaling.admission.origins import Hosts
from signaling.app.options import Options
from signaling.app.settings import describe
from signaling.app.twistd import TwistdService
from signaling.backplane.engines import make_backplane
from signaling.core.interfaces import Backplane
from signaling.errors import StartError
from signaling.log.events import Events
from signaling.server.address_text import address_text
from signaling.server.endpoints import (
    ListenAddress,
    endpoint,
    explain,
    listen_addresses,
    private_endpoint,
    start_error,
)
from signaling.server.factory import SignalingFactory
from signaling.server.http import HttpFactory
from signaling.timing.clock import use_monotonic_timers
from signaling.workers.listener import WorkerListener, routing
from signaling.workers.supervisor import WorkerSettings
from signaling.workers.topic_router import share

if TYPE_CHECKING:
    from signaling.ice_source.source import IceSource


class Background(Protocol):
    """Something that runs as long as the service does."""

    def start(self) -> None:
        """Start."""

    def stop(self) -> None:
        """Stop."""


class SignalingService(Service):
    """Listens while it runs; stopping it drains its peers.

    Args:
        factory: the server.
        listen_addresses: where it listens.
        background: runs as long as it does.
    """

    name = "signaling"

    def __init__(
        self, factory: HttpFactory, listen_addresses: Sequence[ListenAddress], background: Sequence[Background] = ()
    ) -> None:
        self.factory = factory
        self._listen_addresses = listen_addresses
        self._background = background
        self._ports: list[IListeningPort] = []
        # They stay open until the drain is over, to show how it goes.
        self._metrics_ports: list[IListeningPort] = []
        self._is_wanted = False

    @property
    def addresses(self) -> list[Any]:
        """The addresses that it listens on now, as ``IAddress`` providers."""
        return [port.getHost() for port in (*self._ports, *self._metrics_ports)]

    def privilegedStartService(self) -> None:
        """Start to listen, before ``twistd`` sheds privileges.

        Raises:
            StartError: if it cannot; then it listens nowhere.
        """
        self._is_wanted = True
        for address in self._listen_addresses:
            failures: list[Failure] = []
            listening = address.endpoint.listen(address.site or self.factory).addCallback(self._listening, address)
            # Twisted's own endpoints fail at once; others may fail later, and then only the log can say so.
            if listening.called:
                listening.addErrback(failures.append)
            else:
                listening.addErrback(self._log_failure, address.text)
            for failure in failures:
                self._stop_listening(self._ports)
                self._stop_listening(self._metrics_ports)
                self.factory.postpone_start()
                raise start_error(address.text, failure.value) from None

    def startService(self) -> None:
        """Start to listen, if that was not done.

        Raises:
            StartError: if it cannot; then it listens nowhere.
        """
        if not self._is_wanted:
            self.privilegedStartService()
        super().startService()
        for task in self._background:
            task.start()

    def _listening(self, port: IListeningPort, address: ListenAddress) -> None:
        if not self._is_wanted:
            # The service was stopped before its endpoint was ready.
            maybeDeferred(port.stopListening)
            return
        if address.site is not None:
            self._metrics_ports.append(port)
        else:
            self._ports.append(self.factory.accept_on(port))
        self.factory.events.listening(address_text(port.getHost()))

    def _log_failure(self, failure: Failure, text: str) -> None:
        self.factory.events.listen_failed(str(start_error(text, failure.value)))

    def _stop_listening(self, ports: list[IListeningPort]) -> Deferred[Any]:
        self._is_wanted = False
        stopped = [maybeDeferred(port.stopListening) for port in ports]
        ports.clear()
        return gatherResults(stopped)

    def reload(self) -> None:
        """Give new connections the certificates that are in their files now."""
        certificates = [
            (address.text, address.certificates) for address in self._listen_addresses if address.certificates
        ]
        if not certificates:
            self.factory.events.nothing_to_reload()
        for text, certificate in certificates:
            try:
                certificate.reload()
            except Exception as error:
                # OpenSSL's errors, or the file's.
                self.factory.events.certificate_reload_failed(text, explain("ssl", error))
            else:
                self.factory.events.certificate_reloaded(text)

    @inlineCallbacks
    def stopService(self) -> Any:
        """Wait for the drain delay, stop to listen, then drain.

        Returns:
            Fires when no connection is left, at the latest after the delay, the spread and the shutdown timeout.
        """
        super().stopService()
        for task in self._background:
            task.stop()
        shutdown = self.factory.shutdown
        yield shutdown.become_unready(self.factory.limits.drain_delay_seconds if self._ports else 0.0)
        yield self._stop_listening(self._ports)
        yield shutdown.drain()
        yield self._stop_listening(self._metrics_ports)


def makeService(options: Options) -> SignalingService | TwistdService:
    """Make the service that ``twistd signaling`` runs.

    Args:
        options: parsed.

    Returns:
        A service to start, or to give to an application with ``setServiceParent``.

    Raises:
        StartError: if a ``--listen`` description is wrong.
        SystemExit: the same, if ``twistd`` asks; and after ``--check-config``.
    """
    # Importing the global reactor installs it, which is twistd's or the application's to decide.
    from twisted.internet import reactor  # noqa: PLC0415

    try:
        service = _make_service(options, reactor)
    except StartError as error:
        text = options.with_source(str(error))
        if options.run_by_twistd:
            raise SystemExit(f"signaling: {text}") from None
        raise StartError(text) from None
    if options["check-config"]:
        print(describe(options.settings.values()))
        raise SystemExit(0)
    return service


def _make_service(options: Options, reactor: Any) -> SignalingService | TwistdService:
    addresses = listen_addresses(reactor, options.listen, options.port)
    if options.run_by_twistd:
        raise_file_limit()
        use_monotonic_timers(reactor)
    factory: SignalingFactory | WorkerListener
    if options.workers == 1:
        factory = SignalingFactory(
            **factory_arguments(options),
            metadata_updates=bool(options["metadata-updates"]),
            ice_servers=options.ice_servers,
            ice_source=requested_ice_source(options, reactor),
            backplane=requested_backplane(options, reactor),
            notices=options["admin-listen"] is not None,
        )
    else:
        addresses = [routing(address) for address in addresses]
        factory = WorkerListener(_worker_settings(options), **factory_arguments(options, 0))
        if factory.poller is None:
            raise StartError("--workers: needs Linux, and a reactor that can watch any descriptor")
    background = _serve_metrics(options, factory, addresses, reactor)
    _serve_admin(options, factory, addresses, reactor)
    service = SignalingService(factory, addresses, background)
    return TwistdService(service, options) if options.run_by_twistd else service


def requested_backplane(options: Options, reactor: Any) -> Backplane | None:
    """Make the backplane of ``--backplane``; None without that option.

    Raises:
        StartError: if a package that it needs is not installed.
    """
    if options.backplane is None:
        return None
    return make_backplane(options.backplane, options.limits, reactor, Events(options.log_level, reactor.seconds))


def requested_ice_source(options: Options, reactor: Any) -> IceSource | None:
    """Make the source of ``--ice-source``; None without that option.

    Raises:
        StartError: if a package that it needs is not installed.
    """
    settings = options.ice_source
    if settings is None:
        return None
    try:
        # Of the extra tls, and of no use to others.
        from signaling.ice_source.source import IceSource  # noqa: PLC0415
    except ImportError as error:
        raise StartError(f"--ice-source: needs the extra tls, as in pip install '.[tls]': {error}") from None
    return IceSource(settings.url, settings.read_token, settings.ttl_seconds, reactor=reactor)


def factory_arguments(options: Options, worker: int | None = None) -> dict[str, Any]:
    """Return the arguments of an ``HttpFactory``.

    Args:
        worker: the number of the worker whose share of the bound on connections is meant; None means the whole.
    """
    limits = options.limits
    if worker is not None and limits.max_connections is not None:
        limits = replace(limits, max_connections=share(limits.max_connections, options.workers, worker))
    return {
        "limits": limits,
        "allow_origins": options.allow_origins,
        "trusted_proxies": options.trusted_proxies,
        "proxy_header": options.proxy_header,
        "path_prefix": options.path_prefix,
        "serve_client": bool(options["serve-client"]),
        "demo": bool(options["demo"]),
        "portal": options.portal,
        "log_level": options.log_level,
        "log_addresses": options.log_addresses,
    }


def _worker_settings(options: Options) -> WorkerSettings:
    if not options.run_by_twistd:
        # What an application changes in its options would not reach the workers.
        raise StartError("--workers: only twistd starts workers; a server in an application is one process")
    drain_seconds = options.limits.drain_spread_seconds + options.limits.shutdown_timeout_seconds
    return WorkerSettings(options.workers, options.arguments, drain_seconds, options.backplane is not None)


def _serve_admin(
    options: Options, factory: SignalingFactory | WorkerListener, addresses: list[ListenAddress], reactor: Any
) -> None:
    description = options["admin-listen"]
    if description is None:
        return
    own = private_endpoint(reactor, "admin-listen", description)
    site = AdminFactory(factory, factory.asker, options.admin_tokens)
    addresses.append(ListenAddress(f"--admin-listen {description}", own, site))


def _serve_metrics(
    options: Options, factory: HttpFactory, addresses: list[ListenAddress], reactor: Any
) -> list[Background]:
    description = options["metrics-listen"]
    if not options["metrics"] and description is None:
        return []
    try:
        # An extra: the plain server does without.
        from signaling.metrics.aggregation import AggregatedMetricsResource  # noqa: PLC0415
        from signaling.metrics.collector import MetricsResource, MetricsSite, ReactorLag  # noqa: PLC0415
    except ImportError as error:
        raise StartError(f"--metrics: needs the extra metrics, as in pip install '.[metrics]': {error}") from None
    lag = ReactorLag(reactor)
    metrics = (
        AggregatedMetricsResource(factory, lag)
        if isinstance(factory, WorkerListener)
        else MetricsResource(factory, lag)
    )
    if description is not None:
        own = endpoint(reactor, "metrics-listen", description)
        addresses.append(
            ListenAddress(f"--metrics-listen {description}", own, MetricsSite(metrics, Hosts(options.metrics_hosts)))
        )
    else:
        factory.add_resource(b"metrics", metrics)
    return [lag]
