"""What can go wrong between nodes: lost answers, claims that cross, and what others put on a node's channel."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import msgspec
import pytest
from websockets.frames import Frame, Opcode

from signaling.backplane.cluster import Cluster
from signaling.backplane.store import Keys
from signaling.core.interfaces import OutgoingSession
from tests.integration.harness import Harness, Peer

pytestmark = [pytest.mark.cluster, pytest.mark.unmeasured]


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(nodes=3, resume_window_seconds=30)
    yield harness
    harness.close()


def arrive(harness: Harness, node: int, query: str = "", topic: str = "room") -> Peer:
    """Join on one of the nodes; what came first is not looked at."""
    peer = harness.knock(f"/ws/{topic}{query}", node=node)
    harness.run()
    return peer


def greeting(peer: Peer) -> tuple[str, str]:
    """Return the id and the token of a peer that was just welcomed."""
    welcome = peer.heard()[0]
    return welcome["selfId"], welcome["resume"]["token"]


def ask(*peers: Peer) -> None:
    """Let requests reach their node, and nothing else happen."""
    for peer in peers:
        while peer.step():
            pass


# A lost connection to the store


def test_a_join_survives_the_loss_of_the_connection_to_the_store(harness: Harness) -> None:
    peer = harness.knock("/ws/room", node=0)
    ask(peer)
    assert harness.engines[0].waiting == 1
    harness.engines[0].lose_connection()
    harness.run()
    assert [message["type"] for message in peer.heard()] == ["welcome", "peer-list"]
    harness.engines[0].reconnect()
    harness.run()
    assert len(arrive(harness, 1).heard()[1]["peers"]) == 1


# Joins that wait for each other


def test_a_join_in_turn_whose_end_lets_the_next_one_begin_is_answered() -> None:
    harness = Harness(nodes=2)
    node = harness.factories[0]
    node.crowd_size = 2
    members = [arrive(harness, 0) for _ in range(2)]
    newcomers = [harness.knock("/ws/room", node=0) for _ in range(3)]
    ask(*newcomers)
    while not len(node.scheduler):
        assert harness.engines[0].step()
    # The first has to wait for its turn, the next ones for the first; by then there is no crowd any more.
    for member in members:
        member.transport.abortConnection()
    ask(*members)
    harness.run()
    for newcomer in newcomers:
        assert [message["type"] for message in newcomer.heard()[:2]] == ["welcome", "peer-list"]
    harness.close()


# A channel that loses something, and an engine that is not the one to blame


def unready_reasons(harness: Harness, node: int = 0) -> list[str]:
    return harness.factories[node].backplane.unready_reasons


@pytest.mark.parametrize("kind", ["left", "joined"])
def test_an_event_that_was_lost_silently_is_recovered_within_seconds(harness: Harness, kind: str) -> None:
    watcher, other = arrive(harness, 0), arrive(harness, 1)
    watcher.heard()
    harness.engines[0].dropping = 1
    if kind == "left":
        other.leave()
    else:
        arrive(harness, 2)
    assert watcher.heard() == []
    harness.advance(3)
    assert [message["type"] for message in watcher.heard()] == [f"peer-{kind}"]
    assert harness.engines[0].connects == 1


def test_no_topic_is_compared_if_no_event_was_lost(harness: Harness) -> None:
    for node in (0, 1, 2, 0):
        arrive(harness, node).leave()
    harness.advance(5)
    calls = [engine.calls for engine in harness.engines]
    harness.advance(5)
    # Each heartbeat, and no comparison of a topic.
    assert [engine.calls - before for engine, before in zip(harness.engines, calls, strict=True)] == [5, 5, 5]


def test_a_node_whose_channel_falls_silent_reconnects_and_is_unready_meanwhile(harness: Harness) -> None:
    harness.engines[0].dropping = float("inf")
    while harness.engines[0].connects == 1:
        harness.clock.advance(0.25)
        for engine in harness.engines:
            engine.step()
        assert harness.clock.seconds() <= 4.5
    harness.engines[0].dropping = 0
    assert unready_reasons(harness) == ["the backplane is out of reach"]
    harness.run()
    assert unready_reasons(harness) == []


def test_a_node_that_was_paused_does_not_blame_the_engine(harness: Harness) -> None:
    harness.advance(1)
    # A check, whose heartbeat is not answered before the next one.
    harness.clock.advance(1)
    for _ in range(2):
        harness.clock.advance(5)
        assert unready_reasons(harness) == []
        harness.run()
    assert [engine.connects for engine in harness.engines] == [1, 1, 1]


def test_an_engine_that_answers_joins_is_reachable_however_late_it_answers_heartbeats(harness: Harness) -> None:
    harness.engines[0].refused = {"heartbeat"}
    for _ in range(12):
        harness.advance(0.5)
        arrive(harness, 0)
    assert unready_reasons(harness) == []
    harness.advance(3)
    # The others take it for dead before long.
    assert unready_reasons(harness) == ["the backplane is out of reach"]


# Claims that cross


def test_a_token_that_is_used_twice_at_once_resumes_one_peer(harness: Harness) -> None:
    watcher = arrive(harness, 0)
    watcher.id, _ = greeting(watcher)
    own, token = greeting(peer := arrive(harness, 1))
    peer.reset()
    both = [harness.knock(f"/ws/room?resume={token}&seen=2", node=2) for _ in range(2)]
    harness.run()
    harness.advance(15)
    welcome = both[1].heard()[0]
    assert (welcome["selfId"], welcome["resumed"], [peer.lost for peer in both]) == (own, True, [True, False])
    watcher.offer(own, payload="later")
    assert both[1].heard()[-1]["payload"] == "later"
    assert {entry["id"] for entry in arrive(harness, 0).heard()[1]["peers"]} == {own, watcher.id}


def test_a_client_that_disconnects_while_it_resumes_leaves_no_peer_behind(harness: Harness) -> None:
    watchers = [arrive(harness, node) for node in range(3)]
    own, token = greeting(peer := arrive(harness, 1))
    peer.reset()
    for watcher in watchers:
        watcher.heard()
    back = harness.knock(f"/ws/room?resume={token}&seen=2", node=2)
    ask(back)
    back.reset()
    harness.advance(60)
    for watcher in watchers:
        assert watcher.heard() == [{"type": "peer-left", "peerId": own}]


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_relay_to_a_peer_that_is_being_handed_off_is_dropped(harness: Harness, is_alone: bool) -> None:
    sender = arrive(harness, 0)
    if not is_alone:
        arrive(harness, 1)
    own, token = greeting(peer := arrive(harness, 1))
    peer.reset()
    sender.heard()
    back = harness.knock(f"/ws/room?resume={token}&seen=2", node=2)
    ask(back)
    while not harness.factories[2].topics.size("room"):
        for engine in harness.engines[1:]:
            engine.step()
    harness.engines[1].step()
    sender.client.send_text(json.dumps({"type": "offer", "to": own, "msgId": "m"}).encode())
    sender.flush()
    harness.run()
    assert [(message["code"], message["msgId"]) for message in sender.heard()] == [("dropped", "m")]


@pytest.mark.parametrize("steps", range(4))
def test_a_client_that_disconnects_while_it_resumes_may_resume_again(harness: Harness, steps: int) -> None:
    watchers = [arrive(harness, node) for node in range(3)]
    sender = watchers[0]
    own, token = greeting(peer := arrive(harness, 1))
    peer.reset()
    sender.offer(own, payload="missed")
    for watcher in watchers:
        watcher.heard()
    back = harness.knock(f"/ws/room?resume={token}&seen=2", node=2)
    ask(back)
    for _ in range(steps):
        for engine in harness.engines:
            engine.step()
    back.reset()
    harness.run()
    sender.offer(own, payload="later")
    welcome, _, *missed = arrive(harness, 1, f"?resume={token}&seen=2").heard()
    assert (welcome["selfId"], welcome["resumed"]) == (own, True)
    assert [message["payload"] for message in missed] == ["missed", "later"]
    assert [message for watcher in watchers for message in watcher.heard()] == []


def test_resuming_on_a_full_node_is_refused_and_nothing_breaks() -> None:
    harness = Harness(nodes=3, resume_window_seconds=30, max_peers_per_topic=3)
    own, token = greeting(peer := arrive(harness, 0))
    peer.reset()
    harness.engines[2].lose_connection()
    others = [arrive(harness, 2) for _ in range(3)]
    harness.engines[2].reconnect()
    harness.run()
    back = arrive(harness, 2, f"?resume={token}&seen=2")
    assert (back.heard()[0]["code"], back.closed) == ("topic_full", 1013)
    assert {"type": "peer-left", "peerId": own} in others[0].heard()
    harness.close()


def test_a_session_that_cannot_be_read_makes_a_new_peer(harness: Harness) -> None:
    own, token = greeting(peer := arrive(harness, 0))
    peer.reset()
    unreadable = OutgoingSession(b"\x93\x01\x02\x03", [], [])
    harness.factories[0].local.prepare_handoff = lambda topic, proof: unreadable  # type: ignore[method-assign]
    welcome, peer_list = arrive(harness, 2, f"?resume={token}&seen=2").heard()
    assert (welcome["selfId"] != own, "resumed" in welcome, peer_list["peers"]) == (True, False, [])


def test_messages_sent_before_a_late_welcome_are_relayed(harness: Harness) -> None:
    other = arrive(harness, 0)
    other.id, _ = greeting(other)
    _, token = greeting(peer := arrive(harness, 1))
    peer.reset()
    back = harness.knock(f"/ws/room?resume={token}&seen=999", node=1)
    offer = json.dumps({"type": "offer", "to": other.id, "payload": "early"}).encode()
    back.send_together(*[Frame(Opcode.TEXT, offer).serialize(mask=True)] * 2)
    ask(back)
    harness.run()
    assert [message["type"] for message in back.heard()] == ["welcome", "peer-list"]
    assert [message["payload"] for message in other.heard() if message["type"] == "offer"] == ["early"] * 2


# What is not ours


ODD = {
    "nothing": b"",
    "a letter": b"x",
    "another version's event": b"renamed 1.2 3 id 4\nroom",
    "no numbers": b"joined one two id four\nroom",
    "not UTF-8": b"joined 1.2 3 \xff 4\nroom" + b"n" * 16,
    "a number of 10,000 digits": b"joined 1.2 " + b"9" * 10_000 + b" id 4\nroom" + b"n" * 16,
    "an unknown kind": msgspec.msgpack.encode(["z", 1, 2, 3]),
    "too few fields": msgspec.msgpack.encode(["r", "origin"]),
    "fields of other types": msgspec.msgpack.encode(["o", 1, 2, 3, 4, 5]),
    "an array without an end": b"\xdd\xff\xff\xff\xff",
    "a deep nest": b"\x98\xa1a\xa1o\xa1n\x01\x90" + b"\x91" * 100_000,
    "outcomes of no relay": msgspec.msgpack.encode(["o", "o" * 16, "n" * 16, [(1, 2**62)], [(1, "new")], [7]]),
    "a session that was not asked for": msgspec.msgpack.encode(["s", 1, b"x"]),
}


@pytest.mark.parametrize("what", ODD)
def test_unknown_data_on_a_node_s_channel_is_ignored(harness: Harness, what: str) -> None:
    here, there = arrive(harness, 0), arrive(harness, 1)
    here.heard()
    say(harness, 0, ODD[what])
    there.offer(greeting(arrive(harness, 0))[0])
    assert [message["type"] for message in here.heard()] == ["peer-joined"]


def test_a_session_request_without_a_valid_proof_is_answered(harness: Harness) -> None:
    own, _ = greeting(arrive(harness, 0))
    say(harness, 0, msgspec.msgpack.encode(["c", "n" * 16, 1, "room", own, b"what is this"]))
    assert [entry["id"] for entry in arrive(harness, 1).heard()[1]["peers"]] == [own]


@pytest.mark.parametrize("last", ["~no ulid~", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"])
def test_an_id_without_a_greater_one_does_not_block_a_topic(harness: Harness, last: str) -> None:
    keys = Keys("signaling:")
    values = [b"signaling:", b"room", b"60", b"n" * 16, last.encode(), b"", b"9", b"9999"]
    harness.foreign_id = last
    harness.engines[0].call("join", [*keys.topic(b"room"), keys.index(b"n" * 16)], values, lambda reply: None)
    harness.run()
    first, second = arrive(harness, 0), arrive(harness, 1)
    assert greeting(first)[0] in [message.get("peerId") for message in second.heard()]
    assert len(greeting(arrive(harness, 0, topic="another"))[0]) == 26


def say(harness: Harness, node: int, data: bytes) -> None:
    """Publish on the channel of a node."""
    backplane = harness.factories[node].backplane
    assert isinstance(backplane, Cluster)
    harness.engines[0].publish(Keys("signaling:").channel(backplane.node.encode()), data, lambda listeners: None)
    harness.run()


# Slow readers


def test_peers_that_read_nothing_do_not_block_relays_to_other_peers_of_their_node(harness: Harness) -> None:
    sender, reader = arrive(harness, 0), arrive(harness, 1)
    reader_id, _ = greeting(reader)
    absent = [arrive(harness, 1) for _ in range(70)]
    ids = [greeting(peer)[0] for peer in absent]
    for peer in absent:
        peer.reset()
    sender.heard()
    for number in range(16):
        sender.say_many([{"type": "offer", "to": to, "msgId": f"{to} {number}"} for to in ids])
    sender.offer(reader_id, "m", "hello")
    assert sender.heard() == []
    assert reader.heard()[-1]["payload"] == "hello"
    assert harness.relays_queued == sum(factory.backplane.forwarding for factory in harness.factories) == 70 * 16
    harness.advance(40)
    assert len([message for message in sender.heard() if message.get("code") == "dropped"]) == 70 * 16
    assert harness.relays_queued == 0


# A node that dies, or a store that is unreachable


def test_a_client_that_resumes_from_a_dead_node_does_not_wait(harness: Harness) -> None:
    arrive(harness, 1)
    _, token = greeting(arrive(harness, 0))
    harness.engines[0].disconnect()
    before = harness.clock.seconds()
    back = arrive(harness, 1, f"?resume={token}&seen=2")
    assert "resumed" not in back.heard()[0]
    assert harness.clock.seconds() - before < 1


def test_topics_that_came_and_went_while_the_store_was_unreachable_are_not_compared(harness: Harness) -> None:
    stayed = arrive(harness, 0, topic="stays")
    left = arrive(harness, 0, topic="left")
    harness.engines[0].lose_connection()
    left.leave()
    for number in range(50):
        arrive(harness, 0, topic=f"t{number}").leave()
    scripts: list[str] = []
    call = harness.engines[0].call
    harness.engines[0].call = lambda script, *rest: (scripts.append(script), call(script, *rest))  # type: ignore
    harness.engines[0].reconnect()
    harness.run()
    assert scripts.count("sync") == 2
    assert arrive(harness, 1, topic="left").heard()[1]["peers"] == []
    assert len(arrive(harness, 1, topic="stays").heard()[1]["peers"]) == 1
    assert [message["type"] for message in stayed.heard()] == ["welcome", "peer-list", "peer-joined"]


def test_a_node_that_stopped_starts_again(harness: Harness) -> None:
    other = arrive(harness, 1)
    stopped: list[bool] = []
    harness.factories[0].backplane.stop(lambda: stopped.append(True))
    harness.run()
    assert stopped == [True]
    harness.factories[0].backplane.start(harness.factories[0].local)
    harness.run()
    peer = arrive(harness, 0)
    own = greeting(peer)[0]
    other.offer(own, payload="again")
    assert peer.heard()[-1]["payload"] == "again"
    assert harness.factories[0].unready_reasons["backplane"] == []


@pytest.mark.parametrize("reachable", [True, False])
def test_a_node_stops_in_time_whatever_the_store_does(harness: Harness, reachable: bool) -> None:
    arrive(harness, 0)
    peer = harness.knock("/ws/room", node=0)
    ask(peer)
    if reachable:
        harness.engines[0].step = lambda: False  # type: ignore[method-assign]
    else:
        harness.engines[0].lose_connection()
    stopped: list[float] = []
    harness.factories[0].backplane.stop(lambda: stopped.append(harness.clock.seconds()))
    harness.advance(10)
    assert stopped
    assert stopped[0] <= 3


def test_a_token_that_is_used_on_two_nodes_at_once_resumes_on_one_of_them(harness: Harness) -> None:
    watcher = arrive(harness, 1)
    own, token = greeting(peer := arrive(harness, 1))
    peer.reset()
    both = [harness.knock(f"/ws/room?resume={token}&seen=2", node=node) for node in (0, 2)]
    ask(*both)
    harness.run()
    welcomes = [peer.heard()[0] for peer in both]
    assert sorted(welcome.get("resumed", False) for welcome in welcomes) == [False, True]
    (resumed,) = [welcome["selfId"] for welcome in welcomes if "resumed" in welcome]
    assert resumed == own
    assert "peer-left" not in [message["type"] for message in watcher.heard()]


@pytest.mark.parametrize("steps", range(6))
def test_a_peer_that_two_connections_resume_holds_one_slot(steps: int) -> None:
    harness = Harness(nodes=3, resume_window_seconds=30, max_connections_per_address=2)
    _, token = greeting(peer := arrive(harness, 1))
    peer.reset()
    first, second = (harness.knock(f"/ws/room?resume={token}&seen=2", node=2) for _ in range(2))
    first.stall()
    ask(first)
    for _ in range(steps):
        harness.engines[steps % 3].step()
        for engine in harness.engines:
            engine.step()
    ask(second)
    while not harness.factories[2].topics.size("room"):
        for engine in harness.engines[::-1]:
            engine.step()
    first.reset()
    second.leave()
    harness.advance(31)
    assert harness.topics == {}
    assert [arrive(harness, 2).heard()[0]["type"] for _ in range(2)] == ["welcome"] * 2
    harness.close()


def test_a_store_that_refuses_is_not_asked_again_at_every_event(harness: Harness) -> None:
    engine = harness.engines[0]
    engine.refused = {"join", "sync"}
    peers = [arrive(harness, 0, topic=f"t{number}") for number in range(50)]
    assert [len(peer.heard()) for peer in peers] == [2] * 50
    assert engine.refusals <= 50 + 2 * 50
    engine.refused = set()
    harness.advance(5)
    assert len(arrive(harness, 1, topic="t7").heard()[1]["peers"]) == 1


# What a load balancer and an operator see


def readyz(harness: Harness, query: str = "") -> tuple[int, dict]:
    """Ask the next node."""
    status, _, body = harness.request(f"GET /readyz{query} HTTP/1.1\r\nHost: x\r\n\r\n")
    return status, json.loads(body) if status != 400 else {"said": body}


def test_readyz_says_that_the_store_is_unreachable_unless_that_is_excluded(harness: Harness) -> None:
    assert [readyz(harness) for _ in harness.factories] == [(200, {"ready": True})] * 3
    for engine in harness.engines:
        engine.lose_connection()
    harness.advance(5)
    unready = 503, {"ready": False, "reasons": ["the backplane is out of reach"]}
    assert [readyz(harness) for _ in harness.factories] == [unready] * 3
    assert readyz(harness, "?exclude=backplane&exclude=workers") == (200, {"ready": True})
    harness.factories[0].shutdown.become_unready()
    harness.factories[1].shutdown.become_unready()
    assert readyz(harness, "?exclude=backplane") == (503, {"ready": False, "reasons": ["the server is stopping"]})


def test_readyz_says_which_checks_there_are(harness: Harness) -> None:
    status, answer = readyz(harness, "?exclude=backplan")
    assert (status, answer["said"]) == (400, "exclude: there are the checks backplane, drain, workers\n")


class RecordedLog:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, ...]] = []

    def node_registered(self, node: str) -> None:
        self.lines.append(("registered", node))

    def node_unregistered(self, reason: str) -> None:
        self.lines.append(("unregistered", reason))

    def node_evicted(self, node: str) -> None:
        self.lines.append(("evicted", node))

    def this_node_evicted(self, node: str) -> None:
        self.lines.append(("this node evicted", node))

    def clocks_differ(self, seconds: float) -> None:
        self.lines.append(("clocks differ", f"{seconds:g}"))


def test_nodes_that_register_and_are_evicted_are_logged() -> None:
    log = RecordedLog()
    harness = Harness(nodes=2, log=log)
    first, second = (factory.backplane.node for factory in harness.factories)  # type: ignore[attr-defined]
    assert log.lines == [("registered", first), ("registered", second)]
    log.lines.clear()
    arrive(harness, 1)
    harness.engines[1].lose_connection()
    harness.advance(15, step=0.5)
    assert log.lines == [("unregistered", "it was lost"), ("evicted", second)]
    log.lines.clear()
    harness.engines[1].reconnect()
    harness.run()
    assert log.lines == [("this node evicted", second), ("registered", harness.factories[1].backplane.node)]  # type: ignore[attr-defined]
    harness.close()


def test_a_wall_clock_that_differs_from_the_store_s_is_logged() -> None:
    log, ahead = RecordedLog(), [0.0]
    harness = Harness(nodes=2, log=log, wall_ahead=lambda: ahead[0])
    log.lines.clear()
    for ahead[0] in (3600.0, 3601.0, 0.0):
        harness.advance(3)
    # Once by each node.
    assert log.lines == [("clocks differ", "-3600")] * 2 + [("clocks differ", "0")] * 2
    harness.close()


# Joining order


def announced_in_order(peer: Peer) -> list[str]:
    """Return the ids in the messages that a peer got, its own included; it got no other messages."""
    welcome, peer_list, *later = peer.heard()
    assert {message["type"] for message in later} <= {"peer-joined"}
    return [
        *(entry["id"] for entry in peer_list["peers"]),
        welcome["selfId"],
        *(message["peerId"] for message in later),
    ]


@pytest.mark.parametrize("seed", range(10))
def test_every_peer_is_announced_in_joining_order_however_joins_on_several_nodes_cross(seed: int) -> None:
    harness, choose = Harness(nodes=3), random.Random(seed)
    peers: list[Peer] = []
    while len(peers) < 150 or any(mover.step() for mover in (*harness.engines, *peers)):
        movers = [*harness.engines, *peers]
        choose.shuffle(movers)
        for mover in movers[: len(movers) // 20 + 1]:
            mover.step()
        if len(peers) < 150:
            peers.append(harness.knock("/ws/room", node=choose.randrange(3)))
        harness.clock.advance(0)
    harness.run()
    in_order = sorted(announced_in_order(peers[0]))
    assert len(in_order) == len(peers)
    assert [order for peer in peers[1:] if (order := announced_in_order(peer)) != in_order] == []


def test_a_relay_from_a_new_peer_waits_until_that_peer_is_announced_to_the_target() -> None:
    harness = Harness(nodes=3)
    target = arrive(harness, 0)
    target.id = target.heard()[0]["selfId"]
    # Ahead of the sender in joining order, and still without an answer when the sender has its own.
    ask(first := harness.knock("/ws/room", node=0))
    sender = harness.knock("/ws/room", node=1)
    while not sender.texts:
        for mover in (sender, harness.engines[1]):
            mover.step()
        harness.clock.advance(0)
    message = {"type": "offer", "to": target.id, "payload": "hello"}
    sender.client.send_text(json.dumps(message).encode())
    sender.flush()
    ask(sender)
    harness.engines[1].step()
    harness.run()
    own = sender.heard()[0]["selfId"]
    heard = [message for message in target.heard() if own in (message.get("peerId"), message.get("from"))]
    assert [message["type"] for message in heard] == ["peer-joined", "offer"]
    assert first.heard()[0]["type"] == "welcome"
