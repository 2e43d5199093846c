"""The server as a Twisted service: it listens when it starts, and drains when it stops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure

from signaling.admin.site import AdminFactory
from signaling.admission.open_files import raise_file_limit
from signaling.admission.origins import Hosts
from signaling.app.options import Options
from signaling.app.reloading import Reloader, limits_of
from signaling.app.settings import describe, encode_settings
from signaling.app.twistd import TwistdService
from signaling.backplane.engines import make_backplane
from signaling.core.interfaces import Backplane
from signaling.errors import StartError
from signaling.log.events import Events
from signaling.server.address_text import address_text
from signaling.server.endpoint_descriptions import is_of_systemd, start_error
from signaling.server.endpoints import ListenAddress, endpoint, listen_addresses, private_endpoint
from signaling.server.factory import SignalingFactory
from signaling.server.http import HttpFactory
from signaling.standard_output import print_line
from signaling.timing.clock import use_monotonic_timers
from signaling.webhooks.delivery import STOP_SECONDS, Webhooks
from signaling.workers.listener import WorkerListener, drain_seconds, routing
from signaling.workers.supervisor import Supervisor, WorkerSettings

if TYPE_CHECKING:
    from signaling.ice_source.source import IceSource
    from signaling.server.observer import IPresenceObserver


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
        print_line(describe(options.settings.values()))
        raise SystemExit(0)
    return service


def _make_service(options: Options, reactor: Any) -> SignalingService | TwistdService:
    # Systemd hands its sockets over to a start alone.
    listen = [text for text in options.listen if not (options["check-config"] and is_of_systemd(text))]
    addresses = listen_addresses(reactor, listen, options.port)
    if options.run_by_twistd:
        raise_file_limit()
        use_monotonic_timers(reactor)
    factory: SignalingFactory | WorkerListener
    supervisor: Supervisor | None = None
    events_of_services = Events(options.log_level, reactor.seconds)
    # Each worker makes its own; one that could not would be restarted again and again.
    of_peers = peer_arguments(options, reactor, events_of_services)
    if options.webhook is not None and options.webhook.url.is_readable_on_its_way:
        events_of_services.webhook_unprotected(str(options.webhook.url))
    if options.workers == 1:
        factory = SignalingFactory(**http_arguments(options), **of_peers)
    else:
        addresses = [routing(address) for address in addresses]
        factory = WorkerListener(_worker_settings(options), **http_arguments(options, 0))
        if factory.poller is None:
            raise StartError("--workers: needs Linux, and a reactor that can watch any descriptor")
        supervisor = factory.supervisor
    background = _serve_metrics(options, factory, addresses, reactor)
    admin = _serve_admin(options, factory, addresses, reactor)
    service = SignalingService(factory, addresses, background)
    if not options.run_by_twistd:
        return service
    certificates = [(address.text, address.certificates) for address in addresses if address.certificates]
    # The listener bounds its connections as the first worker does.
    number = None if supervisor is None else 0
    # With workers, each of them delivers the events of its own peers.
    webhooks = of_peers["observer"] if supervisor is None else None
    reloader = Reloader(options, factory, certificates, number, webhooks=webhooks)
    reloader.admin = admin
    reloader.supervisor = supervisor
    reloader.log_levels.append(events_of_services.set_level)
    return TwistdService(service, options, reloader)


def http_arguments(options: Options, worker: int | None = None) -> dict[str, Any]:
    """Return the arguments of an ``HttpFactory``, which a listener of workers is as well.

    Args:
        worker: the number of the worker whose share of the bound on connections is meant; None means the whole.
    """
    return {
        "limits": limits_of(options.limits, options.workers, worker),
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


def peer_arguments(options: Options, reactor: Any, events: Events) -> dict[str, Any]:
    """Return the arguments that a ``SignalingFactory`` has besides: those of a process with peers.

    Args:
        events: the log of what is made for it; the factory has one of its own.

    Raises:
        StartError: if a package that an option needs is not installed, or an option's value cannot be used.
    """
    return {
        "ice_servers": options.ice_servers,
        "ice_source": _ice_source(options, reactor),
        "topic_rules": options.topic_rules,
        "metadata_updates": bool(options["metadata-updates"]),
        "backplane": _backplane(options, reactor, events),
        "notices": options["admin-listen"] is not None,
        "observer": _observer(options, reactor, events),
    }


def _backplane(options: Options, reactor: Any, events: Events) -> Backplane | None:
    if options.backplane is None:
        return None
    return make_backplane(options.backplane, options.limits, reactor, events)


def _ice_source(options: Options, reactor: Any) -> IceSource | None:
    settings = options.ice_source
    if settings is None:
        return None
    try:
        # Of the extra tls, and of no use to others.
        from signaling.ice_source.source import IceSource  # noqa: PLC0415
    except ImportError as error:
        raise StartError(f"--ice-source: needs the extra tls (pip install 'twisted-signaling[tls]'): {error}") from None
    return IceSource(settings.url, settings.read_token, settings.ttl_seconds, reactor=reactor)


def _observer(options: Options, reactor: Any, events: Events) -> IPresenceObserver | None:
    settings = options.webhook
    if settings is None:
        return None
    # Of twisted.web's client, which takes long to import.
    from signaling.webhooks.sender import HttpSender  # noqa: PLC0415

    try:
        sender = HttpSender(reactor, settings.url)
    except ImportError as error:
        raise StartError(
            f"--webhook: https needs the extra tls (pip install 'twisted-signaling[tls]'): {error}"
        ) from None
    except ValueError as error:
        # For example an underscore, which other names may have.
        raise StartError(f"--webhook: no certificate can be for this host: {error}") from None
    return Webhooks(sender, settings.keys, settings.max_events, reactor, events, wall_clock=time.time)


def _worker_settings(options: Options) -> WorkerSettings:
    if not options.run_by_twistd:
        # What an application changes in its options would not reach the workers.
        raise StartError("--workers: only twistd starts workers; a server in an application is one process")
    return WorkerSettings(
        options.workers,
        options.arguments,
        drain_seconds(options.limits),
        encode_settings(options.settings.values()),
        observer_seconds=STOP_SECONDS if options.webhook is not None else 0.0,
        are_nodes=options.backplane is not None,
    )


def _serve_admin(
    options: Options, factory: SignalingFactory | WorkerListener, addresses: list[ListenAddress], reactor: Any
) -> AdminFactory | None:
    description = options["admin-listen"]
    if description is None:
        return None
    own = private_endpoint(reactor, "admin-listen", description)
    site = AdminFactory(factory, factory.asker, options.admin_tokens)
    addresses.append(ListenAddress(f"--admin-listen {description}", own, site))
    return site


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
        raise StartError(
            f"--metrics: needs the extra metrics (pip install 'twisted-signaling[metrics]'): {error}"
        ) from None
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
