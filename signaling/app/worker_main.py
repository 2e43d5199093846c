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
from signaling.app.service import factory_arguments, requested_backplane, requested_ice_source
from signaling.server.factory import SignalingFactory
from signaling.timing.clock import use_monotonic_timers
from signaling.workers.supervisor import CHANNEL_DESCRIPTOR
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


def main(arguments: Sequence[str]) -> None:
    """Run a worker until the listener stops it, or is gone.

    Args:
        arguments: the module of the reactor, the worker's number, the number of workers, and the options of
            ``twistd signaling``.

    Raises:
        SystemExit: if the options have become wrong, because of a file that they name.
    """
    reactor, number, options = _reactor_of(arguments[0]), int(arguments[1]), Options()
    use_monotonic_timers(reactor)
    try:
        options.parseOptions(list(arguments[3:]))
    except usage.UsageError as error:
        raise SystemExit(f"signaling: {error}") from None
    # The number of cores, for --workers 0, may have changed.
    options.workers = int(arguments[2])
    factory = WorkerFactory(
        number,
        options.workers,
        **factory_arguments(options, number),
        metadata_updates=bool(options["metadata-updates"]),
        ice_servers=options.ice_servers,
        ice_source=requested_ice_source(options, reactor),
        backplane=requested_backplane(options, reactor),
        notices=options["admin-listen"] is not None,
    )
    end = socket.socket(fileno=CHANNEL_DESCRIPTOR)
    process = WorkerProcess(reactor, factory, end, _metrics(options, factory, reactor, number))
    predicate = LogLevelFilterPredicate(defaultLogLevel=options.log_level)
    globalLogBeginner.beginLoggingTo([FilteringLogObserver(process.log, [predicate])])
    reactor.callWhenRunning(process.start)
    tune_garbage_collector()
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main(sys.argv[1:])
