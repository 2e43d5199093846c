"""Announces the events of topics to their members, in turns if there is much to say.

A single event in a small topic is written at once. If thousands of peers join or leave together, each event is only
appended to its topic's backlog, and the members get the whole backlog in few large writes, some members in each pass of
the reactor. A member that leaves meanwhile is skipped, so a topic whose peers all leave costs next to nothing.

Every member gets its events in the order in which they happened: those since it joined, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from signaling.admission.rate_limit import TokenBucket
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler

# What may be announced at once; an offer takes some 5 us. Few come back meanwhile, for a pass may take long.
_OFFERS_AT_ONCE = 256
_OFFERS_PER_SECOND = 2_000
# A block adds no more than this to what a transport holds when it pauses.
_BLOCK_BYTES = 16_384
_BLOCKS_PER_TURN = 64
_TURNS_PER_PASS = 4
# How many times as much a turn takes, at the most, of a topic whose events come faster than they are handed out.
_FASTEST = 8


class Block(NamedTuple):
    """Events that are written together.

    Args:
        events: a frame for each, oldest first.
        data: all of them, joined.
    """

    events: Sequence[bytes]
    data: bytes


class Member(Protocol):
    """A member of a topic, as the announcer sees it."""

    @property
    def topic(self) -> Audience | None:
        """The topic that it is in; None once it left."""

    def offer(self, frame: bytes) -> bool:
        """Take one event, or refuse it."""

    def take_block(self, block: Block) -> int:
        """Take events; returns how many were refused."""


class Audience(Protocol):
    """A topic, as the announcer sees it; each is equal to itself alone."""

    def __iter__(self) -> Iterator[Member]:
        """Walk over the members as they are now."""

    def __len__(self) -> int:
        """Return how many members there are."""

    def __hash__(self) -> int:
        """Return a hash that never changes."""


class _Backlog:
    """The events of one topic that members have yet to get, and the walk over its members that hands them out.

    Attributes:
        events: a frame for each, oldest first.
        pace: how many times as much as usual a turn hands out. It doubles while each walk has more to hand out than the
            one before: walks would become longer and longer, and events later and later.
    """

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.pace = 1
        # How many of the events each member got, or must not get; 0 for all others.
        self._passed: dict[Member, int] = {}
        self._walk: Iterator[Member] | None = None
        # How many events this walk hands out; what happens meanwhile is for the next one.
        self._length = 0
        self._blocks: list[Block] = []

    def skip(self, member: Member) -> None:
        """Keep all events so far from ``member``."""
        self._passed[member] = len(self.events)

    def take(self, member: Member) -> list[Block]:
        """Return all events that ``member`` has yet to get."""
        passed = self._passed.get(member, 0)
        self.skip(member)
        return _blocks(self.events[passed:])

    def walk_on(self, topic: Audience) -> Iterator[tuple[Member, list[Block]]]:
        """Go on with the walk, or begin one: to each member, with what it has yet to get.

        At the end of the walk the events that all members have got are forgotten.
        """
        if self._walk is None:
            self._walk = iter(topic)
            self._length = len(self.events)
            before, self._blocks = len(self._blocks), _blocks(self.events)
            if before and len(self._blocks) > before:
                self.pace = min(2 * self.pace, _FASTEST)
            elif 2 * len(self._blocks) < before:
                self.pace = max(1, self.pace // 2)
        for member in self._walk:
            passed = self._passed.get(member, 0)
            if member.topic is topic and passed < self._length:
                self._passed[member] = self._length
                yield member, _blocks(self.events[passed : self._length]) if passed else self._blocks
        self._walk = None
        del self.events[: self._length]
        self._passed = {
            member: passed - self._length for member, passed in self._passed.items() if passed > self._length
        }


class Announcer:
    """Announces the events of one server's topics.

    Args:
        clock: tells the time, and calls for the next pass of the reactor.
        on_dropped: called with how many events members refused: their queues are full, or they are closing.
        offers_at_once: how many members may get an event before the reactor looks after everyone else.
    """

    def __init__(
        self, clock: Clock, on_dropped: Callable[[int], None], *, offers_at_once: int = _OFFERS_AT_ONCE
    ) -> None:
        self._clock = clock
        self._on_dropped = on_dropped
        self._at_once = TokenBucket(_OFFERS_PER_SECOND, offers_at_once)
        self._backlogs: dict[Audience, _Backlog] = {}
        self._turns: FairScheduler[Audience] = FairScheduler(clock, _TURNS_PER_PASS, self._take_turn)

    def announce(self, topic: Audience, event: bytes, newcomer: Member | None = None) -> None:
        """Announce an event to the members of a topic.

        Args:
            event: its frame.
            newcomer: the member whose joining it is, and which does not get it; None if somebody else's.
        """
        backlog = self._backlogs.get(topic)
        if backlog is None:
            now = self._clock.seconds()
            if self._at_once.available(now) >= len(topic):
                self._at_once.take(now, len(topic))
                self._on_dropped(sum(not member.offer(event) for member in topic if member is not newcomer))
                return
            backlog = self._backlogs[topic] = _Backlog()
            self._turns.add(topic)
        backlog.events.append(event)
        if newcomer is not None:
            backlog.skip(newcomer)

    def skip(self, topic: Audience, member: Member) -> None:
        """Keep the events so far from a member whose ``peer-list`` tells of them."""
        backlog = self._backlogs.get(topic)
        if backlog is not None:
            backlog.skip(member)

    def catch_up(self, topic: Audience, member: Member) -> None:
        """Give a member the events so far at once, ahead of a relay: its sender may have joined a moment ago."""
        backlog = self._backlogs.get(topic)
        if backlog is not None:
            self._give(member, backlog.take(member))

    def forget(self, topic: Audience) -> None:
        """Forget the events of a topic that has no members any more."""
        if self._backlogs.pop(topic, None) is not None:
            self._turns.remove(topic)

    def _take_turn(self, topic: Audience) -> None:
        room, next_topic = float(_BLOCKS_PER_TURN), topic
        while True:
            room -= max(1.0, self._hand_out(next_topic, room))
            following = self._turns.pop() if room > 0 else None
            if following is None:
                return
            # Most topics are small: thousands of them share turns.
            next_topic = following

    def _hand_out(self, topic: Audience, room: float) -> float:
        """Go on with the walk of a topic; returns how much of ``room`` that took, in blocks at the usual pace."""
        backlog, taken = self._backlogs[topic], 0.0
        for member, blocks in backlog.walk_on(topic):
            self._give(member, blocks)
            taken += len(blocks) / backlog.pace
            if taken >= room:
                break
        if backlog.events:
            self._turns.add(topic)
        else:
            del self._backlogs[topic]
        return taken

    def _give(self, member: Member, blocks: Sequence[Block]) -> None:
        self._on_dropped(sum(map(member.take_block, blocks)))


def _blocks(events: Sequence[bytes]) -> list[Block]:
    blocks: list[Block] = []
    first = size = 0
    for at, event in enumerate(events):
        if size and size + len(event) > _BLOCK_BYTES:
            blocks.append(Block(events[first:at], b"".join(events[first:at])))
            first, size = at, 0
        size += len(event)
    if size:
        blocks.append(Block(events[first:], b"".join(events[first:])))
    return blocks
