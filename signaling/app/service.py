"""The server as a Twisted service: it listens, it drains, and under ``twistd`` it owns the process's log and status."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure

from signaling.admission.file_limits import raise_file_limit
from signaling.admission.origins import Hosts
from signaling.app.options import Options
from signaling.backplane.engines import make_backplane
from signaling.core.interfaces import Backplane
from signaling.errors import StartError
from signaling.log.events import Events
from signaling.server.address_text import address_text
from signaling.server.endpoints import Listener, endpoint, listeners, start_error, why
from signaling.server.factory import SignalingFactory
from signaling.timing.clock import use_monotonic_timers
from signaling.transport.private_api import accept_few, filter_all_logs, forget_exit_signal
from signaling.workers.listener import Dispatcher, peeked
from signaling.workers.supervisor import Plan
from signaling.workers.topic_router import share


class Companion(Protocol):
    """What runs as long as a service does."""

    def start(self) -> None:
        """Start."""

    def stop(self) -> None:
        """Stop."""


class SignalingService(Service):
    """Listens while it runs; stopping it drains its peers.

    Args:
        factory: the server.
        listeners: where it listens.
        companions: what runs as long as it does.
    """

    name = "signaling"

    def __init__(
        self, factory: SignalingFactory, listeners: Sequence[Listener], companions: Sequence[Companion] = ()
    ) -> None:
        self.factory = factory
        self._listeners = listeners
        self._companions = companions
        self._ports: list[IListeningPort] = []
        # Those of no peers, which are needed to the end: to see how the drain goes.
        self._others: list[IListeningPort] = []
        self._asked = False

    @property
    def addresses(self) -> list[Any]:
        """The addresses that it listens on now, as ``IAddress`` providers."""
        return [port.getHost() for port in (*self._ports, *self._others)]

    def privilegedStartService(self) -> None:
        """Start to listen, before ``twistd`` sheds privileges.

        Raises:
            StartError: where it cannot; then it listens nowhere.
        """
        self._asked = True
        for where, place, protocols in self._listeners:
            failures: list[Failure] = []
            ports = self._ports if protocols is None else self._others
            listening = place.listen(protocols or self.factory).addCallback(self._listening, ports)
            # Twisted's own endpoints fail at once; others may take their time, and then only the log is left to tell.
            if listening.called:
                listening.addErrback(failures.append)
            else:
                listening.addErrback(self._log_failure, where)
            for failure in failures:
                self._stop_listening(self._ports)
                self._stop_listening(self._others)
                raise start_error(where, failure.value) from None

    def startService(self) -> None:
        """Start to listen, if that was not done.

        Raises:
            StartError: where it cannot; then it listens nowhere.
        """
        if not self._asked:
            self.privilegedStartService()
        super().startService()
        for companion in self._companions:
            companion.start()

    def _listening(self, port: IListeningPort, ports: list[IListeningPort]) -> None:
        if not self._asked:
            # The service was stopped before its endpoint was ready.
            maybeDeferred(port.stopListening)
            return
        ports.append(port)
        accept_few(port, self.factory.connection_limits.accepts_per_pass)
        self.factory.events.listening(address_text(port.getHost()))

    def _log_failure(self, failure: Failure, where: str) -> None:
        self.factory.events.listen_failed(str(start_error(where, failure.value)))

    def _stop_listening(self, ports: list[IListeningPort]) -> Deferred[Any]:
        self._asked = False
        stopped = [maybeDeferred(port.stopListening) for port in ports]
        ports.clear()
        return gatherResults(stopped)

    def reload(self) -> None:
        """Give new connections the certificates that are in their files now."""
        reloaded = [listener for listener in self._listeners if listener.certificates is not None]
        if not reloaded:
            self.factory.events.nothing_to_reload()
        for listener in reloaded:
            assert listener.certificates is not None
            try:
                listener.certificates.reload()
            except Exception as error:
                # OpenSSL's errors, or the file's.
                self.factory.events.certificate_reload_failed(listener.where, why("ssl", error))
            else:
                self.factory.events.certificate_reloaded(listener.where)

    @inlineCallbacks
    def stopService(self) -> Any:
        """Wait for the drain delay, stop to listen, then drain.

        Returns:
            Fires when no connection is left, at the latest after the delay, the spread and the shutdown timeout.
        """
        super().stopService()
        for companion in self._companions:
            companion.stop()
        shutdown = self.factory.shutdown
        yield shutdown.become_unready(self.factory.limits.drain_delay_seconds if self._ports else 0.0)
        yield self._stop_listening(self._ports)
        yield shutdown.drain()
        yield self._stop_listening(self._others)


class TwistdService(MultiService):
    """What only the process's owner does: the log level of everything, exit statuses, systemd's notifications."""

    def __init__(self, service: SignalingService, options: Options) -> None:
        super().__init__()
        self._options = options
        self._service = service
        self._factory = service.factory
        self._stopping = False
        service.setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Start, or end the process with one line and status 1."""
        self._handle_signals()
        filter_all_logs(self._options.log_level)
        try:
            super().privilegedStartService()
        except StartError as error:
            self._exit(str(error))

    def startService(self) -> None:
        """Take over the signals once more, after the reactor, and tell systemd that the server is ready."""
        super().startService()
        self._warn_of_shortfall()
        self._factory.reactor.callWhenRunning(self._handle_signals)
        notify("READY=1")

    def _warn_of_shortfall(self) -> None:
        connection_limits = self._factory.connection_limits
        if connection_limits.shortfall:
            self._factory.events.max_connections_lowered(connection_limits.most, connection_limits.shortfall)

    def _handle_signals(self) -> None:
        # The reactor's own handlers make twistd end by the signal; a drained server ends with status 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: self._factory.reactor.callFromThread(self._stop, received))

        signal.signal(signal.SIGHUP, lambda received, _: self._factory.reactor.callFromThread(self._service.reload))

    def _stop(self, received: int) -> None:
        name = signal.Signals(received).name
        if self._stopping:
            self._factory.events.signal(name, again=True)
            self._factory.shutdown.abort()
        else:
            self._stopping = True
            self._factory.events.signal(name, again=False)
            self._factory.reactor.stop()

    def stopService(self) -> Any:
        """Tell systemd that the server stops."""
        notify("STOPPING=1")
        # A signal that came before _handle_signals: twistd would end by it, and a drained server ends with status 0.
        forget_exit_signal(self._factory.reactor)
        return super().stopService()

    def _exit(self, text: str) -> None:
        # twistd wrote its pid file, and removes it only after an Exception, which it would print with a traceback.
        pidfile = (self._options.parent or {"pidfile": ""})["pidfile"]
        if pidfile and os.path.exists(pidfile):
            os.remove(pidfile)
        # sys.stderr is the log by now.
        print(f"signaling: {text}", file=sys.__stderr__, flush=True)
        raise SystemExit(1)


