"""What the server says, as typed values (docs/protocol.md, "From the server")."""

from __future__ import annotations

import json
from typing import Any

import msgspec

Metadata = dict[str, Any]
IceServer = dict[str, Any]
"""One ``RTCIceServer`` dictionary of the WebRTC specification."""


class Message(msgspec.Struct, frozen=True, rename="camel", tag_field="type"):
    """One message of the server."""


class Resume(msgspec.Struct, frozen=True):
    """How to come back to a session; the window is in seconds."""

    token: str
    window: float

    def __repr__(self) -> str:
        # Whoever has the token has the session; it must not reach a log.
        return f"Resume(window={self.window:g})"


class Peer(msgspec.Struct, frozen=True):
    """One of the others in the topic."""

    id: str
    metadata: Metadata | None = None


class Welcome(Message, frozen=True, tag="welcome"):
    """This peer is in the topic; ``resumed`` tells whether it is still the one that it was."""

    self_id: str
    ice_servers: list[IceServer] = []
    resume: Resume | None = None
    resumed: bool = False


class PeerList(Message, frozen=True, tag="peer-list"):
    """The others, in joining order."""

    peers: list[Peer]


class PeerJoined(Message, frozen=True, tag="peer-joined"):
    """Another peer joined."""

    peer_id: str
    metadata: Metadata | None = None


class PeerLeft(Message, frozen=True, tag="peer-left"):
    """Another peer is gone."""

    peer_id: str


class Relayed(Message, frozen=True):
    """A message of another peer, or of this one to itself.

    Args:
        sender: the id of the peer that sent it; the server vouches for it.
        payload: None where there is none.
    """

    sender: str = msgspec.field(name="from")
    payload: Any = None
    msg_id: str | None = None


class Offer(Relayed, frozen=True, tag="offer"):
    """An SDP offer."""


class Answer(Relayed, frozen=True, tag="answer"):
    """An SDP answer."""


class IceCandidate(Relayed, frozen=True, tag="ice-candidate"):
    """An ICE candidate."""


class IceServers(Message, frozen=True, tag="ice-servers"):
    """The ICE servers to use from now on."""

    ice_servers: list[IceServer]


class Error(Message, frozen=True, tag="error"):
    """The answer to one message of this peer."""

    code: str
    message: str
    msg_id: str | None = None


AnyMessage = Welcome | PeerList | PeerJoined | PeerLeft | Offer | Answer | IceCandidate | IceServers | Error

_decoder: msgspec.json.Decoder[AnyMessage] = msgspec.json.Decoder(AnyMessage)


def decode(text: str | bytes) -> AnyMessage | None:
    """Read one message.

    Returns:
        None for what this client cannot read: a type that it does not know, or a payload that is more than Python can
        hold. Another peer wrote that, and it must not end the session.
    """
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        # Browsers write lone surrogates as escapes, which msgspec refuses.
        try:
            message: AnyMessage = msgspec.convert(json.loads(text), AnyMessage)
            return message
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
