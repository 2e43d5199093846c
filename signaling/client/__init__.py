"""The Python client: ``join`` a topic with asyncio.

``signaling.client.mesh`` keeps an aiortc connection to each other peer, and has a ``join`` of its own.
``signaling.client.aiortc`` replaces ``aiortc.contrib.signaling``, and ``signaling.client.twisted`` is the client for
Twisted services. None of them imports the server.
"""

from signaling.client.backoff import Backoff
from signaling.client.connection import Signaling, join
from signaling.client.errors import Lost, NotDelivered, NotUpdated, Refused, SignalingError
from signaling.client.messages import (
    Answer,
    AnyMessage,
    Error,
    IceCandidate,
    IceServers,
    Notice,
    Offer,
    Peer,
    PeerJoined,
    PeerLeft,
    PeerList,
    PeerUpdated,
    Relayed,
    Resume,
    Tampered,
    Welcome,
)

__all__ = [
    "Answer",
    "AnyMessage",
    "Backoff",
    "Error",
    "IceCandidate",
    "IceServers",
    "Lost",
    "NotDelivered",
    "NotUpdated",
    "Notice",
    "Offer",
    "Peer",
    "PeerJoined",
    "PeerLeft",
    "PeerList",
    "PeerUpdated",
    "Refused",
    "Relayed",
    "Resume",
    "Signaling",
    "SignalingError",
    "Tampered",
    "Welcome",
    "join",
]
