"""The events of a topic: each member gets those since it joined, in order, and no pass of the reactor takes long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from signaling.core.announcer import Announcer, Block
from tests.harness.memory_transport import PassingClock

FRAME_BYTES = 60


class Room:
    """A topic that members are in."""

    def __init__(self) -> None:
        self.members: dict[Member, None] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self.members))

    def __len__(self) -> int:
        return len(self.members)

    def add(self) -> Member:
        member = Member(self)
        self.members[member] = None
        return member

    def remove(self, member: Member) -> None:
        del self.members[member]
        member.topic = None


class Member:
    """Keeps what it gets, up to a mark if it is blocked."""

    def __init__(self, room: Room) -> None:
        self.topic: Room | None = room
        self.got: list[bytes] = []
        self.writes = 0

    def offer(self, frame: bytes) -> bool:
        self.writes += 1
        self.got.append(frame)
        return True

    def take_block(self, block: Block) -> int:
        assert b"".join(block.events) == block.data
        self.writes += 1
        self.got += block.events
        return 0


def frame(number: int) -> bytes:
    return f"{number:{FRAME_BYTES}d}".encode()


@pytest.fixture
def clock() -> PassingClock:
    return PassingClock()


def announcer(clock: PassingClock, offers_at_once: int = 0) -> Announcer:
    return Announcer(clock, lambda dropped: None, offers_at_once=offers_at_once)


def passes(clock: PassingClock) -> Iterator[None]:
    """Let the reactor go through passes until there is nothing to do at once."""
    while any(call.getTime() <= clock.seconds() for call in clock.getDelayedCalls()):
        clock.advance(0)
        yield


def test_an_event_of_a_small_topic_is_announced_at_once(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock, 10)
    members = [room.add() for _ in range(10)]
    one.announce(room, frame(1))
    assert [member.got for member in members] == [[frame(1)]] * 10
    assert not clock.getDelayedCalls()


def test_a_member_that_joins_does_not_get_its_own_event(clock: PassingClock) -> None:
    for at_once in (0, 10):
        room, one = Room(), announcer(clock, at_once)
        member, joining = room.add(), room.add()
        one.announce(room, frame(1), joining)
        one.announce(room, frame(2))
        for _ in passes(clock):
            pass
        assert member.got == [frame(1), frame(2)]
        assert joining.got == [frame(2)]


def test_what_is_too_much_for_one_moment_takes_turns(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock, 256)
    members = [room.add() for _ in range(2000)]
    for number in range(100):
        one.announce(room, frame(number))
    longest = so_far = 0
    for _ in passes(clock):
        writes = sum(member.writes for member in members)
        longest, so_far = max(longest, writes - so_far), writes
    assert all(member.got == [frame(number) for number in range(100)] for member in members)
    assert longest <= 256
    # Each got all of them in one piece.
    assert so_far == len(members)


def test_a_write_is_no_longer_than_a_queue_can_bear(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    member = room.add()
    for number in range(1000):
        one.announce(room, frame(number))
    for _ in passes(clock):
        pass
    assert member.got == [frame(number) for number in range(1000)]
    assert member.writes == -(-1000 // (16_384 // FRAME_BYTES))


def test_who_leaves_meanwhile_gets_nothing_more(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    members = [room.add() for _ in range(1000)]
    one.announce(room, frame(1))
    clock.advance(0)
    written = sum(member.writes for member in members)
    for member in members:
        room.remove(member)
    one.forget(room)
    assert not clock.getDelayedCalls()
    assert sum(member.writes for member in members) == written <= 256


def test_who_joins_between_events_gets_those_behind_it_alone(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    first = [room.add() for _ in range(300)]
    one.announce(room, frame(1))
    second = room.add()
    one.skip(room, second)
    one.announce(room, frame(2))
    # Now a walk is under way.
    clock.advance(0)
    third = room.add()
    one.skip(room, third)
    one.announce(room, frame(3))
    for _ in passes(clock):
        pass
    assert all(member.got == [frame(1), frame(2), frame(3)] for member in first)
    assert second.got == [frame(2), frame(3)]
    assert third.got == [frame(3)]


def test_who_catches_up_gets_everything_at_once_and_nothing_twice(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    members = [room.add() for _ in range(600)]
    one.announce(room, frame(1))
    one.announce(room, frame(2))
    one.catch_up(room, members[-1])
    assert members[-1].got == [frame(1), frame(2)]
    clock.advance(0)
    one.announce(room, frame(3))
    for member in members[::50]:
        one.catch_up(room, member)
        assert member.got == [frame(1), frame(2), frame(3)]
    for _ in passes(clock):
        pass
    assert all(member.got == [frame(1), frame(2), frame(3)] for member in members)


def test_topics_take_turns(clock: PassingClock) -> None:
    one = announcer(clock)
    rooms = [Room() for _ in range(8)]
    for room in rooms:
        for _ in range(500):
            room.add()
        one.announce(room, frame(1))
    small = Room()
    member = small.add()
    one.announce(small, frame(1))
    for number, _ in enumerate(passes(clock)):
        if member.got:
            assert number < 4
            break
    assert member.got


def test_thousands_of_small_topics_share_turns(clock: PassingClock) -> None:
    one = announcer(clock)
    members = []
    for _ in range(2000):
        room = Room()
        members.append(room.add())
        one.announce(room, frame(1))
    assert len(list(passes(clock))) < 20
    assert all(member.got == [frame(1)] for member in members)


def test_events_that_keep_coming_are_not_handed_out_later_and_later(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    members = [room.add() for _ in range(250)]
    behind = 0
    for number in range(600):
        # As when peers with much metadata come and go as fast as they can.
        for _ in range(8):
            one.announce(room, frame(number) * 30)
        clock.advance(0.01)
        behind = max(behind, 8 * (number + 1) - min(len(member.got) for member in members))
    assert behind < 200


def test_of_several_updates_of_a_peer_the_last_is_announced_in_its_place(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    members = [room.add() for _ in range(300)]
    for number, peer in enumerate([None, "a", "b", "a", None, "a", "b"]):
        one.announce(room, frame(number), updated=peer)
    for _ in passes(clock):
        pass
    assert all(member.got == [frame(number) for number in (0, 4, 5, 6)] for member in members)


def test_who_has_received_an_update_receives_the_next_one_too(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    members = [room.add() for _ in range(600)]
    one.announce(room, frame(1), updated="a")
    one.catch_up(room, members[-1])
    # Now a pass is under way.
    clock.advance(0)
    assert 0 < sum(bool(member.got) for member in members) < 600
    one.announce(room, frame(2), updated="a")
    late = room.add()
    one.skip(room, late)
    one.announce(room, frame(3), updated="a")
    one.announce(room, frame(4))
    for _ in passes(clock):
        pass
    assert {tuple(member.got) for member in members} == {(frame(1), frame(3), frame(4))}
    assert late.got == [frame(3), frame(4)]


def test_a_sender_that_has_its_answer_does_not_get_the_event_as_well(clock: PassingClock) -> None:
    for at_once in (0, 10):
        room, one = Room(), announcer(clock, at_once)
        member, sender = room.add(), room.add()
        one.announce(room, frame(1))
        one.catch_up(room, sender)
        one.announce(room, frame(2), sender, "a")
        one.announce(room, frame(3))
        for _ in passes(clock):
            pass
        assert member.got == [frame(1), frame(2), frame(3)]
        assert sender.got == [frame(1), frame(3)]


def test_peers_that_change_their_metadata_all_the_time_do_not_make_a_backlog_grow(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    members = [room.add() for _ in range(200)]
    for number in range(300):
        for peer in range(50):
            one.announce(room, frame(number) * 50, updated=str(peer))
        clock.advance(0.01)
    [backlog] = one.backlogs.values()
    assert len(set(backlog.events)) < 3 * 50
    assert len(backlog.events) < 50 * 100
    for _ in passes(clock):
        pass
    assert all(member.got[-1] == frame(299) * 50 for member in members)


def test_updates_wait_while_a_topic_has_much_to_deliver(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    members = [room.add() for _ in range(200)]
    called: list[int] = []

    def update(number: int) -> None:
        called.append(number)
        one.catch_up(room, members[number])
        one.announce(room, frame(number), exclude=members[number], updated=str(number))

    taken = [one.request_update(room, str(number), lambda number=number: update(number)) for number in range(200)]
    assert all(taken)
    assert called == list(range(64))
    assert not one.request_update(room, "199", lambda: called.append(-1))
    for _ in passes(clock):
        pass
    assert called == list(range(200))
    for number, member in enumerate(members):
        assert sorted(member.got) == [frame(other) for other in range(200) if other != number]
    assert not one.backlogs


def test_updates_of_a_topic_that_ends_are_forgotten(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    member = room.add()
    called: list[int] = []
    for number in range(65):
        one.announce(room, frame(number))
    assert one.request_update(room, "1", lambda: called.append(1))
    room.remove(member)
    one.forget(room)
    for _ in passes(clock):
        pass
    assert not called


def test_an_update_that_ends_its_topic_is_the_last(clock: PassingClock) -> None:
    room, one = Room(), announcer(clock)
    member = room.add()

    def end() -> None:
        room.remove(member)
        one.forget(room)

    for number in range(64):
        one.announce(room, frame(number))
    assert one.request_update(room, "1", end)
    for _ in passes(clock):
        pass
    assert not one.backlogs
