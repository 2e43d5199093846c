"""What peers notice when somebody sets the wall clock of a server: nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.peer import Peer, new_topic, observed
from tests.harness.raw_client import STAYS
from tests.harness.redis import redis_running
from tests.harness.server import serving, start
from tests.harness.wall_clock import WallClock
from tests.programs import need

HOUR = 3600.0


@pytest.mark.parametrize("seconds", [-HOUR, HOUR], ids=["back", "forward"])
@pytest.mark.parametrize("options", [(), ("--workers=2",)], ids=["alone", "workers"])
def test_deadlines_go_on(seconds: float, options: tuple[str, ...], tmp_path: Path) -> None:
    wall = WallClock(tmp_path)
    often = ("--ping-interval=1", "--ping-timeout=4")
    with serving(*often, *options, env=wall.environment) as server, ExitStack() as stack:
        # Its workers may take long to start.
        server.wait_until_ready()
        observers = stack.enter_context(observed(server))
        with subprocess.Popen([sys.executable, "-c", STAYS, server.url + observers.topic]) as client:
            try:
                peer = observers.sees_joining()
                client.send_signal(signal.SIGSTOP)
                wall.step(seconds)
                observers.first.event("peer-left", peer)
            finally:
                client.kill()
        observers.goes_on()
        server.wait_for(f"{peer} left '{observers.topic}': aborted: no pong within 4 s")


def see_each_other(peers: list[Peer]) -> None:
    """Wait until each of them knows the others and nobody else."""
    for peer in peers:
        peer.sees(*(other for other in peers if other is not peer))


def test_nodes_stay_in_their_cluster(tmp_path_factory: pytest.TempPathFactory) -> None:
    need("redis-server")
    clocks = {seconds: WallClock(tmp_path_factory.mktemp("clock")) for seconds in (-HOUR, HOUR)}
    with redis_running() as redis, ExitStack() as stack:
        options = ["--port=0", f"--backplane={redis.url}"]
        environments = [*(wall.environment for wall in clocks.values()), {}, {}]
        *stepped, other, dying = servers = [start(options, env=env) for env in environments]
        for server in servers:
            stack.callback(server.end)
        for server in servers:
            server.wait_until_listening()
            server.wait_until_ready()
        topic = new_topic()
        *here, there, dead = peers = [Peer(server, topic) for server in servers]
        see_each_other(peers)
        for seconds, wall in clocks.items():
            wall.step(seconds)
        dying.process.kill()
        # The others miss its heartbeats after 9 s, and those of a node that sent none since the step as well.
        living = [*here, there]
        see_each_other(living)
        for server in (*stepped, other):
            assert server.readiness()[0] == 200
        late = Peer(other, topic)
        see_each_other([*living, late])
        for peer in here:
            peer.relay(late.id, "on")
            late.text("on")
        for peer in living:
            assert [message["peerId"] for message in peer.of_type("peer-left")] == [dead.id]
        for server in (*stepped, other):
            assert "this one; it goes on" not in server.log
            server.assert_no_problem()
        for peer in (*living, late):
            peer.close()
