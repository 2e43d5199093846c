"""The channel between processes, over a real pair of sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from signaling.workers.ipc import MAX_MESSAGE_BYTES, Channel, PartReceiver, PartSender


class Watched:
    """A reactor that only remembers what it is told to watch."""

    def __init__(self) -> None:
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.addReader, self.removeReader = self.readers.add, self.readers.discard
        self.addWriter, self.removeWriter = self.writers.add, self.writers.discard


class End:
    """One end, and what was heard there."""

    def __init__(self, end: socket.socket) -> None:
        self.heard: list[tuple[bytes, bool]] = []
        self.descriptors: list[int] = []
        self.lost = self.writable = 0
        self.broken = False
        self.reactor = Watched()
        self.channel = Channel(self.reactor, end, self)

    def message_received(self, message: bytes, descriptor: int | None) -> None:
        if self.broken:
            raise ValueError(message)
        self.heard.append((message, descriptor is not None))
        if descriptor is not None:
            self.descriptors.append(descriptor)

    def channel_writable(self) -> None:
        self.writable += 1

    def channel_lost(self) -> None:
        self.lost += 1


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    one, other = map(End, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield one, other
    for end in (one, other):
        end.channel.close()
        for descriptor in end.descriptors:
            os.close(descriptor)


def read_all(end: End) -> None:
    """Read pass after pass until nothing is there."""
    before = -1
    while len(end.heard) > before:
        before = len(end.heard)
        end.channel.doRead()


def fill(end: End) -> int:
    """Send until the other end takes no more; returns how many messages it took."""
    count = 0
    while end.channel.send(b"%d" % count):
        count += 1
    return count


def test_messages_arrive_whole_and_in_order(ends: tuple[End, End]) -> None:
    one, other = ends
    for message in (b"a", b"b" * MAX_MESSAGE_BYTES, b"c"):
        assert one.channel.send(message)
    other.channel.doRead()
    assert [message for message, _ in other.heard] == [b"a", b"b" * MAX_MESSAGE_BYTES, b"c"]


def test_a_descriptor_arrives_with_its_message_and_is_not_inherited(ends: tuple[End, End]) -> None:
    one, other = ends
    reading, writing = os.pipe()
    one.channel.send(b"here", writing)
    other.channel.doRead()
    assert other.heard == [(b"here", True)]
    (arrived,) = other.descriptors
    assert not os.get_inheritable(arrived)
    os.write(arrived, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)


def test_a_full_channel_refuses_and_tells_when_it_takes_again(ends: tuple[End, End]) -> None:
    one, other = ends
    count = fill(one)
    assert one.channel in one.reactor.writers
    read_all(other)
    one.channel.doWrite()
    assert one.writable == 1
    assert one.channel not in one.reactor.writers
    assert one.channel.send(b"last")
    read_all(other)
    assert [message for message, _ in other.heard] == [*(b"%d" % number for number in range(count)), b"last"]


def test_what_is_posted_waits_and_nothing_overtakes_it(ends: tuple[End, End]) -> None:
    one, other = ends
    fill(one)
    one.channel.post(b"posted")
    assert not one.channel.send(b"overtaking")
    read_all(other)
    one.channel.doWrite()
    read_all(other)
    assert other.heard[-1] == (b"posted", False)
    assert not one.channel.waiting


def test_an_end_that_is_gone_is_told_once(ends: tuple[End, End]) -> None:
    one, other = ends
    one.channel.close()
    reason = other.channel.doRead()
    assert reason is not None
    other.channel.connectionLost(reason)
    other.channel.connectionLost(reason)
    assert (one.lost, other.lost) == (0, 1)
    assert not other.channel.send(b"late")
    other.channel.post(b"late")
    assert not other.reactor.readers | other.reactor.writers


def test_what_was_sent_before_the_end_is_heard(ends: tuple[End, End]) -> None:
    one, other = ends
    one.channel.send(b"goodbye")
    one.channel.close()
    assert other.channel.doRead() is not None
    assert other.heard == [(b"goodbye", False)]


def test_a_message_that_raises_costs_no_other(ends: tuple[End, End]) -> None:
    one, other = ends
    other.broken = True
    one.channel.send(b"bad")
    other.channel.doRead()
    other.broken = False
    one.channel.send(b"good")
    assert other.channel.doRead() is None
    assert other.heard == [(b"good", False)]


def test_a_message_that_is_too_long_is_an_error(ends: tuple[End, End]) -> None:
    with pytest.raises(ValueError, match="65537"):
        ends[0].channel.send(b"x" * (MAX_MESSAGE_BYTES + 1))


# What may be longer than a message


class Receiver(End):
    """An end that puts together what a ``PartSender`` sends."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self.parts = PartReceiver()
        self.whole: list[tuple[int, bytes]] = []
        self.others: list[bytes] = []

    def message_received(self, message: bytes, descriptor: int | None) -> None:
        super().message_received(message, descriptor)
        if message[:1] == b"P":
            self.whole += filter(None, [self.parts.receive(message[1:])])
        else:
            self.others.append(message)


class Sender(End):
    """An end with a ``PartSender``."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self.parts = PartSender(b"P", self.channel.send)

    def channel_writable(self) -> None:
        self.parts.send_more()


@pytest.fixture
def parts() -> Iterator[tuple[Sender, Receiver]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender, receiver = Sender(one), Receiver(other)
    yield sender, receiver
    sender.channel.close()
    receiver.channel.close()


def move(sender: Sender, receiver: Receiver) -> None:
    """Let everything be sent and read."""
    read_all(receiver)
    while sender.channel in sender.reactor.writers:
        sender.channel.doWrite()
        read_all(receiver)


@pytest.mark.parametrize("size", [0, 1, MAX_MESSAGE_BYTES - 64, MAX_MESSAGE_BYTES - 63, 5_000_000])
def test_what_is_longer_than_a_message_arrives_whole_and_in_order(parts: tuple[Sender, Receiver], size: int) -> None:
    sender, receiver = parts
    sent = [(1, b"first"), (2, os.urandom(size)), (2**32, b"last")]
    for number, data in sent:
        sender.parts.send(number, data)
    move(sender, receiver)
    assert receiver.whole == sent


def test_other_messages_go_between_the_parts(parts: tuple[Sender, Receiver]) -> None:
    sender, receiver = parts
    sender.parts.send(1, bytes(50_000_000))
    sender.channel.post(b"heartbeat")
    read_all(receiver)
    sender.channel.doWrite()
    read_all(receiver)
    assert (receiver.others, receiver.whole) == ([b"heartbeat"], [])
    move(sender, receiver)
    assert [number for number, _ in receiver.whole] == [1]


def test_the_parts_that_wait_are_forgotten_with_the_other_end(parts: tuple[Sender, Receiver]) -> None:
    sender, receiver = parts
    sender.parts.send(1, bytes(50_000_000))
    sender.parts.clear()
    sender.channel.doWrite()
    read_all(receiver)
    assert receiver.whole == []
