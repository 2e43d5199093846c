"""What comes on a node's channel: events of topics, from the store, and messages of other nodes.

An event is a line of text and then a topic and a value, as ``redis/lua/prelude.lua`` writes it. A message is
MessagePack, which never starts with a letter.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

NODE_CHARACTERS = 16

Version = tuple[int, int, int]
"""When a topic was made (seconds and microseconds of the store's clock), and how many events it has had since."""


class EventKind(StrEnum):
    """What happened to a peer."""

    JOINED = "joined"
    LEFT = "left"
    UPDATED = "updated"
    """It has other metadata."""
    MOVED = "moved"
    """It resumed at another node."""


class Member(NamedTuple):
    """A member of a topic, on some node."""

    node: str
    metadata: bytes | None


class TopicEvent(NamedTuple):
    """Something that happened in a topic.

    Args:
        member: what the store has of the peer; None if it left.
    """

    kind: EventKind
    version: Version
    topic: str
    peer: str
    member: Member | None


class HeartbeatEcho(NamedTuple):
    """A heartbeat of this node, which the store publishes on the node's own channel.

    Args:
        number: of the heartbeat.
        events: how many the store had sent to this node before.
    """

    number: int
    events: int


class Relay(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One relay.

    Args:
        number: counted from 1 for each origin and target node.
        frame: for the target's connection.
    """

    number: int
    topic: str
    to: str
    sender: str
    frame: bytes


class RelayBatch(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Relays for peers of the node that receives this, in order.

    Args:
        origin: the series that numbers them.
        reply_to: the node that waits for their outcomes.
        low: all smaller numbers have their outcome.
        expires: by the store's clock, in milliseconds; later they must not be delivered.
    """

    origin: str
    reply_to: str
    low: int
    expires: int
    relays: list[Relay]


class OutcomeQuery(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """Asks for the outcomes of relays; one up to ``high`` that has not come yet must not be delivered any more."""

    origin: str
    reply_to: str
    high: int
    numbers: list[int]


class Outcomes(msgspec.Struct, frozen=True, array_like=True, tag="o"):
    """The outcomes of relays.

    Args:
        node: that was to deliver them.
        delivered: the first and the last number of each run.
        failed: numbers, and the code of each.
        held: numbers of those that wait in their target's queue, and have no outcome yet.
    """

    origin: str
    node: str
    delivered: list[tuple[int, int]]
    failed: list[tuple[int, str]]
    held: list[int]


class SessionRequest(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """Asks the node that has a peer to hand off its session.

    Args:
        number: repeated in the reply.
        proof: for that node to check.
    """

    reply_to: str
    number: int
    topic: str
    peer: str
    proof: bytes


class SessionReply(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """The reply to a ``SessionRequest``.

    Args:
        session: of the peer; None if it stays.
        origin: the series in which both nodes number the open relays of the session.
        waiting: the numbers of the relays to the peer that are not written yet.
    """

    number: int
    session: bytes | None
    origin: str = ""
    waiting: list[int] = []


class NodeQuery(msgspec.Struct, frozen=True, array_like=True, tag="q"):
    """Asks every node something (``core/administration.py``).

    Args:
        number: repeated in the answers.
    """

    reply_to: str
    number: int
    query: bytes


class NodeAnswer(msgspec.Struct, frozen=True, array_like=True, tag="n"):
    """A part of one node's answer to a ``NodeQuery``.

    Args:
        part: counted from 0.
        is_last: whether the answer is complete with this part.
    """

    number: int
    node: str
    part: int
    is_last: bool
    data: bytes


Message = RelayBatch | OutcomeQuery | Outcomes | SessionRequest | SessionReply | NodeQuery | NodeAnswer

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
_LETTER = b"a"[0]


def decode(data: bytes) -> TopicEvent | HeartbeatEcho | Message:
    """Decode what came on a channel.

    Raises:
        ValueError: it is neither an event nor a message.
    """
    try:
        if data.startswith(b"heartbeat "):
            _, number, events = data.split(b" ")
            return HeartbeatEcho(int(number), int(events))
        if _LETTER <= data[0] < _LETTER + 26:
            return _parse_event(data)
        message: Message = _decode(data)
        return message
    except (IndexError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(str(error)) from None


def _parse_event(data: bytes) -> TopicEvent:
    head, _, rest = data.partition(b"\n")
    kind, gen, seq, peer, size = head.decode().split(" ")
    topic, value = rest[: int(size)], rest[int(size) :]
    if len(topic) != int(size) or (kind == EventKind.LEFT) == bool(value):
        raise ValueError(f"no event: {kind}")
    found = parse_member(value) if value else None
    return TopicEvent(EventKind(kind), parse_version(gen, seq), topic.decode(), peer, found)


def parse_version(gen: str, seq: str | int) -> Version:
    """Parse a topic's version."""
    seconds, _, fraction = gen.partition(".")
    return int(seconds or 0), int(fraction or 0), int(seq)


def parse_member(value: bytes) -> Member:
    """Parse what the store keeps of a member."""
    return Member(value[:NODE_CHARACTERS].decode(), value[NODE_CHARACTERS:] or None)


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Write ascending numbers as runs without gaps."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
