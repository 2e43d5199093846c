"""The command line of a worker process, for the listener alone.

A worker parses the options of ``twistd signaling`` itself, because what they stand for cannot be sent to it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from twisted.logger import FilteringLogObserver, LogLevelFilterPredicate, globalLogBeginner
from twisted.python import usage

from signaling.app.garbage_collection import tune_garbage_collector
from signaling.app.options import Options
from signaling.app.reloading import Reloader
from signaling.app.service import http_arguments, peer_arguments
from signaling.log.events import Events
from signaling.server.factory import SignalingFactory
from signaling.timing.clock import use_monotonic_timers
from signaling.workers.supervisor import CHANNEL_DESCRIPTOR, SETTINGS_DESCRIPTOR
from signaling.workers.worker import WorkerFactory, WorkerProcess


def _reactor_of(module: str) -> Any:
    import_module(module).install()
    from twisted.internet import reactor  # noqa: PLC0415

    return reactor


def _metrics(options: Options, factory: SignalingFactory, reactor: Any, number: int) -> Callable[[], Any] | None:
    if not (options["metrics"] or options["metrics-listen"]):
        return None
    # Of the extra metrics.
    from signaling.metrics.aggregation import snapshot, worker_name  # noqa: PLC0415
    from signaling.metrics.collector import ReactorLag, make_registry  # noqa: PLC0415

    lag = ReactorLag(reactor)
    lag.start()
    return partial(snapshot, make_registry(factory, lag), worker_name(number))


def _settings() -> bytes:
    with open(SETTINGS_DESCRIPTOR, "rb") as file:
        return file.read()


def main(arguments: Sequence[str]) -> None:
    """Run a worker until the listener stops it, or is gone.

    Args:
        arguments: the module of the reactor, the worker's number, the number of workers, and the options of
            ``twistd signaling``.

    Raises:
        SystemExit: if the options have become wrong, because of a file that they name.
    """
    reactor, number, options = _reactor_of(arguments[0]), int(arguments[1]), Options(in_force=_settings())
    use_monotonic_timers(reactor)
    try:
        options.parseOptions(list(arguments[3:]))
    except usage.UsageError as error:
        raise SystemExit(f"signaling: {error}") from None
    # The number of cores, for --workers 0, may have changed.
    options.workers = int(arguments[2])
    events_of_services = Events(options.log_level, reactor.seconds)
    of_peers = peer_arguments(options, reactor, events_of_services)
    factory = WorkerFactory(number, options.workers, **http_arguments(options, number), **of_peers)
    end = socket.socket(fileno=CHANNEL_DESCRIPTOR)
    reloader = Reloader(options, factory, worker=number, webhooks=of_peers["observer"])
    metrics = _metrics(options, factory, reactor, number)
    process = WorkerProcess(reactor, factory, end, metrics, reloader)
    predicate = LogLevelFilterPredicate(defaultLogLevel=options.log_level)
    reloader.log_levels += [events_of_services.set_level, partial(predicate.setLogLevelForNamespace, "")]
    globalLogBeginner.beginLoggingTo([FilteringLogObserver(process.log, [predicate])])
    reactor.callWhenRunning(process.start)
    tune_garbage_collector()
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main(sys.argv[1:])
