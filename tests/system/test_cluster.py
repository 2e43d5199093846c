"""Nodes that share topics through a Redis, and what their peers notice when one of them, Redis or a link fails."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.fault_proxy import FaultProxy, fault_proxy
from tests.harness.frames import masked
from tests.harness.peer import Call, Peer, new_topic
from tests.harness.raw_client import join_raw, read_to_the_end
from tests.harness.redis import RedisServer, redis_running
from tests.harness.server import Server, nodes, start, wait_until

HIGH_WATER_MARK = 16
MOST_PEERS = 3


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Server]]:
    """Two nodes that nothing happens to."""
    with redis_running() as redis:
        # Some clients do not read, and answer no pings.
        patient = ("--resume-window=30", "--write-timeout=120", "--ping-interval=0")
        options = (f"--max-peers-per-topic={MOST_PEERS}", *patient)
        with nodes([redis.url] * 2, *options) as servers:
            for server in servers:
                server.wait_until_ready()
            yield servers


# Two nodes as one


def test_peers_of_different_nodes_meet_relay_and_part(pair: list[Server]) -> None:
    topic = new_topic()
    first, second = Peer(pair[0], topic, "?metadata=%7B%22n%22%3A1e2%7D"), Peer(pair[1], topic)
    assert {"type": "peer-list", "peers": [{"id": first.id, "metadata": {"n": 1e2}}]} in second.messages
    first.next(lambda message: message == {"type": "peer-joined", "peerId": second.id})
    first.relay(second.id, "there", "v=0")
    assert json.loads(second.text("there")) == {"type": "offer", "from": first.id, "payload": "v=0", "msgId": "there"}
    second.relay(first.id, "back")
    assert json.loads(first.text("back"))["from"] == second.id
    first.close()
    second.next(lambda message: message == {"type": "peer-left", "peerId": first.id})
    second.close()


def test_a_full_topic_is_full_on_every_node(pair: list[Server]) -> None:
    topic = new_topic()
    peers = [Peer(pair[n % 2], topic) for n in range(MOST_PEERS)]
    for server in pair:
        refused = Peer(server, topic)
        assert [(message["type"], message["code"]) for message in refused.messages] == [("error", "topic_full")]
        assert refused.closed() == 1013
    peers.pop().close()
    # Where it was, its place is free at once; at the other node as soon as that has received of it.
    wait_until(lambda: len(peers[1].view) == MOST_PEERS - 2)
    peers.append(Peer(pair[1], topic))
    assert peers[-1].id
    for peer in peers:
        peer.close()


def test_errors_of_relays_are_the_same_bytes_wherever_the_target_was(pair: list[Server]) -> None:
    topic = new_topic()
    sender, gone = Peer(pair[0], topic), Peer(pair[1], topic)
    gone.close()
    sender.next(lambda message: message["type"] == "peer-left")
    sender.relay(gone.id, "elsewhere")
    sender.relay("nobody", "nowhere")
    assert sender.text("elsewhere") == sender.text("nowhere").replace("nowhere", "elsewhere")
    dropped = [text_of_dropped(sender, server, topic) for server in pair]
    assert dropped[0] == dropped[1]
    assert json.loads(dropped[0])["code"] == "dropped"
    sender.close()


def text_of_dropped(sender: Peer, server: Server, topic: str) -> str:
    """Relay to a peer that reads nothing, until that is refused; returns the error, less its ``msgId``."""
    stuck, target = join_raw(server, topic, receive_buffer=4096)
    with stuck:
        flood(sender, target)
        name = next(iter(name for name in sender.answers if name.startswith(target)))
        # It leaves in peace, once it has read all.
        stuck.sendall(masked(0x88, b""))
        read_to_the_end(stuck)
    return sender.text(name).replace(name, "m")


def flood(sender: Peer, target: str) -> list[str]:
    """Relay until that is refused; returns the ``msgId`` of each relay."""
    sender.next(lambda message: message.get("peerId") == target)
    names = []
    while not any(name.startswith(target) for name in sender.answers):
        names.append(f"{target}-{len(names)}")
        sender.relay(target, names[-1], "x" * 60_000)
        assert len(names) < 2000
    return names


def test_a_slow_reader_of_another_node_costs_dropped_and_gets_all_else_in_order(pair: list[Server]) -> None:
    topic = new_topic()
    sender = Peer(pair[0], topic)
    reader, target = join_raw(pair[1], topic, receive_buffer=4096)
    with reader:
        names = flood(sender, target)
        data, delivered = b"", []
        while len(delivered) + len(sender.answers) < len(names):
            data += reader.recv(1 << 20)
            delivered = [found.decode() for found in re.findall(rb'"msgId":"([^"]+)"', data)]
    assert len(delivered) > HIGH_WATER_MARK
    assert set(sender.answers.values()) == {"dropped"}
    assert delivered == [name for name in names if name not in sender.answers]
    sender.close()


# Coming back to another node


def test_a_peer_that_comes_back_to_another_node_misses_nothing_and_gets_nothing_twice(pair: list[Server]) -> None:
    topic = new_topic()
    sender, before = Peer(pair[1], topic), Peer(pair[0], topic)
    stop, names = threading.Event(), []

    def send() -> None:
        while not stop.wait(0.005):
            names.append(str(len(names)))
            sender.relay(before.id, names[-1])

    sending = threading.Thread(target=send)
    sending.start()
    before.next(lambda message: message.get("msgId") == "5")
    before.break_off()
    token, seen = before.welcome["resume"]["token"], len(before.messages)
    after = Peer(pair[1], topic, f"?resume={token}&seen={seen}")
    after.next(lambda message: int(message.get("msgId", 0)) > 50)
    stop.set()
    sending.join()
    assert after.welcome["resumed"]
    assert after.id == before.id
    wait_until(lambda: len(before.delivered(sender)) + len(after.delivered(sender)) + len(sender.answers) >= len(names))
    delivered = before.delivered(sender) + after.delivered(sender)
    assert delivered == [name for name in names if name not in sender.answers]
    assert set(sender.answers.values()) <= {"dropped"}
    # Nobody left, and nobody joined.
    assert [message["type"] for message in sender.messages if "peerId" in message] == ["peer-joined"]
    after.relay(sender.id, "here")
    assert json.loads(sender.text("here"))["from"] == before.id
    after.close()
    sender.sees()
    sender.close()


# Without a store


@pytest.mark.parametrize(
    ("url", "said"), [("redis//nowhere", "--backplane: "), ("http://127.0.0.1", "--backplane: "), ("redis://a:b", "")]
)
def test_a_wrong_url_is_one_clear_line(url: str, said: str) -> None:
    status, text = run_to_end(f"--backplane={url}")
    assert status == 1
    assert text.startswith(f"signaling: {said}")
    assert len(text.splitlines()) == 1


def test_a_missing_extra_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "hiredis.py").write_text("raise ImportError('not here')")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    status, text = run_to_end("--backplane=redis://127.0.0.1", PYTHONPATH=path)
    assert status == 1
    assert (
        text == "signaling: --backplane: needs the extra cluster (pip install 'twisted-signaling[cluster]'): not here"
    )


def test_a_store_that_refuses_one_command_of_the_scripts_is_out_of_reach() -> None:
    everything_else = "ada on >north ~signaling:* &signaling:* +@all -srandmember"
    with redis_running(users=[everything_else]) as redis:
        node = start(["--port=0", f"--backplane=redis://ada:north@127.0.0.1:{redis.port}"])
        try:
            node.wait_until_listening()
            node.wait_for("heartbeat: ERR, the user may not; docs/redis.md has the rights")
            assert node.readiness()[0] == 503
        finally:
            node.end()


def run_to_end(*options: str, **environ: str) -> tuple[int, str]:
    server = start(["--port=0", *options], env=environ)
    try:
        status = server.process.wait(60)
    finally:
        server.end()
    return status, server.log


def test_nodes_serve_their_own_peers_before_there_is_a_store_and_meet_once_it_comes() -> None:
    with redis_running() as redis:
        redis.kill()
        with nodes([redis.url] * 2) as (a, b):
            topic = new_topic()
            with ThreadPoolExecutor() as joining:
                peers = list(joining.map(lambda server: Peer(server, topic), (a, a, b)))
            peers[0].sees(peers[1])
            peers[2].sees()
            assert a.readiness() == (503, {"ready": False, "reasons": ["the backplane is out of reach"]})
            call = Call(peers[0], peers[1])
            call.goes_on()
            redis.start()
            peers[0].sees(*peers[1:])
            peers[2].sees(*peers[:2])
            assert call.ends().keys() == {"delivered"}
            a.wait_until_ready()
            b.wait_until_ready()
            close(*peers)


def close(*peers: Peer) -> None:
    for peer in peers:
        peer.close()


# Failures


class Trio(NamedTuple):
    """Three nodes; the last of them reaches the store through a link that can fail."""

    redis: RedisServer
    link: FaultProxy
    servers: list[Server]

    def wait_until_ready(self) -> None:
        for server in self.servers:
            server.wait_until_ready()


@pytest.fixture(scope="module")
def trio() -> Iterator[Trio]:
    """Three nodes that survive each failure, but for the last test."""
    with redis_running() as redis, fault_proxy(redis.port) as link:
        with nodes([redis.url, redis.url, f"redis://127.0.0.1:{link.port}"]) as servers:
            trio = Trio(redis, link, servers)
            trio.wait_until_ready()
            yield trio


@pytest.mark.parametrize(
    ("begin", "heal", "seconds", "leaving"),
    [(RedisServer.pause, RedisServer.resume, 5.0, 1), (RedisServer.kill, RedisServer.start, 1.0, 0)],
    ids=["pause", "kill"],
)
def test_without_redis_each_node_goes_on_alone_and_all_agree_when_it_is_back(
    trio: Trio, begin: Callable, heal: Callable, seconds: float, leaving: int
) -> None:
    topic = new_topic()
    a, b, c = trio.servers
    peers = [Peer(server, topic) for server in (a, a, b, c)]
    near, far = Call(*peers[:2]), Call(peers[0], peers[2])
    far.goes_on()
    begin(trio.redis)
    gone = time.monotonic()
    a.wait_until_ready(503)
    # All of this does not wait for the store.
    peers.append(Peer(a, topic))
    near.goes_on(5)
    peers[1].sees(*(peer for peer in peers if peer is not peers[1]))
    left = [peers.pop(3) for _ in range(leaving)]
    close(*left)
    time.sleep(max(0.0, gone + seconds - time.monotonic()))  # The length of the failure.
    heal(trio.redis)
    trio.wait_until_ready()
    for peer in peers:
        peer.sees(*(other for other in peers if other is not peer))
    far.goes_on()
    assert near.ends().keys() == {"delivered"}
    assert far.ends().keys() == {"delivered", "dropped"}
    assert [message["peerId"] for message in peers[0].of_type("peer-left")] == [peer.id for peer in left]
    close(*peers)


def test_a_node_that_is_paused_for_5_s_is_not_evicted(trio: Trio) -> None:
    topic = new_topic()
    peers = [Peer(server, topic) for server in (*trio.servers, trio.servers[0])]
    near, far = Call(peers[0], peers[3]), Call(peers[0], peers[2])
    far.goes_on()
    trio.servers[2].pause()
    try:
        near.goes_on(5)
        time.sleep(5)  # The length of the failure.
        near.goes_on(5)
    finally:
        trio.servers[2].resume()
    far.goes_on()
    assert near.ends().keys() == {"delivered"}
    assert far.ends().keys() == {"delivered"}
    assert not peers[0].of_type("peer-left")
    close(*peers)


def test_the_peers_of_a_node_that_stops_are_told_1001_and_all_others_at_once_that_they_left(trio: Trio) -> None:
    with nodes([trio.redis.url]) as (stopping,):
        topic = new_topic()
        other, own = Peer(trio.servers[0], topic), Peer(stopping, topic)
        other.sees(own)
        evictions = [server.log.count("sends no heartbeats") for server in trio.servers]
        assert stopping.stop() == 0
        assert own.closed() == 1001
        other.sees()
        # They did not wait for missing heartbeats.
        assert [server.log.count("sends no heartbeats") for server in trio.servers] == evictions
        other.close()


class TwoFailures:
    """What came of two failures in the same moment: the second node was killed, and the third one's link cut."""

    def __init__(self, trio: Trio) -> None:
        self.trio = trio
        topic = new_topic()
        a, b, c = trio.servers
        self.observer, self.dead, self.cut = Peer(a, topic), Peer(b, topic), [Peer(c, topic), Peer(c, topic)]
        self.observer.sees(self.dead, *self.cut)
        for each in self.cut:
            each.wait_for(lambda each=each: len(each.view) == 3)
        self.among_cut = Call(*self.cut)
        self.among_cut.goes_on()
        b.process.kill()
        trio.link.swallow()
        self.to_dead, self.to_cut = Call(self.observer, self.dead), Call(self.observer, self.cut[0])
        self.observer.sees()
        self.readiness = c.readiness()
        self.late = Peer(c, topic)

    def times_announced(self, peer: Peer) -> int:
        """Return how often the observer was informed that a peer left."""
        return [message["peerId"] for message in self.observer.of_type("peer-left")].count(peer.id)


