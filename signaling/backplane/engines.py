"""Which engine a URL asks for.

This is the only module of the backplane that knows the engines by name: each imports from the backplane, and needs an
extra to be installed.
"""

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
    """Make the backplane with which a ``SignalingFactory`` shares its topics with other processes.

    It connects when it is started: ``factory.backplane.start(factory.local)``.

    Args:
        url: of the store that the processes share (docs/redis.md).
        limits: the factory's.
        reactor: the global one.
        events: where outages are logged; None makes a log of its own.

    Raises:
        ValueError: the URL is wrong.
        StartError: as in ``make_engine``.
    """
    parsed = parse(url) if isinstance(url, str) else url
    log = events or Events(LogLevel.info, reactor.seconds)
    engine = make_engine(parsed, reactor, log)
    # A lease must not end sooner or later because the wall clock is set.
    return Cluster(engine, SteadyClock(reactor), limits, prefix=parsed.prefix, log=log)


def make_engine(url: StoreUrl, reactor: Any, events: Events) -> Engine:
    """Make the engine of a store; it does not connect yet.

    Raises:
        StartError: the extra is not installed, or a file that the URL names is not what it should be.
    """
    try:
        from signaling.backplane.redis.engine import RedisEngine  # noqa: PLC0415
        from signaling.backplane.redis.tls import client_options  # noqa: PLC0415
    except ImportError as error:
        raise StartError(
            f"--backplane: needs the extra cluster (pip install 'twisted-signaling[cluster]'): {error}"
        ) from None
    try:
        if url.tls:
            client_options(url, url.addresses[0].host)
    except ValueError as error:
        raise StartError(f"--backplane: {error}") from None
    return RedisEngine(url, reactor, events)
