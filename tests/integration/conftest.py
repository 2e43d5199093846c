"""Every setup of a server: its own port, a foreign site, and the nodes of a cluster, each for the same scenarios."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from signaling.core.peer import Peer
from tests.harness.redis import redis_running
from tests.harness.wire_schema import disagreement
from tests.integration.backends import RedisStore
from tests.integration.harness import Harness

MakeHarness = Callable[..., Harness]

SITE = pytest.param("site", marks=[pytest.mark.site, pytest.mark.unmeasured])
THREE_NODES = pytest.param("three nodes", marks=[pytest.mark.cluster, pytest.mark.unmeasured])
ON_REDIS = pytest.param("three nodes on Redis", marks=[pytest.mark.cluster, pytest.mark.redis])


@pytest.fixture(scope="session")
def redis_socket() -> Iterator[str]:
    """Run one redis-server for all tests."""
    with redis_running(unix=True) as server:
        yield server.socket


def _make_harnesses(**variant: Any) -> Iterator[MakeHarness]:
    harnesses: list[Harness] = []

    def make(**limits: Any) -> Harness:
        harnesses.append(Harness(**variant, **limits))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()


@pytest.fixture(params=["port", SITE])
def make_server(request: pytest.FixtureRequest) -> Iterator[MakeHarness]:
    """Make a harness of one server, for what does not depend on other nodes."""
    yield from _make_harnesses(site=request.param == "site")


@pytest.fixture(params=["port", SITE, THREE_NODES, ON_REDIS])
def make_harness(request: pytest.FixtureRequest) -> Iterator[MakeHarness]:
    """Make a harness with the limits that a test needs."""
    if request.param == "three nodes":
        yield from _make_harnesses(nodes=3)
    elif request.param == "three nodes on Redis":
        path = request.getfixturevalue("redis_socket")
        yield from _make_harnesses(nodes=3, store=lambda seconds: RedisStore(path))
    else:
        yield from _make_harnesses(site=request.param == "site")


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compare what the servers and the schema say of each message of a client."""
    disagreements: list[str] = []
    receive = Peer.receive

    def compared(peer: Peer, data: bytes) -> Any:
        outcome = receive(peer, data)
        found = disagreement(data, outcome)
        if found is not None:
            disagreements.append(found)
        return outcome

    monkeypatch.setattr(Peer, "receive", compared)
    yield
    assert not disagreements


@pytest.fixture
def harness(make_harness: MakeHarness) -> Harness:
    """A server, or a cluster of them, with the default limits."""
    return make_harness()


@pytest.fixture
def server(make_server: MakeHarness) -> Harness:
    """One server with the default limits."""
    return make_server()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """All that is logged meanwhile, with tracebacks."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        failure = event.get("log_failure")
        lines.append((formatEvent(event) or "") + (failure.getTraceback() if failure else ""))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)
