"""How each server wants to be spoken with, so that all of them are asked for the same work."""

from __future__ import annotations

import base64
from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import msgspec

from benchmarks.client import text_frame
from benchmarks.compare.generator import Link, Matches, Message, WrongAnswerError

_NONCE = base64.b64encode(b"the sample nonce").decode()


@dataclass(frozen=True, slots=True)
class Member:
    """One peer that joined; the others name it ``id``."""

    link: Link
    topic: str
    id: str


Joining = Generator[Link, None, Member]


class Dialect(Protocol):
    """How to speak with one kind of server."""

    def join(self, link: Link, topic: str, name: str) -> Joining:
        """Join, and wait until the server says so.

        Args:
            name: becomes the peer's id if clients choose theirs; no two peers of a run have the same.
        """

    def joined(self, member_id: str) -> Matches | None:
        """Judge what the others of a topic receive about a new peer; None if nothing."""

    def left(self, member_id: str) -> Matches | None:
        """Judge what the others receive when a peer left; None if nothing."""

    def relay(self, sender: Member, target: Member, kind: str, payload: bytes) -> bytes:
        """Write the frame that has a payload relayed to one peer."""

    def relayed(self, sender: Member, target: Member, kind: str, payload: bytes) -> Matches:
        """Judge what the target receives of it: the kind, the sender, and the whole payload."""


def _upgrade(target: str) -> bytes:
    return (
        f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {_NONCE}\r\n\r\n"
    ).encode()


def _equals(wanted: object) -> Matches:
    return lambda message: message == wanted


class Wire:
    """Our wire: join by path, ``welcome`` and ``peer-list``, ``to`` and ``from``.

    Args:
        path: where topics are.
    """

    def __init__(self, path: str = "/ws/") -> None:
        self._path = path

    def join(self, link: Link, topic: str, name: str) -> Joining:
        """Join by the path; the server names the peer."""
        link.send(_upgrade(self._path + topic))
        yield from link.head()
        welcome = yield from link.message()
        peer_list = yield from link.message()
        if (welcome["type"], peer_list["type"]) != ("welcome", "peer-list"):
            raise WrongAnswerError(f"{welcome} and {peer_list} in place of welcome and peer-list")
        return Member(link, topic, welcome["selfId"])

    def joined(self, member_id: str) -> Matches:
        """Judge a ``peer-joined``."""
        return _equals({"type": "peer-joined", "peerId": member_id})

    def left(self, member_id: str) -> Matches:
        """Judge a ``peer-left``."""
        return _equals({"type": "peer-left", "peerId": member_id})

    def relay(self, sender: Member, target: Member, kind: str, payload: bytes) -> bytes:
        """Address it by ``to``."""
        return text_frame(b'{"type":"%b","to":"%b","payload":%b}' % (kind.encode(), target.id.encode(), payload))

    def relayed(self, sender: Member, target: Member, kind: str, payload: bytes) -> Matches:
        """Judge it by ``from``."""
        return _equals({"type": kind, "from": sender.id, "payload": msgspec.json.decode(payload)})


class PeerJs:
    """peerjs-server: clients choose their ids, and no peer is announced."""

    def join(self, link: Link, topic: str, name: str) -> Joining:
        """Connect, and wait for ``OPEN``."""
        link.send(_upgrade(f"/peerjs?key=peerjs&id={name}&token=token&version=1.5.5"))
        yield from link.head()
        opened = yield from link.message()
        if opened["type"] != "OPEN":
            raise WrongAnswerError(f"{opened} in place of OPEN")
        return Member(link, topic, name)

    def joined(self, member_id: str) -> None:
        """Return None: it is not announced."""

    def left(self, member_id: str) -> None:
        """Return None: it is not announced."""

    def relay(self, sender: Member, target: Member, kind: str, payload: bytes) -> bytes:
        """Address it by ``dst``."""
        return text_frame(
            b'{"type":"%b","payload":%b,"dst":"%b"}' % (_loud(kind).encode(), payload, target.id.encode())
        )

    def relayed(self, sender: Member, target: Member, kind: str, payload: bytes) -> Matches:
        """Judge it by ``src``."""
        content = msgspec.json.decode(payload)
        return _equals({"type": _loud(kind), "src": sender.id, "dst": target.id, "payload": content})


