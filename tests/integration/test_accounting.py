"""Whatever peers do, every relay is written or answered, in order, and everyone knows who is there.

A machine drives a server with peers that join, leave, stall, resume, disappear, flood and send invalid messages, and
compares what the server wrote with a model. ``make test`` runs a hundred examples; for more::

    python -m pytest tests/integration/test_accounting.py --hypothesis-profile=thorough --timeout=900
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from websockets.frames import Frame, Opcode

from tests.harness.delivery_log import DeliveryLog
from tests.integration.harness import Harness, Peer

TOPICS = ("a", "b")
NONSENSE = ("?", "[]", '{"type":"bye"}', '{"type":"offer"}', '{"type":"offer","to":"nobody"}', '{"type":1}')
VIOLATION = bytes([0x83, 0x80, 0, 0, 0, 0])

some = st.integers(0, 99)


class Accounting(RuleBasedStateMachine):
    """A server, its peers, and what has to be true of them."""

    SETUPS: tuple[dict[str, Any], ...] = ({}, {"site": True})

    @initialize(setup=some)
    def start(self, setup: int) -> None:
        self.harness = Harness(
            **self.SETUPS[setup % len(self.SETUPS)],
            buffer_bytes=3000,
            high_water_messages=3,
            high_water_bytes=4000,
            max_message_bytes=4000,
            max_peers_per_topic=6,
        )
        self.peers: list[Peer] = []
        self.topic: dict[Peer, str] = {}
        self.log = DeliveryLog()
        self.ended: set[Peer] = set()
        self.missed_events: set[Peer] = set()
        self.known: dict[Peer, set[str]] = {}
        self.seen: Counter[Peer] = Counter()
        self.dropped = 0

    @property
    def there(self) -> list[Peer]:
        return [peer for peer in self.peers if not peer.lost]

    @property
    def talking(self) -> list[Peer]:
        return [peer for peer in self.there if peer not in self.ended]

    # What peers do

    @rule(topic=st.sampled_from(TOPICS), metadata=st.sampled_from([None, {"name": "Ada"}]))
    def join(self, topic: str, metadata: Any) -> None:
        full = sum(self.topic[peer] == topic for peer in self.there) == self.harness.limits.max_peers_per_topic
        query = "?metadata=%7B%22name%22%3A%22Ada%22%7D" if metadata else ""
        peer = self.harness.peer(f"/ws/{topic}{query}")
        first = json.loads(peer.texts[0])
        if full:
            assert (first["code"], peer.closed) == ("topic_full", 1013)
            return
        assert first["type"] == "welcome"
        peer.id = first["selfId"]
        self.peers.append(peer)
        self.topic[peer] = topic
        self.known[peer] = set()

    @precondition(lambda self: self.talking)
    @rule(sender=some, to=some, count=st.integers(1, 12), size=st.sampled_from([0, 50, 1500]))
    def relay(self, sender: int, to: int, count: int, size: int) -> None:
        from_peer = self.talking[sender % len(self.talking)]
        to_peer = self.peers[to % len(self.peers)]
        messages = []
        for _ in range(count):
            msg_id = self.log.sent(from_peer, to_peer)
            messages.append({"type": "offer", "to": to_peer.id, "payload": "x" * size, "msgId": msg_id})
        from_peer.say_many(messages)

    @precondition(lambda self: self.talking)
    @rule(which=some, text=st.sampled_from(NONSENSE), count=st.integers(1, 30))
    def talk_nonsense(self, which: int, text: str, count: int) -> None:
        peer = self.talking[which % len(self.talking)]
        peer.say_frame(*[Frame(Opcode.TEXT, text.encode())] * count)

    @precondition(lambda self: self.there)
    @rule(which=some)
    def stall(self, which: int) -> None:
        self.there[which % len(self.there)].stall()

    @precondition(lambda self: self.there)
    @rule(which=some)
    def resume(self, which: int) -> None:
        self.there[which % len(self.there)].resume()

    @precondition(lambda self: self.talking)
    @rule(which=some, how=st.sampled_from(["leave", "reset", "hang_up", "go_silent", "violate"]))
    def end(self, which: int, how: str) -> None:
        peer = self.talking[which % len(self.talking)]
        self.ended.add(peer)
        if how == "violate":
            peer.send(VIOLATION)
        else:
            getattr(peer, how)()

    @rule(seconds=st.sampled_from([1, 4, 11, 36]))
    def wait(self, seconds: int) -> None:
        self.harness.advance(seconds, step=0.5)

    # What has to be true

    @invariant()
    def every_frame_that_was_written_is_accounted_for(self) -> None:
        for peer in self.peers:
            texts = peer.transport.texts_written()
            for text in texts[self.seen[peer] :]:
                self._read(peer, json.loads(text))
            self.seen[peer] = len(texts)
        assert not self.log.breaches, self.log.examples
        assert not self.log.count["both"]

    def _read(self, peer: Peer, message: dict[str, Any]) -> None:
        if message["type"] == "peer-list":
            self.known[peer] = {entry["id"] for entry in message["peers"]}
        elif message["type"] == "peer-joined":
            assert message["peerId"] not in self.known[peer]
            self.known[peer].add(message["peerId"])
        elif message["type"] == "peer-left":
            assert message["peerId"] in self.known[peer] or peer in self.missed_events
            self.known[peer].discard(message["peerId"])
        elif message["type"] == "offer":
            self._read_relay(peer, message)
        elif message["type"] == "error" and "msgId" in message:
            self.log.answered(message["msgId"], peer, message["code"])

    def _read_relay(self, peer: Peer, message: dict[str, Any]) -> None:
        relay = self.log.delivered(message["msgId"], peer)
        assert relay is not None
        assert message["from"] == relay.sender.id
        assert self.topic[relay.sender] == self.topic[peer]

    @invariant()
    def the_counters_tell_the_same(self) -> None:
        counters = self.harness.counters
        assert self.harness.relays_written == self.log.count["delivered"]
        assert counters.errors_sent["dropped"] >= self.log.answers["dropped"]
        if not self.ended:
            assert sum(counters.errors_sent.values()) >= self.log.answers.total()

    @invariant()
    def everyone_knows_who_is_there(self) -> None:
        dropped = self.harness.counters.events_dropped
        if dropped != self.dropped:
            # Whose events they were is not told; only those that take nothing can have lost any.
            self.missed_events |= {peer for peer in self.peers if not peer.transport.taking}
            self.dropped = dropped
        for peer in self.talking:
            if peer.transport.taking and peer not in self.missed_events:
                others = {p.id for p in self.there if self.topic[p] == self.topic[peer]} - {peer.id}
                assert self.known[peer] == others

    @invariant()
    def no_topic_outlives_its_last_peer(self) -> None:
        assert self.harness.topics == Counter(self.topic[peer] for peer in self.there)

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        # Then those that ended: a relay to one that takes nothing has no end before the server cuts it off. They come
        # last, so that no event of their end is dropped.
        for peer in (*self.talking, *self.there):
            peer.resume()
        self.every_frame_that_was_written_is_accounted_for()
        for peer in self.talking:
            assert not self.log.open(peer)
        self.everyone_knows_who_is_there()
        self.the_counters_tell_the_same()
        self.harness.drain()
        self.harness.advance(11)
        assert not self.harness.open_connections
        assert len(self.harness.topics) == 0
        self.every_frame_that_was_written_is_accounted_for()
        assert self.harness.relays_written == self.log.count["delivered"]
        assert self.harness.relays_queued == 0


TestAccounting = pytest.mark.unmeasured(Accounting.TestCase)
TestAccounting.settings = settings(settings.default, stateful_step_count=40)


class AccountingOverNodes(Accounting):
    """The same over nodes of a cluster: who comes later is on another node."""

    SETUPS = ({"nodes": 3},)


TestAccountingOverNodes = pytest.mark.cluster(pytest.mark.unmeasured(AccountingOverNodes.TestCase))
TestAccountingOverNodes.settings = TestAccounting.settings
