"""The admin API of several processes: nodes of a cluster, workers, and workers that are nodes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from signaling.client import Backoff, PeerList, Refused, join
from tests.harness.admin_client import AdminClient
from tests.harness.peer import Peer, new_topic
from tests.harness.redis import RedisServer, redis_running
from tests.harness.server import Server, start, wait_until
from tests.system.worker_processes import pids, topic_of

SECONDS = 120


class Party(NamedTuple):
    """Processes whose peers an operator sees as one server's.

    Args:
        servers: peers connect to each in turn.
        admins: of the servers.
        topic: makes a topic; peers that come one after the other are in different processes if it can be.
    """

    servers: list[Server]
    admins: list[AdminClient]
    topic: Callable[[], str]

    def peer(self, number: int, topic: str) -> Peer:
        return Peer(self.servers[number % len(self.servers)], topic)

    def stop(self) -> None:
        for server in self.servers:
            assert server.stop() == 0, server.log
            server.assert_no_problem()


def started(stack: ExitStack, folder: Path, *options: str) -> tuple[Server, AdminClient]:
    """Start a server with an admin API on a UNIX socket; it survives the test."""
    socket = folder / f"admin-{len(list(folder.iterdir()))}"
    server = start(["--port=0", f"--admin-listen=unix:{socket}", "--resume-window=30", *options])
    stack.callback(server.end)
    server.wait_until_listening()
    server.wait_until_ready()
    wait_until(socket.exists)
    return server, AdminClient(socket)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_running() as redis:
        yield redis


def two_nodes(stack: ExitStack, folder: Path, redis: RedisServer) -> Party:
    pairs = [started(stack, folder, f"--backplane={redis.url}") for _ in range(2)]
    return Party([server for server, _ in pairs], [admin for _, admin in pairs], new_topic)


def two_workers(stack: ExitStack, folder: Path, redis: RedisServer) -> Party:
    server, admin = started(stack, folder, "--workers=2")
    return Party([server], [admin], lambda: topic_of(1, new_topic()))


def workers_and_a_node(stack: ExitStack, folder: Path, redis: RedisServer) -> Party:
    url = f"--backplane={redis.url}?prefix=workers"
    pairs = [started(stack, folder, "--workers=2", url), started(stack, folder, url)]
    return Party([server for server, _ in pairs], [admin for _, admin in pairs], lambda: topic_of(1, new_topic()))


@pytest.fixture(scope="module", params=[two_nodes, two_workers, workers_and_a_node])
def party(
    request: pytest.FixtureRequest, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Party]:
    with ExitStack() as stack:
        party = request.param(stack, tmp_path_factory.mktemp("admin"), redis)
        yield party
        party.stop()


def test_a_topic_of_several_processes_is_one(party: Party) -> None:
    topic = party.topic()
    peers = [party.peer(number, topic) for number in range(3)]
    for admin in party.admins:
        wait_until(lambda admin=admin: admin.topics(prefix=topic) == (200, {"topics": [{"name": topic, "peers": 3}]}))
        status, described = admin.describe(topic)
        assert (status, [peer["id"] for peer in described["peers"]]) == (200, [peer.id for peer in peers])
        nodes = [peer["node"] for peer in described["peers"]]
        assert nodes[0] == nodes[2]
        assert len(set(nodes)) == len(party.servers)
    log = "".join(server.log for server in party.servers)
    # As the log names them.
    assert all(f"node {node} serves its cluster" in log or node == "worker 1" for node in nodes)
    for peer in peers:
        peer.close()


def test_a_notice_reaches_every_peer_once_wherever_it_is(party: Party) -> None:
    topic = party.topic()
    peers = [party.peer(number, topic) for number in range(3)]
    for number, admin in enumerate(party.admins):
        assert admin.notify(topic, {"number": number}) == (200, {"received": 3})
    assert party.admins[0].notify(topic, "the last", peers[1].id) == (200, {"received": 1})
    assert party.admins[0].notify(topic, "really", peers[1].id) == (200, {"received": 1})
    peers[1].next(lambda message: message.get("data") == "really")
    notices = [message["data"] for message in peers[1].messages if message["type"] == "notice"]
    assert notices == [*({"number": number} for number in range(len(party.admins))), "the last", "really"]
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("close", [False, True])
def test_a_client_that_is_removed_from_whatever_process_stays_away(party: Party, close: bool) -> None:
    topic = party.topic()
    # Its process is not the one that is asked.
    url, admin = party.servers[-1].url + topic, party.admins[0]

    async def scenario() -> Refused:
        async with asyncio.timeout(SECONDS), join(url, backoff=Backoff(first_seconds=0.01)) as ada:
            async for message in ada:
                if isinstance(message, PeerList):
                    break
            act = (admin.close, (topic,)) if close else (admin.remove, (topic, ada.self_id or ""))
            assert await asyncio.to_thread(act[0], *act[1], reason="Be kind") == (200, {"removed": 1})
            with pytest.raises(Refused) as refused:
                [message async for message in ada]
            return refused.value

    refused = asyncio.run(scenario())
    assert refused.status == (4404 if close else 4403)
    assert "Be kind" in str(refused)
    assert admin.describe(topic)[0] == 404


def test_a_process_that_stands_still_is_named_and_the_others_answer(party: Party) -> None:
    topic = party.topic()
    peers = [party.peer(number, topic) for number in range(2)]
    admin, server = party.admins[0], party.servers[-1]
    described: dict[str, Any] = admin.describe(topic)[1]
    node = described["peers"][-1]["node"]
    pid = pids(server)[1] if node == "worker 1" else server.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        status, answer = admin.topics(prefix=topic)
    finally:
        os.kill(pid, signal.SIGCONT)
    left = [peer for peer in described["peers"] if peer["node"] != node]
    assert (status, answer["missing"]) == (200, [node])
    assert [entry["peers"] for entry in answer["topics"]] == [len(left)] * bool(left)
    for peer in peers:
        peer.close()