def _loud(kind: str) -> str:
    return "CANDIDATE" if kind == "ice-candidate" else kind.upper()


class SocketIo:
    """Socket.IO over WebSocket alone: events with arguments, in packets of Engine.IO 4.

    A message is read as ``{"packet": "42", "data": [event, *arguments]}``.
    """

    def join(self, link: Link, topic: str, name: str) -> Joining:
        """Connect to the default namespace; the server joins the topic of the query, and names the peer."""
        link.parse = _packet
        link.send(_upgrade(f"/socket.io/?EIO=4&transport=websocket&topic={topic}"))
        yield from link.head()
        opened = yield from link.message()
        link.send(text_frame(b"40"))
        connected = yield from link.message()
        peer_list = yield from link.message()
        packets = [opened["packet"], connected["packet"], peer_list["packet"]]
        if packets != ["0", "40", "42"] or peer_list["data"][0] != "peer-list":
            raise WrongAnswerError(f"{opened}, {connected} and {peer_list} in place of a connection and a peer-list")
        return Member(link, topic, connected["data"]["sid"])

    def joined(self, member_id: str) -> Matches:
        """Judge a ``peer-joined``."""
        return _event("peer-joined", member_id)

    def left(self, member_id: str) -> Matches:
        """Judge a ``peer-left``."""
        return _event("peer-left", member_id)

    def relay(self, sender: Member, target: Member, kind: str, payload: bytes) -> bytes:
        """Address it by the first argument."""
        return text_frame(b'42["%b","%b",%b]' % (kind.encode(), target.id.encode(), payload))

    def relayed(self, sender: Member, target: Member, kind: str, payload: bytes) -> Matches:
        """Judge it by its arguments, the sender and the payload."""
        return _event(kind, sender.id, msgspec.json.decode(payload))


def _packet(text: bytes) -> Message:
    content = text.lstrip(b"0123456789")
    packet = text[: len(text) - len(content)].decode()
    return {"packet": packet, "data": msgspec.json.decode(content) if content else None}


def _event(*words: object) -> Matches:
    return _equals({"packet": "42", "data": [*words]})


class YWebrtc:
    """y-webrtc's signaling server: every message goes to all who subscribed a topic, its sender among them.

    Args:
        inboxes: use it as its own client does not: each peer subscribes a topic of its own, so that a message goes to
            its target alone, and no peer is announced.
    """

    def __init__(self, *, inboxes: bool = False) -> None:
        self._inboxes = inboxes

    def join(self, link: Link, topic: str, name: str) -> Joining:
        """Subscribe and announce oneself, as its client does; its own announcement shows that both are done."""
        link.send(_upgrade("/"))
        yield from link.head()
        member = Member(link, topic, name)
        inbox = self._topic(member)
        link.send(text_frame(msgspec.json.encode({"type": "subscribe", "topics": [inbox]})))
        announcement = {"type": "announce", "from": name}
        link.send(text_frame(msgspec.json.encode({"type": "publish", "topic": inbox, "data": announcement})))
        while (received := (yield from link.message()))["data"] != announcement:
            # A peer that joins at the same time is announced to those that have subscribed already.
            if received["data"]["type"] != "announce":
                raise WrongAnswerError(f"{received} in place of the own announcement")
        link.echoes = lambda message: message["data"]["from"] == name
        return member

    def joined(self, member_id: str) -> Matches | None:
        """Judge an announcement."""
        if self._inboxes:
            return None
        return lambda message: message["data"] == {"type": "announce", "from": member_id}

    def left(self, member_id: str) -> None:
        """Return None: it is not announced."""

    def relay(self, sender: Member, target: Member, kind: str, payload: bytes) -> bytes:
        """Publish it to where the target listens."""
        return text_frame(
            b'{"type":"publish","topic":"%b","data":{"type":"%b","from":"%b","to":"%b","signal":%b}}'
            % (self._topic(target).encode(), kind.encode(), sender.id.encode(), target.id.encode(), payload)
        )

    def relayed(self, sender: Member, target: Member, kind: str, payload: bytes) -> Matches:
        """Judge it by what was published."""
        wanted = {"type": kind, "from": sender.id, "to": target.id, "signal": msgspec.json.decode(payload)}
        return lambda message: message["data"] == wanted

    def _topic(self, member: Member) -> str:
        return f"{member.topic}-{member.id}" if self._inboxes else member.topic
