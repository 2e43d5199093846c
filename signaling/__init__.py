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
    from signaling.access import Grant
    from signaling.auth import GrantRealm, IBearerToken, IGrant, TokenRefused
    from signaling.backplane.engines import make_backplane
    from signaling.clock import use_monotonic_timers
    from signaling.errors import StartError
    from signaling.ice import IceServers, Turn
    from signaling.limits import Limits
    from signaling.options import Options
    from signaling.protocol import SignalingFactory
    from signaling.service import SignalingService, makeService
    from signaling.web import SignalingResource

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
    "Grant": "access",
    "GrantRealm": "auth",
    "IBearerToken": "auth",
    "IGrant": "auth",
    "IceServers": "ice",
    "Limits": "limits",
    "Options": "options",
    "SignalingFactory": "protocol",
    "SignalingResource": "web",
    "SignalingService": "service",
    "StartError": "errors",
    "TokenRefused": "auth",
    "Turn": "ice",
    "makeService": "service",
    "make_backplane": "backplane.engines",
    "use_monotonic_timers": "clock",
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
