"""The messages of the server, as typed values (docs/protocol.md, "Messages from the server").

Other peers wrote the metadata and the payloads. A value that Python cannot represent, or of the wrong type, is left
out, and the rest of the message is read.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

Metadata = dict[str, Any]
IceServer = dict[str, Any]
"""One ``RTCIceServer`` dictionary of the WebRTC specification."""


class Message(msgspec.Struct, frozen=True, rename="camel", tag_field="type"):
    """One message of the server."""


class Resume(msgspec.Struct, frozen=True):
    """How to resume the session; the window is in seconds."""

    token: str
    window: float

    def __repr__(self) -> str:
        # The token gives access to the session: it must not be logged.
        return f"Resume(window={self.window:g})"


class Peer(msgspec.Struct, frozen=True):
    """Another peer in the topic."""

    id: str
    metadata: Metadata | None = None


class Welcome(Message, frozen=True, tag="welcome"):
    """This peer is in the topic.

    Args:
        resumed: whether as the same peer as before.
        expires_in: how long the token of the connection is valid, in seconds; None if it never expires.
        features: the names of the optional features that the server has on.
    """

    self_id: str
    ice_servers: list[IceServer] = []
    resume: Resume | None = None
    resumed: bool = False
    expires_in: float | None = None
    features: frozenset[str] = frozenset()


class PeerList(Message, frozen=True, tag="peer-list"):
    """The other peers, in joining order."""

    peers: list[Peer]


class PeerJoined(Message, frozen=True, tag="peer-joined"):
    """Another peer joined."""

    peer_id: str
    metadata: Metadata | None = None


class PeerUpdated(Message, frozen=True, tag="peer-updated"):
    """A peer, which may be this one, has other metadata."""

    peer_id: str
    metadata: Metadata | None = None


class PeerLeft(Message, frozen=True, tag="peer-left"):
    """Another peer left."""

    peer_id: str


class Relayed(Message, frozen=True):
    """A message from another peer, or from this one to itself.

    Args:
        sender: the id of the peer that sent it, set by the server.
        payload: None if there is none.
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


class Notice(Message, frozen=True, tag="notice"):
    """What the operator of the server says; no peer can send one.

    Args:
        data: any JSON value.
    """

    data: Any = None


class Token(Message, frozen=True, tag="token"):
    """The server accepted a new token; no event for the application.

    Args:
        expires_in: as in ``Welcome``.
    """

    expires_in: float | None = None
    msg_id: str | None = None


class Error(Message, frozen=True, tag="error"):
    """The answer to one message of this peer."""

    code: str
    message: str
    msg_id: str | None = None


class Tampered(msgspec.Struct, frozen=True):
    """A message that is not what its sender sealed for this peer, now; its payload is not passed on.

    Args:
        sender: who sent it, as the server says.
        kind: ``offer``, ``answer`` or ``ice-candidate``.
        reason: for a person.
    """

    sender: str
    kind: str
    reason: str


_OfPeers = PeerList | PeerJoined | PeerUpdated | PeerLeft
_FromServer = Welcome | _OfPeers | Offer | Answer | IceCandidate | IceServers | Notice | Error
AnyMessage = _FromServer | Tampered
"""What an application receives."""

_RELAYED: dict[str, type[Offer | Answer | IceCandidate]] = {
    "offer": Offer,
    "answer": Answer,
    "ice-candidate": IceCandidate,
}
_SHOWING: dict[str, type[PeerJoined | PeerUpdated]] = {"peer-joined": PeerJoined, "peer-updated": PeerUpdated}

MAX_DEPTH = 100
"""If Python cannot read a message whole, values nested deeper than this are read as None."""

# The next bracket outside strings, or the end. It is possessive and matches everywhere, so its time is linear.
_NEXT_BRACKETS = re.compile(r'(?:[^\[\]{}"]++|"(?:[^"\\]++|\\.)*+"?)*+([\[{]+|[\]}]+|\Z)', re.DOTALL)

_decoder: msgspec.json.Decoder[_FromServer | Token] = msgspec.json.Decoder(_FromServer | Token)


