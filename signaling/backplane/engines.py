"""The engine that a URL asks for, and what to install where it is missing."""

from __future__ import annotations

from typing import Any

from signaling.backplane.urls import StoreUrl
from signaling.errors import StartError
from signaling.events import Events
from signaling.ports import Engine


def make_engine(url: StoreUrl, reactor: Any, events: Events) -> Engine:
    """Make the engine of a store; it connects to nothing yet.

    Raises:
        StartError: where the extra is not installed, or a file that the URL names is not what it should be.
    """
    try:
        # txredisapi imports the global reactor: only who asks for a backplane may have that.
        from signaling.backplane.redis import RedisEngine  # noqa: PLC0415
        from signaling.backplane.trust import client_options  # noqa: PLC0415
    except ImportError as error:
        raise StartError(f"--backplane: needs the extra cluster, as in pip install '.[cluster]': {error}") from None
    try:
        if url.tls:
            client_options(url, url.addresses[0].host)
    except ValueError as error:
        raise StartError(f"--backplane: {error}") from None
    return RedisEngine(url, reactor, events)
