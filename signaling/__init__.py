"""A WebRTC signaling server on Twisted: peers meet in topics and exchange offers, answers and ICE candidates.

``SignalingFactory`` listens on a port, ``SignalingResource`` mounts one in a ``twisted.web`` site, ``Limits`` holds the
bounds of either,
``IceServers`` what peers are told of STUN and TURN servers; ``makeService`` is what ``twistd signaling`` runs.
"""

from signaling.errors import StartError
from signaling.ice import IceServers, Turn
from signaling.limits import Limits
from signaling.options import Options
from signaling.protocol import SignalingFactory
from signaling.service import SignalingService, makeService
from signaling.web import SignalingResource

__all__ = [
    "IceServers",
    "Limits",
    "Options",
    "SignalingFactory",
    "SignalingResource",
    "SignalingService",
    "StartError",
    "Turn",
    "makeService",
]
