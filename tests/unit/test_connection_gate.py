"""Which connections that have not joined are evicted, and when their handshake is over."""

from __future__ import annotations

from twisted.internet.task import Clock

from signaling import Limits
from signaling.admission.client_address import TrustedProxies
from signaling.admission.connection_limits import ConnectionLimits
from signaling.core.counters import Counters
from signaling.server.connection_gate import ConnectionGate
from signaling.timing.timeouts import Timeouts

HANDSHAKE_SECONDS = 5.0


class FakeConnection:
    """Keeps how it ended."""

    ended: str | None = None

    def abort(self, reason: str) -> None:
        self.ended = reason

    def handshake_timed_out(self) -> None:
        self.ended = "late"


class GateHarness:
    """A gate for two connections that may join, and two more."""

    def __init__(self, trusted_proxies: tuple[str, ...] = (), **limits: int) -> None:
        self.clock = Clock()
        self.connections: set[FakeConnection] = set()
        self.counters = Counters()
        self.reasons: list[str] = []
        timeouts: Timeouts[FakeConnection] = Timeouts(self.clock, HANDSHAKE_SECONDS, FakeConnection.handshake_timed_out)
        bounds = Limits(max_connections=2, spare_connections=2, **limits)
        self.gate: ConnectionGate[FakeConnection] = ConnectionGate(
            self.connections,
            timeouts,
            ConnectionLimits(bounds, 1024, self.clock.seconds),
            bounds.max_connections_per_address,
            TrustedProxies(trusted_proxies),
            self.counters,
            self.reasons.append,
        )

    def open(self, address: str = "192.0.2.1") -> FakeConnection:
        connection = FakeConnection()
        self.gate.open(connection, lambda: address)
        return connection


def test_a_connection_beyond_all_bounds_evicts_the_oldest_that_has_not_joined() -> None:
    harness = GateHarness()
    joined = harness.open()
    harness.gate.discard(joined)
    waiting = [harness.open() for _ in range(3)]
    assert [connection.ended for connection in waiting] == [None] * 3
    newest = harness.open()
    evicted = [connection for connection in (joined, *waiting, newest) if connection.ended]
    assert evicted == waiting[:1]
    assert waiting[0].ended == "the server is full"
    assert harness.reasons == ["the server is full"]
    assert harness.counters.connections_evicted == 1


def test_an_address_with_too_many_connections_evicts_its_own_oldest() -> None:
    harness = GateHarness(max_connections_per_address=1)
    other = harness.open("192.0.2.2")
    oldest, newest = harness.open(), harness.open()
    assert (other.ended, newest.ended) == (None, None)
    assert "its address" in (oldest.ended or "")


def test_a_trusted_proxy_s_connections_are_not_bounded_as_one_address_s() -> None:
    harness = GateHarness(trusted_proxies=("192.0.2.1",), max_connections_per_address=1)
    assert [harness.open().ended for _ in range(3)] == [None] * 3


def test_a_connection_that_does_not_join_in_time_is_ended() -> None:
    harness = GateHarness()
    connection = harness.open()
    harness.clock.advance(HANDSHAKE_SECONDS)
    assert connection.ended == "late"


def test_a_handshake_can_be_ended_early_but_only_while_it_lasts() -> None:
    harness = GateHarness()
    waiting, gone = harness.open(), harness.open()
    harness.gate.remove(gone)
    for connection in (waiting, gone):
        harness.gate.end_handshake(connection)
    assert (waiting.ended, gone.ended) == ("late", None)


def test_a_removed_connection_is_forgotten() -> None:
    harness = GateHarness(max_connections_per_address=1)
    harness.gate.remove(harness.open())
    assert len(harness.gate) == 0
    assert not harness.connections
    assert harness.open().ended is None
