"""A WebRTC signaling server on Twisted: peers join topics and exchange offers, answers and ICE candidates.

docs/api.md describes the public names. Each is imported when it is first used, so that ``import signaling.client`` does
not load the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from signaling.app.options import Options as Options
    from signaling.app.service import SignalingService as SignalingService
    from signaling.app.service import makeService as makeService
    from signaling.auth.cred import GrantRealm as GrantRealm
    from signaling.auth.cred import IBearerToken as IBearerToken
    from signaling.auth.cred import IGrant as IGrant
    from signaling.auth.cred import TokenRefused as TokenRefused
    from signaling.backplane.engines import make_backplane as make_backplane
    from signaling.core.grants import Grant as Grant
    from signaling.core.ice import IceServers as IceServers
    from signaling.core.ice import Turn as Turn
    from signaling.core.presence_events import PeerJoined as PeerJoined
    from signaling.core.presence_events import PeerLeft as PeerLeft
    from signaling.core.presence_events import PeerUpdated as PeerUpdated
    from signaling.core.presence_events import TopicClosed as TopicClosed
    from signaling.core.presence_events import TopicOpened as TopicOpened
    from signaling.core.topic_rules import TopicRule as TopicRule
    from signaling.core.topic_rules import TopicRules as TopicRules
    from signaling.errors import LeaveReason as LeaveReason
    from signaling.errors import StartError as StartError
    from signaling.ice_source.source import IceSource as IceSource
    from signaling.limits import Limits as Limits
    from signaling.server.factory import SignalingFactory as SignalingFactory
    from signaling.server.observer import IPresenceObserver as IPresenceObserver
    from signaling.timing.clock import use_monotonic_timers as use_monotonic_timers
    from signaling.web.resources import SignalingResource as SignalingResource

_PUBLIC = {
    "Grant": "core.grants",
    "GrantRealm": "auth.cred",
    "IBearerToken": "auth.cred",
    "IGrant": "auth.cred",
    "IPresenceObserver": "server.observer",
    "IceServers": "core.ice",
    "IceSource": "ice_source.source",
    "LeaveReason": "errors",
    "Limits": "limits",
    "Options": "app.options",
    "PeerJoined": "core.presence_events",
    "PeerLeft": "core.presence_events",
    "PeerUpdated": "core.presence_events",
    "SignalingFactory": "server.factory",
    "SignalingResource": "web.resources",
    "SignalingService": "app.service",
    "StartError": "errors",
    "TokenRefused": "auth.cred",
    "TopicClosed": "core.presence_events",
    "TopicOpened": "core.presence_events",
    "TopicRule": "core.topic_rules",
    "TopicRules": "core.topic_rules",
    "Turn": "core.ice",
    "makeService": "app.service",
    "make_backplane": "backplane.engines",
    "use_monotonic_timers": "timing.clock",
}
"""The public names and their modules. Type checkers read the imports above; a test compares the two."""

__all__ = list(_PUBLIC)

_POSIX_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in _POSIX_MODULES:
            raise
        needed = f"the server needs a POSIX system, for example Linux: Python has no module {error.name!r} here"
        raise ImportError(f"{needed}; the clients (signaling.client) run anywhere") from None
