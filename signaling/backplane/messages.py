"""What nodes tell each other on their channels: events of topics, from the store, and messages of their own.

An event is a line of text with what may be anything behind it, as ``lua/prelude.lua`` writes it; a message is
MessagePack, which never starts with a letter.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

NODE_CHARACTERS = 16

Version = tuple[int, int, int]
"""When a topic was made (seconds and microseconds of the store's clock), and how many events it has had since."""


class Kind(StrEnum):
    """What happened to a peer."""

    JOINED = "joined"
    LEFT = "left"
    MOVED = "moved"
    """It came back to another node."""


class Other(NamedTuple):
    """A member of a topic, on some node."""

    node: str
    metadata: bytes | None


class Event(NamedTuple):
    """Something that happened in a topic.

    Args:
        other: of the peer; None where it left.
    """

    kind: Kind
    version: Version
    topic: str
    peer: str
    other: Other | None


class Beat(NamedTuple):
    """A beat of this node, as the store heard it.

    Args:
        number: of the beat.
        events: how many the store had sent to this node before, and another version of this server not counted.
    """

    number: int
    events: int


class Relay(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One relay.

    Args:
        number: counted from 1 for each origin and target node.
        frame: what the target's connection is written.
    """

    number: int
    topic: str
    to: str
    sender: str
    frame: bytes


class Relays(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Relays for peers of the node that hears this, in order.

    Args:
        origin: whose numbers they have.
        reply_to: the node that waits for their outcomes.
        low: all smaller numbers are settled.
        expires: by the store's clock, in milliseconds; afterwards they must not be delivered.
    """

    origin: str
    reply_to: str
    low: int
    expires: int
    relays: list[Relay]


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """Asks what became of relays; whatever is not greater than ``high`` and has not come yet must not be delivered."""

    origin: str
    reply_to: str
    high: int
    numbers: list[int]


class Outcomes(msgspec.Struct, frozen=True, array_like=True, tag="o"):
    """Tells what became of relays.

    Args:
        node: that was to deliver them.
        delivered: the first and the last number of each run.
        failed: numbers, and the code of each.
        held: numbers of those that wait in their target's queue, and have no end yet.
    """

    origin: str
    node: str
    delivered: list[tuple[int, int]]
    failed: list[tuple[int, str]]
    held: list[int]


class Claim(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """Asks the node that has a peer to let it go on at another node.

    Args:
        number: comes back in the answer.
        proof: for that node to check.
    """

    reply_to: str
    number: int
    topic: str
    peer: str
    proof: bytes


class Session(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """Answers a claim.

    Args:
        session: of the peer; None where it stays.
        origin: under which the outcomes of both nodes' open relays are told.
        waiting: the numbers of the relays that the session has and nobody has written yet.
    """

    number: int
    session: bytes | None
    origin: str = ""
    waiting: list[int] = []


Message = Relays | Ask | Outcomes | Claim | Session

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
_LETTER = b"a"[0]


def decode(data: bytes) -> Event | Beat | Message:
    """Decode what came on a channel.

    Raises:
        ValueError: where it is nothing of ours.
    """
    try:
        if data.startswith(b"beat "):
            _, number, events = data.split(b" ")
            return Beat(int(number), int(events))
        if _LETTER <= data[0] < _LETTER + 26:
            return _event(data)
        message: Message = _decode(data)
        return message
    except (IndexError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(str(error)) from None


def _event(data: bytes) -> Event:
    head, _, rest = data.partition(b"\n")
    kind, gen, seq, peer, size = head.decode().split(" ")
    topic, value = rest[: int(size)], rest[int(size) :]
    if len(topic) != int(size) or (kind == Kind.LEFT) == bool(value):
        raise ValueError(f"no event: {kind}")
    other = member(value) if value else None
    return Event(Kind(kind), version(gen, seq), topic.decode(), peer, other)


def version(gen: str, seq: str | int) -> Version:
    """Read a topic's version."""
    seconds, _, fraction = gen.partition(".")
    return int(seconds or 0), int(fraction or 0), int(seq)


def member(value: bytes) -> Other:
    """Read what the store keeps of a member."""
    return Other(value[:NODE_CHARACTERS].decode(), value[NODE_CHARACTERS:] or None)


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Write ascending numbers as runs without gaps."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
