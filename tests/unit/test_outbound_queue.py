"""The queue in front of a transport."""

from __future__ import annotations

import pytest

from signaling.websocket.outbound_queue import OutboundQueue


class Transport:
    """Takes frames, and blocks its queue behind the last of ``room``."""

    def __init__(self, max_messages: int = 3, max_bytes: int = 100) -> None:
        self.written: list[bytes] = []
        self.room = 1_000
        self.receipts: list[str] = []
        self.queue: OutboundQueue[str] = OutboundQueue(self.write, self.receipts.append, max_messages, max_bytes)

    def write(self, frame: bytes) -> None:
        self.written.append(frame)
        self.room -= 1
        if not self.room:
            self.queue.block()


@pytest.fixture
def transport() -> Transport:
    return Transport()


def test_frames_go_straight_through(transport: Transport) -> None:
    assert transport.queue.offer(b"a")
    assert transport.written == [b"a"]


def test_a_blocked_queue_holds_back(transport: Transport) -> None:
    transport.queue.block()
    assert transport.queue.blocked
    assert transport.queue.offer(b"a")
    assert transport.written == []


def test_the_mark_counts_messages(transport: Transport) -> None:
    transport.queue.block()
    assert [transport.queue.offer(b"a") for _ in range(4)] == [True, True, True, False]


def test_the_mark_counts_bytes(transport: Transport) -> None:
    transport.queue.block()
    assert transport.queue.offer(b"a" * 60)
    assert not transport.queue.offer(b"b" * 41)
    assert transport.queue.offer(b"b" * 40)


def test_unblocking_writes_oldest_first(transport: Transport) -> None:
    transport.queue.block()
    for frame in (b"a", b"b"):
        transport.queue.offer(frame)
    transport.queue.unblock()
    transport.queue.offer(b"c")
    assert transport.written == [b"a", b"b", b"c"]


def test_what_waited_hands_its_receipt_over_once_it_is_written(transport: Transport) -> None:
    transport.queue.offer(b"a", "at once")
    transport.queue.block()
    transport.queue.offer(b"b", "later")
    transport.queue.answer(b"c")
    assert transport.receipts == []
    transport.queue.unblock()
    assert transport.receipts == ["later"]
    assert transport.queue.abandon() == []


def test_unblocking_stops_where_a_write_blocks_again(transport: Transport) -> None:
    transport.queue.block()
    for frame in (b"a", b"b", b"c"):
        transport.queue.offer(frame)
    transport.room = 2
    transport.queue.unblock()
    assert transport.written == [b"a", b"b"]
    assert transport.queue.blocked
    transport.queue.unblock()
    assert transport.written == [b"a", b"b", b"c"]


def test_room_comes_back_in_messages_and_bytes(transport: Transport) -> None:
    transport.queue.block()
    transport.queue.offer(b"a" * 100)
    transport.queue.unblock()
    transport.queue.block()
    assert transport.queue.offer(b"b" * 50)
    assert transport.queue.offer(b"b" * 50)


def test_answers_pass_the_mark_until_the_queue_is_overfull(transport: Transport) -> None:
    transport.queue.block()
    for _ in range(3):
        transport.queue.offer(b"a")
    assert not transport.queue.overfull
    for _ in range(3):
        transport.queue.answer(b"!")
    assert transport.queue.overfull
    transport.queue.unblock()
    assert not transport.queue.overfull
    assert transport.written == [b"a"] * 3 + [b"!"] * 3


def test_long_answers_fill_the_queue_too() -> None:
    transport = Transport(max_messages=1_000)
    transport.queue.block()
    transport.queue.answer(b"!" * 200)
    assert transport.queue.overfull


def test_abandoning_returns_the_receipts_of_what_was_not_written(transport: Transport) -> None:
    transport.room = 1
    transport.queue.offer(b"a", "written")
    transport.queue.offer(b"b", "first")
    transport.queue.answer(b"c")
    transport.queue.offer(b"d", "second")
    assert transport.queue.abandon() == ["first", "second"]
    assert transport.queue.abandon() == []
