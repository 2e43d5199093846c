"""The backplane that a URL asks for, and what to install where its engine is missing."""

from __future__ import annotations

from typing import Any

from twisted.logger import LogLevel

from signaling.backplane.cluster import Cluster
from signaling.backplane.interfaces import Engine
from signaling.backplane.redis.url import StoreUrl, parse
from signaling.core.interfaces import Backplane
from signaling.errors import StartError
from signaling.limits import Limits
from signaling.log.events import Events
from signaling.timing.clock import SteadyClock


def make_backplane(url: StoreUrl | str, limits: Limits, reactor: Any, events: Events | None = None) -> Backplane:
    """Make what lets a ``SignalingFactory`` share its topics with those of other processes.

    It connects when it is started: ``factory.backplane.start(factory.local)``.

    Args:
        url: of the store that all of them share (docs/options.md).
        limits: the factory's.
        reactor: the global one.
        events: where outages are logged; None means a log of its own.

    Raises:
        ValueError: where the URL is none.
        StartError: as ``make_engine`` does.
    """
    parsed = parse(url) if isinstance(url, str) else url
    log = events or Events(LogLevel.info, reactor.seconds)
    engine = make_engine(parsed, reactor, log)
    # A lease must not end sooner or later because somebody set the clock.
    return Cluster(engine, SteadyClock(reactor), limits, prefix=parsed.prefix, log=log)


def make_engine(url: StoreUrl, reactor: Any, events: Events) -> Engine:
    """Make the engine of a store; it connects to nothing yet.

    Raises:
        StartError: where the extra is not installed, or a file that the URL names is not what it should be.
    """
    try:
        # txredisapi imports the global reactor: only who asks for a backplane may have that.
        from signaling.backplane.redis.engine import RedisEngine  # noqa: PLC0415
        from signaling.backplane.redis.tls import client_options  # noqa: PLC0415
    except ImportError as error:
        raise StartError(f"--backplane: needs the extra cluster, as in pip install '.[cluster]': {error}") from None
    try:
        if url.tls:
            client_options(url, url.addresses[0].host)
    except ValueError as error:
        raise StartError(f"--backplane: {error}") from None
    return RedisEngine(url, reactor, events)