def makeService(options: Options) -> SignalingService | TwistdService:
    """Make the service that ``twistd signaling`` runs.

    Args:
        options: parsed.

    Returns:
        A service to start, or to give to an application with ``setServiceParent``.

    Raises:
        StartError: where a ``--listen`` description is wrong.
        SystemExit: the same, where ``twistd`` asks.
    """
    # Importing the global reactor installs it, which is twistd's or the application's to decide.
    from twisted.internet import reactor  # noqa: PLC0415

    try:
        return _make_service(options, reactor)
    except StartError as error:
        if options.run_by_twistd:
            raise SystemExit(f"signaling: {error}") from None
        raise


def _make_service(options: Options, reactor: Any) -> SignalingService | TwistdService:
    where = listeners(reactor, options.listen, options.port)
    if options.run_by_twistd:
        raise_file_limit()
        use_monotonic_timers(reactor)
    companions: list[Companion] = []
    factory: SignalingFactory
    if options.workers == 1:
        factory = SignalingFactory(**factory_arguments(options), backplane=backplane_of(options, reactor))
    else:
        where = [peeked(listener) for listener in where]
        factory = dispatcher = Dispatcher(_plan(options), **factory_arguments(options, 0))
        companions.append(dispatcher.workers)
    companions += _serve_metrics(options, factory, where, reactor)
    service = SignalingService(factory, where, companions)
    return TwistdService(service, options) if options.run_by_twistd else service


def backplane_of(options: Options, reactor: Any) -> Backplane | None:
    """Make the backplane that was asked for; None where none was.

    Raises:
        StartError: where what it needs is missing.
    """
    if options.backplane is None:
        return None
    return make_backplane(options.backplane, options.limits, reactor, Events(options.log_level, reactor.seconds))


def factory_arguments(options: Options, worker: int | None = None) -> dict[str, Any]:
    """Return what a ``SignalingFactory`` is made with, beside its backplane.

    Args:
        worker: whose share of the bounds on all of them together is meant; None means all.
    """
    limits = options.limits
    if worker is not None and limits.max_connections is not None:
        limits = replace(limits, max_connections=share(limits.max_connections, options.workers, worker))
    return {
        "limits": limits,
        "allow_origins": options.allow_origins,
        "trusted_proxies": options.trusted_proxies,
        "ice_servers": options.ice_servers,
        "serve_client": bool(options["serve-client"]),
        "demo": bool(options["demo"]),
        "portal": options.portal,
        "log_level": options.log_level,
    }


def _plan(options: Options) -> Plan:
    if not options.run_by_twistd:
        # What an application changes in its options would not reach the workers.
        raise StartError("--workers: only twistd starts workers; a server in an application is one process")
    limits = options.limits
    return Plan(options.workers, options.arguments, limits.drain_spread_seconds + limits.shutdown_timeout_seconds)


def _serve_metrics(options: Options, factory: SignalingFactory, where: list[Listener], reactor: Any) -> list[Companion]:
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
        AggregatedMetricsResource(factory, lag) if isinstance(factory, Dispatcher) else MetricsResource(factory, lag)
    )
    if description is not None:
        own = endpoint(reactor, "metrics-listen", description)
        where.append(
            Listener(f"--metrics-listen {description}", own, MetricsSite(metrics, Hosts(options.metrics_hosts)))
        )
    else:
        factory.site.resource.putChild(b"metrics", metrics)
    return [lag]


def notify(state: str) -> None:
    """Send ``state`` to systemd, if it asked for that (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notified:
        # A leading @ stands for the null byte of an abstract address.
        notified.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
