"""The states of a node's membership: every transition of the table happens, and no other one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from twisted.internet.task import Clock

from signaling.backplane.membership import TRANSITIONS, Membership, Signal, State
from signaling.backplane.messages import HeartbeatEcho
from signaling.backplane.store import Alive, Evicted


class FakeStore:
    """A store whose replies a test gives; it starts with no reply."""

    def __init__(self) -> None:
        self.node = "n" * 16
        self.replies = 0
        self.listener: Any = None
        self.waiting: list[tuple[int, Callable[[Any], None]]] = []
        self.connects = 0

    def connect(self, listener: Any) -> None:
        self.listener, self.waiting = listener, []
        self.connects += 1

    def disconnect(self) -> None:
        self.waiting = []

    def rename(self, node: str) -> None:
        self.node = node

    def heartbeat(self, number: int, *, registers: bool, done: Callable[[Any], None]) -> None:
        self.waiting.append((number, done))

    def reply(self, evicted: bool = False) -> None:
        number, done = self.waiting.pop(0)
        self.replies += 1
        done(Evicted() if evicted else Alive(number - 1, 0, {self.node: b"%d" % number}, []))


class FakeNode:
    """Records calls."""

    expected_nodes = ()

    def __init__(self) -> None:
        self.calls: list[str] = []

    def registered(self, topics: Iterable[str]) -> None:
        self.calls.append("registered")

    def lost(self) -> None:
        self.calls.append("lost")

    def renamed(self) -> None:
        self.calls.append("renamed")

    def received(self, data: bytes) -> None: ...

    def events_missed(self) -> None: ...

    def store_lost_data(self) -> None: ...


class Harness:
    """A membership, and what brings it into each state and out of it."""

    def __init__(self) -> None:
        self.store, self.node, self.clock = FakeStore(), FakeNode(), Clock()
        args: Any = (self.store, self.clock, lambda: "m" * 16, self.node, None, lambda: 0.0)
        self.membership = Membership(*args)

    def give(self, signal: Signal) -> None:
        actions: dict[Signal, Callable[[], None]] = {
            Signal.STARTED: self.membership.start,
            Signal.CONNECTED: self.membership.connected,
            Signal.CONFIRMED: self._confirm,
            Signal.SILENT: self._be_silent,
            Signal.DISCONNECTED: lambda: self.membership.disconnected("it was lost"),
            Signal.EVICTED: lambda: self.store.reply(evicted=True),
            Signal.STOPPED: self.membership.stop,
        }
        actions[signal]()

    def _confirm(self) -> None:
        number, _ = self.store.waiting[0]
        self.membership.received(b"heartbeat")
        self.membership.echoed(HeartbeatEcho(number, 0))
        self.store.reply()

    def _be_silent(self) -> None:
        for _ in range(4):
            self.clock.advance(1)
            self.membership.check()


WAYS = {
    State.STOPPED: [],
    State.CONNECTING: [Signal.STARTED],
    State.REGISTERING: [Signal.STARTED, Signal.CONNECTED],
    State.REGISTERED: [Signal.STARTED, Signal.CONNECTED, Signal.CONFIRMED],
    State.UNREACHABLE: [Signal.STARTED, Signal.DISCONNECTED],
    State.RECOVERING: [Signal.STARTED, Signal.DISCONNECTED, Signal.CONNECTED],
}


def arrive(state: State) -> Harness:
    harness = Harness()
    for signal in WAYS[state]:
        harness.give(signal)
    if state is State.REGISTERED:
        harness.membership.check()
    assert harness.membership.state is state
    return harness


@pytest.mark.parametrize(("state", "signal"), TRANSITIONS, ids=str)
def test_every_transition_of_the_table_happens(state: State, signal: Signal) -> None:
    harness = arrive(state)
    harness.give(signal)
    assert harness.membership.state is TRANSITIONS[state, signal]


@pytest.mark.parametrize("state", State)
def test_no_other_transition_happens(state: State) -> None:
    # Silence is counted only while there is a connection.
    for signal in set(Signal) - {signal for known, signal in TRANSITIONS if known is state} - {Signal.SILENT}:
        harness = arrive(state)
        with pytest.raises((KeyError, IndexError)):
            harness.give(signal)
        assert harness.membership.state is state


def test_an_outage_is_reported_once_and_its_end_too() -> None:
    harness = arrive(State.REGISTERED)
    for signal in (Signal.SILENT, Signal.DISCONNECTED, Signal.CONNECTED, Signal.CONFIRMED):
        harness.give(signal)
    assert harness.node.calls == ["registered", "lost", "registered"]


def test_a_connection_that_cannot_be_made_is_an_outage_after_3_s() -> None:
    harness = arrive(State.CONNECTING)
    harness.clock.advance(2.9)
    harness.membership.check()
    assert not harness.membership.is_outage
    harness.clock.advance(0.1)
    harness.membership.check()
    assert harness.membership.is_outage


def test_a_node_that_was_evicted_has_no_lease_and_another_id() -> None:
    harness = arrive(State.REGISTERED)
    assert harness.membership.has_lease
    harness.give(Signal.EVICTED)
    assert not harness.membership.has_lease
    assert (harness.store.node, harness.store.connects) == ("m" * 16, 2)


def test_a_lease_ends_before_the_other_nodes_evict() -> None:
    harness = arrive(State.REGISTERED)
    harness.clock.advance(7.4)
    assert harness.membership.has_lease
    harness.clock.advance(0.2)
    assert not harness.membership.has_lease
