"""Announces the events of topics to their members: at once, or in turns if there are many events.

An event in a small topic is written at once. If thousands of peers join or leave together, each event is only appended
to its topic's backlog, and the members get the whole backlog in few large writes, a few members in each pass of the
reactor. A member that leaves meanwhile is skipped, so a topic that all peers leave costs next to nothing.

Every member gets the events since it joined, in their order, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from signaling.admission.rate_limit import TokenBucket
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler

# How many offers may be made at once, and how fast that allowance recovers: an offer takes about 5 us.
_OFFERS_AT_ONCE = 256
_OFFERS_PER_SECOND = 2_000
# A block adds at most this much to what a transport buffers when it pauses.
_BLOCK_BYTES = 16_384
_BLOCKS_PER_TURN = 64
_TURNS_PER_PASS = 4
# By how much a turn may grow, if events come faster than they are delivered.
_FASTEST = 8
# With so many events in a topic's backlog, further updates of its peers wait for a turn: a peer gets what its own
# update comes behind, and that must be little.
_FEW_EVENTS = 64
# In place of an update that a later one of the same peer replaces: else peers that change their metadata all the time
# could make a backlog grow without bound.
_SUPERSEDED = b""


class Block(NamedTuple):
    """Events that are written in one piece.

    Args:
        events: a frame for each, oldest first.
        data: the frames, joined.
    """

    events: Sequence[bytes]
    data: bytes


class Member(Protocol):
    """What the announcer needs of a member of a topic."""

    @property
    def topic(self) -> Audience | None:
        """The topic that the member is in; None after it left."""

    def offer(self, frame: bytes) -> bool:
        """Take one event; False if it was refused."""

    def take_block(self, block: Block) -> int:
        """Take events; returns how many were refused."""


class Audience(Protocol):
    """What the announcer needs of a topic; no two are equal."""

    def __iter__(self) -> Iterator[Member]:
        """Iterate over the members as they are now."""

    def __len__(self) -> int:
        """Return how many members there are."""

    def __hash__(self) -> int:
        """Return a hash that never changes."""


class _Backlog:
    """The events of one topic that members have not received yet, and the pass over its members that delivers them.

    Attributes:
        events: a frame for each, oldest first.
        pace: how many times as much as usual a turn delivers. It doubles while each pass has more to deliver than the
            one before: otherwise passes would take longer and longer, and events would be more and more delayed.
    """

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.pace = 1
        # How many of the events each member has received, or must not receive; 0 if it is missing here.
        self._received: dict[Member, int] = {}
        self._pass: Iterator[Member] | None = None
        # How many events this pass delivers; events that happen meanwhile are for the next one.
        self._length = 0
        self._blocks: list[Block] = []
        # The latest event about the metadata of each peer, by its place among the events.
        self._updates: dict[str, int] = {}

    def append(self, event: bytes, updated: str | None) -> None:
        """Append an event; it takes the place of an earlier update of the same peer for those who have not received it.

        Args:
            updated: the peer whose metadata the event replaces; None for any other event.
        """
        if updated is not None:
            former = self._updates.get(updated)
            if former is not None:
                self.events[former] = _SUPERSEDED
            self._updates[updated] = len(self.events)
        self.events.append(event)

    def skip(self, member: Member) -> None:
        """Do not deliver the events so far to ``member``."""
        self._received[member] = len(self.events)

    def take(self, member: Member) -> list[Block]:
        """Return all events that ``member`` has not received yet, as received."""
        received = self._received.get(member, 0)
        self.skip(member)
        return self._blocks_of(received, len(self.events))

    def _blocks_of(self, first: int, end: int) -> list[Block]:
        events = self.events[first:end]
        return _blocks([event for event in events if event] if self._updates else events)

    def deliver(self, topic: Audience, room: float, on_dropped: Callable[[int], None]) -> float:
        """Continue the pass over the members, or begin one: deliver to each the events that it has not received.

        At the end of a pass the events that all members have received are deleted.

        Args:
            topic: whose backlog this is.
            room: how many blocks to deliver at the usual pace.
            on_dropped: called with how many events a member refused.

        Returns:
            How much of ``room`` that took.
        """
        if self._pass is None:
            self._begin_pass(topic)
        assert self._pass is not None
        received, length, taken = self._received, self._length, 0.0
        cost = len(self._blocks) / self.pace
        for member in self._pass:
            before = received.get(member, 0)
            if member.topic is topic and before < length:
                received[member] = length
                for block in self._blocks_of(before, length) if before else self._blocks:
                    refused = member.take_block(block)
                    if refused:
                        on_dropped(refused)
                taken += cost
                if taken >= room:
                    return taken
        self._end_pass()
        return taken

    def _begin_pass(self, topic: Audience) -> None:
        self._pass = iter(topic)
        self._length = len(self.events)
        before, self._blocks = len(self._blocks), self._blocks_of(0, self._length)
        if before and len(self._blocks) > before:
            self.pace = min(2 * self.pace, _FASTEST)
        elif 2 * len(self._blocks) < before:
            self.pace = max(1, self.pace // 2)

    def _end_pass(self) -> None:
        self._pass = None
        if self._length == len(self.events):
            self.events, self._received, self._updates = [], {}, {}
            return
        del self.events[: self._length]
        self._received = {
            member: received - self._length for member, received in self._received.items() if received > self._length
        }
        self._updates = {peer: at - self._length for peer, at in self._updates.items() if at >= self._length}


class Announcer:
    """Announces the events of one server's topics.

    Args:
        clock: returns the time, and schedules turns.
        on_dropped: called with how many events were refused, by members whose queues are full or that are closing.
        offers_at_once: how many offers may be made at once, before other events of the reactor are handled.

    Attributes:
        backlogs: of the topics with events that members have not received yet.
    """

    def __init__(
        self, clock: Clock, on_dropped: Callable[[int], None], *, offers_at_once: int = _OFFERS_AT_ONCE
    ) -> None:
        self._clock = clock
        self._on_dropped = on_dropped
        self._at_once = TokenBucket(_OFFERS_PER_SECOND, offers_at_once)
        self.backlogs: dict[Audience, _Backlog] = {}
        # The updates that wait for a turn of their topic, by peer, oldest first.
        self._updates: dict[Audience, dict[str, Callable[[], None]]] = {}
        self._turns: FairScheduler[Audience] = FairScheduler(clock, _TURNS_PER_PASS, self._take_turn)

    def announce(
        self, topic: Audience, event: bytes, exclude: Member | None = None, updated: str | None = None
    ) -> None:
        """Announce an event to the members of a topic.

        Args:
            event: its frame.
            exclude: the member that does not get the event, because it joined by it, or has got it; None for any other
                event.
            updated: the peer whose metadata the event replaces; None for any other event.
        """
        backlog = self.backlogs.get(topic)
        if backlog is None:
            now = self._clock.seconds()
            if self._at_once.available(now) >= len(topic):
                self._at_once.take(now, len(topic))
                for member in topic:
                    if member is not exclude and not member.offer(event):
                        self._on_dropped(1)
                return
            backlog = self.backlogs[topic] = _Backlog()
            self._turns.add(topic)
        backlog.append(event, updated)
        if exclude is not None:
            backlog.skip(exclude)

    def request_update(self, topic: Audience, peer: str, update: Callable[[], None]) -> bool:
        """Call ``update``, which may announce one: at once, or when the topic has few events to deliver.

        Returns:
            False if an earlier update of the peer waits: this one is not called.
        """
        waiting = self._updates.get(topic)
        if waiting is None:
            backlog = self.backlogs.get(topic)
            if backlog is None or len(backlog.events) < _FEW_EVENTS:
                update()
                return True
            waiting = self._updates[topic] = {}
        if peer in waiting:
            return False
        waiting[peer] = update
        return True

    def skip(self, topic: Audience, member: Member) -> None:
        """Do not deliver the events so far to a member whose ``peer-list`` contains their effect."""
        backlog = self.backlogs.get(topic)
        if backlog is not None:
            backlog.skip(member)

    def catch_up(self, topic: Audience, member: Member) -> None:
        """Deliver the events so far to a member at once, ahead of a relay: its sender may have just joined."""
        backlog = self.backlogs.get(topic)
        if backlog is not None:
            self._on_dropped(sum(map(member.take_block, backlog.take(member))))

    def forget(self, topic: Audience) -> None:
        """Delete the events of a topic that has no members any more."""
        self._updates.pop(topic, None)
        if self.backlogs.pop(topic, None) is not None:
            self._turns.remove(topic)

    def _take_turn(self, topic: Audience) -> None:
        room, next_topic = float(_BLOCKS_PER_TURN), topic
        while True:
            room -= max(1.0, self._deliver_backlog(next_topic, room))
            following = self._turns.pop() if room > 0 else None
            if following is None:
                return
            # Most topics are small: thousands of them share turns.
            next_topic = following

    def _deliver_backlog(self, topic: Audience, room: float) -> float:
        """Continue with a topic's backlog; returns how much of ``room`` that took, in blocks at the usual pace."""
        backlog = self.backlogs[topic]
        taken = backlog.deliver(topic, room, self._on_dropped)
        self._call_updates(topic, _FEW_EVENTS - len(backlog.events))
        if self.backlogs.get(topic) is not backlog:
            # An observer of the updates has closed the topic.
            return taken
        # The store may decide an update later: that announces nothing yet.
        if backlog.events or topic in self._updates:
            self._turns.add(topic)
        else:
            del self.backlogs[topic]
        return taken

    def _call_updates(self, topic: Audience, most: int) -> None:
        waiting = self._updates.get(topic, {})
        for peer in list(islice(waiting, max(0, most))):
            waiting.pop(peer)()
        if not waiting:
            self._updates.pop(topic, None)


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