def decode(text: str | bytes) -> AnyMessage | Token | None:
    """Read one message.

    Returns:
        None if it is not JSON, has a type that this client does not know, or lacks an id that it needs.
    """
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        pass
    try:
        return _typed(_load(text if isinstance(text, str) else text.decode()))
    except (ValueError, RecursionError):
        return None


def decode_payload(text: bytes) -> Any:
    """Read a payload that was sealed, as leniently as one that was not.

    Raises:
        ValueError: if it is not JSON.
    """
    try:
        return _load(text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _load(text: str) -> Any:
    """Read JSON that msgspec refuses: lone surrogates, which browsers write, huge numbers, and deep nesting."""
    try:
        return json.loads(text, parse_int=_number, parse_constant=_refuse)
    except RecursionError:
        return json.loads(_prune(text), parse_int=_number, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _number(digits: str) -> float:
    try:
        return int(digits)
    except ValueError:
        # Python reads at most 4,300 digits. As a float this is infinity, like 1e400.
        return float(digits)


def _prune(text: str) -> str:
    """Write ``null`` in place of each value that is nested deeper than ``MAX_DEPTH``."""
    kept = []
    depth = start = 0
    for found in _NEXT_BRACKETS.finditer(text):
        run, before = found[1], depth
        depth += len(run) if run[:1] in ("[", "{") else -len(run)
        if before <= MAX_DEPTH < depth:
            kept += [text[start : found.start(1) + MAX_DEPTH - before], "null"]
        elif depth <= MAX_DEPTH < before:
            start = found.start(1) + before - MAX_DEPTH
    # If the text ends deep inside, it is no JSON, and json.loads refuses what was kept.
    return "".join(kept) + (text[start:] if depth <= MAX_DEPTH else "")


def _typed(message: Any) -> AnyMessage | Token | None:  # noqa: PLR0911 - one for each type
    match message:
        case {"type": "welcome", "selfId": str(self_id)}:
            resumed = message.get("resumed") is True
            resume, features = _resume(message.get("resume")), _features(message)
            return Welcome(self_id, _servers(message), resume, resumed, _seconds(message), features)
        case {"type": "peer-list"}:
            peers = _list(message.get("peers"))
            return PeerList([Peer(peer["id"], _metadata(peer)) for peer in peers if isinstance(peer.get("id"), str)])
        case {"type": "peer-joined" | "peer-updated" as kind, "peerId": str(peer_id)}:
            return _SHOWING[kind](peer_id, _metadata(message))
        case {"type": "peer-left", "peerId": str(peer_id)}:
            return PeerLeft(peer_id)
        case {"type": "offer" | "answer" | "ice-candidate" as kind, "from": str(sender)}:
            return _RELAYED[kind](sender, message.get("payload"), _text(message, "msgId"))
        case {"type": "ice-servers"}:
            return IceServers(_servers(message))
        case {"type": "notice"}:
            return Notice(message.get("data"))
        case {"type": "token"}:
            return Token(_seconds(message), _text(message, "msgId"))
        case {"type": "error", "code": str(code)}:
            return Error(code, _text(message, "message") or "", _text(message, "msgId"))
    return None


def _text(message: dict[str, Any], key: str) -> str | None:
    text = message.get(key)
    return text if isinstance(text, str) else None


def _seconds(message: dict[str, Any]) -> float | None:
    match message.get("expiresIn"):
        case bool():
            return None
        case int() | float() as seconds:
            return seconds
    return None


def _list(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _metadata(peer: dict[str, Any]) -> Metadata | None:
    metadata = peer.get("metadata")
    return metadata if isinstance(metadata, dict) else None


def _servers(message: dict[str, Any]) -> list[IceServer]:
    return _list(message.get("iceServers"))


def _features(message: dict[str, Any]) -> frozenset[str]:
    names = message.get("features")
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def _resume(resume: Any) -> Resume | None:
    match resume:
        case {"token": str(token), "window": int(window) | float(window)}:
            return Resume(token, window)
    return None
