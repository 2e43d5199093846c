"""A WebRTC signaling server on Twisted: peers meet in topics and exchange offers, answers and ICE candidates.

``SignalingFactory`` listens on a port, ``SignalingResource`` mounts one in a ``twisted.web`` site, ``Limits`` holds the
bounds of either, ``IceServers`` what peers are told of STUN and TURN servers; ``makeService`` is what
``twistd signaling`` runs, and ``make_backplane`` lets several servers share topics. ``use_monotonic_timers`` keeps the
timers of a reactor apart from the wall clock. A portal of ``twisted.cred`` says who may do what: ``Grant``,
``GrantRealm``, ``IGrant``, ``IBearerToken`` and ``TokenRefused`` are for those who make one. Each is imported when it
is asked for, so that ``signaling.client`` brings no server with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from signaling.app.options import Options
    from signaling.app.service import SignalingService, makeService
    from signaling.auth.cred import GrantRealm, IBearerToken, IGrant, TokenRefused
    from signaling.backplane.engines import make_backplane
    from signaling.core.grants import Grant
    from signaling.core.ice import IceServers, Turn
    from signaling.errors import StartError
    from signaling.limits import Limits
    from signaling.server.factory import SignalingFactory
    from signaling.timing.clock import use_monotonic_timers
    from signaling.web.resources import SignalingResource

__all__ = [
    "Grant",
    "GrantRealm",
    "IBearerToken",
    "IGrant",
    "IceServers",
    "Limits",
    "Options",
    "SignalingFactory",
    "SignalingResource",
    "SignalingService",
    "StartError",
    "TokenRefused",
    "Turn",
    "makeService",
    "make_backplane",
    "use_monotonic_timers",
]

_HOMES = {
    "Grant": "core.grants",
    "GrantRealm": "auth.cred",
    "IBearerToken": "auth.cred",
    "IGrant": "auth.cred",
    "IceServers": "core.ice",
    "Limits": "limits",
    "Options": "app.options",
    "SignalingFactory": "server.factory",
    "SignalingResource": "web.resources",
    "SignalingService": "app.service",
    "StartError": "errors",
    "TokenRefused": "auth.cred",
    "Turn": "core.ice",
    "makeService": "app.service",
    "make_backplane": "backplane.engines",
    "use_monotonic_timers": "timing.clock",
}


_POSIX = ("fcntl", "grp", "pwd", "resource", "termios")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in _POSIX:
            raise
        needed = f"the server needs a POSIX system, for example Linux: Python has no module {error.name!r} here"
        raise ImportError(f"{needed}; the clients (signaling.client) run anywhere") from None