@pytest.fixture(scope="module")
def gone(trio: Trio) -> TwoFailures:
    """Both failures together take no longer than one."""
    return TwoFailures(trio)


def test_the_peers_of_a_killed_node_are_announced_once(gone: TwoFailures) -> None:
    assert gone.times_announced(gone.dead) == 1


def test_all_relays_to_a_killed_node_are_answered(gone: TwoFailures) -> None:
    ends = gone.to_dead.ends(gone.observer)
    assert ends["dropped"]
    assert not ends["delivered"]


def test_a_node_that_is_cut_off_is_announced_too_and_says_that_it_is_not_ready(gone: TwoFailures) -> None:
    for peer in gone.cut:
        assert gone.times_announced(peer) == 1
    assert gone.readiness == (503, {"ready": False, "reasons": ["the backplane is out of reach"]})


def test_peers_of_a_node_that_is_cut_off_go_on_among_themselves(gone: TwoFailures) -> None:
    gone.among_cut.goes_on(5)
    gone.late.sees(gone.observer, gone.dead, *gone.cut)


def test_a_node_that_was_cut_off_comes_back_with_its_peers(gone: TwoFailures) -> None:
    gone.trio.link.heal()
    gone.trio.servers[2].wait_until_ready()
    here = [gone.observer, *gone.cut, gone.late]
    for peer in here:
        peer.sees(*(other for other in here if other is not peer))
    gone.to_cut.goes_on()
    assert gone.among_cut.ends().keys() == {"delivered"}
    assert gone.to_cut.ends().keys() == {"delivered", "dropped", "target_not_found"}
    close(*here)
