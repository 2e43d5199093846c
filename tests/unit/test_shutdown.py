"""The end of a server: its states, and what each call does in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from signaling.limits import Limits
from signaling.server.shutdown import TRANSITIONS, Shutdown, ShutdownState

TIMEOUT_SECONDS = 10.0


class FakeConnection:
    """Keeps what it was told; ends when the test says so, or at an abort."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self.codes: list[int] = []

    def close_for_shutdown(self, code: int) -> None:
        self.codes.append(code)

    def close_timed_out(self) -> None:
        self.end()

    def end(self) -> None:
        self._server.connections.remove(self)
        self._server.shutdown.connection_lost()


class ObservedShutdown(Shutdown):
    """Keeps every change of its state."""

    def __init__(self, *arguments: Any) -> None:
        self.changes: list[tuple[ShutdownState, ShutdownState]] = []
        super().__init__(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "state" and hasattr(self, "state"):
            self.changes.append((self.state, value))
        super().__setattr__(name, value)


class FakeServer:
    """A server with one connection, and with a backplane that stops when the test says so."""

    def __init__(self, spread_seconds: float = 0.0) -> None:
        self.clock = Clock()
        self.calls: list[str] = []
        self.stopped: Deferred[None] = Deferred()
        self.connections: list[FakeConnection] = []
        self.connection = FakeConnection(self)
        self.connections.append(self.connection)
        limits = Limits(shutdown_timeout_seconds=TIMEOUT_SECONDS, drain_spread_seconds=spread_seconds)
        self.shutdown = ObservedShutdown(self, self.clock, limits)

    def drain_started(self) -> Iterable[Callable[[], object]]:
        self.calls.append("drain started")
        return [lambda: self.calls.append("closed the rest")]

    def last_connection_lost(self) -> Deferred[None]:
        self.calls.append("last connection lost")
        return self.stopped

    def abort_rest(self) -> None:
        self.calls.append("aborted the rest")

    def lose_connection(self) -> None:
        if self.connections:
            self.connection.end()

    def stop_backplane(self) -> None:
        if "last connection lost" in self.calls and not self.stopped.called:
            self.stopped.callback(None)


EVENTS: dict[str, Callable[[FakeServer], object]] = {
    "restart": lambda server: server.shutdown.restart(),
    "become unready": lambda server: server.shutdown.become_unready(1.0),
    "drain": lambda server: server.shutdown.drain(),
    "lose the connection": FakeServer.lose_connection,
    "stop the backplane": FakeServer.stop_backplane,
    "abort": lambda server: server.shutdown.abort(),
    "time passes": lambda server: server.clock.advance(TIMEOUT_SECONDS),
}


@pytest.mark.unmeasured
def test_every_transition_of_the_table_happens_and_no_other() -> None:
    observed = set()
    for events in product(EVENTS, repeat=5):
        server = FakeServer()
        for event in events:
            EVENTS[event](server)
        observed.update(server.shutdown.changes)
    assert observed == {(before, after) for before, targets in TRANSITIONS.items() for after in targets}


def test_an_unready_server_still_lets_clients_join() -> None:
    shutdown = FakeServer().shutdown
    waited: list[None] = []
    shutdown.become_unready().addCallback(waited.append)
    assert waited == [None]
    assert shutdown.state is ShutdownState.UNREADY
    assert shutdown.unready
    assert not shutdown.draining


@pytest.mark.parametrize("how", ["time", "abort"])
def test_the_delay_before_a_drain_ends_with_its_time_or_by_an_abort(how: str) -> None:
    server = FakeServer()
    waited: list[None] = []
    server.shutdown.become_unready(3.0).addCallback(waited.append)
    server.clock.advance(2.9)
    assert waited == []
    EVENTS["time passes" if how == "time" else "abort"](server)
    assert waited == [None]
    assert not server.clock.getDelayedCalls()


def test_each_delay_before_a_drain_has_its_own_deferred() -> None:
    server = FakeServer()
    waited: list[str] = []
    server.shutdown.become_unready(3.0).addCallback(lambda _: waited.append("first"))
    server.shutdown.become_unready(5.0).addCallback(lambda _: waited.append("second"))
    server.clock.advance(3.0)
    assert waited == ["first"]
    server.clock.advance(2.0)
    assert waited == ["first", "second"]


def test_a_drain_ends_the_delays_before_it() -> None:
    server = FakeServer()
    delays = [server.shutdown.become_unready(seconds) for seconds in (3.0, 5.0)]
    for delay in delays:
        delay.addCallback(lambda _: server.shutdown.drain())
    server.shutdown.drain()
    assert all(delay.called for delay in delays)
    server.connection.end()
    server.stopped.callback(None)
    assert not server.clock.getDelayedCalls()


def test_a_drain_closes_connections_and_the_rest_then_stops_the_backplane() -> None:
    server = FakeServer()
    drained: list[None] = []
    server.shutdown.drain().addCallback(drained.append)
    assert server.connection.codes == [1001]
    assert server.calls == ["drain started", "closed the rest"]
    server.connection.end()
    assert server.calls[2:] == ["last connection lost"]
    assert server.shutdown.state is ShutdownState.DRAINING
    assert drained == []
    server.stopped.callback(None)
    assert server.shutdown.state is ShutdownState.STOPPED
    assert drained == [None]
    assert not server.clock.getDelayedCalls()


def test_a_server_counts_as_draining_until_it_is_started_again() -> None:
    server = FakeServer()
    server.shutdown.drain()
    assert server.shutdown.draining
    server.connection.end()
    server.stopped.callback(None)
    assert server.shutdown.draining
    server.shutdown.restart()
    assert not server.shutdown.draining


def test_with_a_spread_the_close_frame_is_1012_and_comes_within_it() -> None:
    server = FakeServer(spread_seconds=5.0)
    server.shutdown.drain()
    assert server.connection.codes == []
    server.clock.advance(5.0)
    assert server.connection.codes == [1012]


def test_a_connection_that_does_not_end_is_aborted_after_the_timeout() -> None:
    server = FakeServer()
    server.shutdown.drain()
    server.clock.advance(TIMEOUT_SECONDS - 0.1)
    assert server.connections
    server.clock.advance(0.1)
    assert not server.connections
    assert not server.shutdown.is_aborted
    assert "aborted the rest" not in server.calls


def test_a_server_that_starts_again_waits_again() -> None:
    server = FakeServer()
    server.shutdown.drain()
    server.shutdown.abort()
    server.stop_backplane()
    assert server.shutdown.is_aborted
    server.shutdown.restart()
    assert not server.shutdown.is_aborted


def test_connections_that_come_after_the_timeout_do_not_keep_a_drain_from_its_end() -> None:
    server = FakeServer()
    drained: list[None] = []
    server.shutdown.drain().addCallback(drained.append)
    server.connection.close_timed_out = lambda: None  # type: ignore[method-assign]
    server.clock.advance(TIMEOUT_SECONDS)
    server.connections.append(FakeConnection(server))
    server.connection.end()
    server.clock.advance(1.0)
    server.stopped.callback(None)
    assert drained == [None]
    assert not server.clock.getDelayedCalls()


def test_each_call_of_drain_has_its_own_deferred() -> None:
    server = FakeServer()
    drains = [server.shutdown.drain(), server.shutdown.drain()]
    server.connection.end()
    drains.append(server.shutdown.drain())
    assert not any(drain.called for drain in drains)
    server.stopped.callback(None)
    assert all(drain.called for drain in [*drains, server.shutdown.drain()])
    assert server.calls.count("last connection lost") == 1
