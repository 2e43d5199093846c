"""The model of the store and a real one do the same: replies, publications and what is stored in the end."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from signaling.backplane.store import Keys
from tests.harness.redis import redis_running
from tests.harness.redis_client import RedisClient
from tests.simulator.store import ModelStore

KEYS = Keys("it:")
NODES = [b"node-%011d" % number for number in range(4)]
TOPICS = [b"a", b"room with\nlines 7", "größe".encode()]
METADATA = [b"", b'{"name":"Ada"}', b'{"x":"' + b"y" * 30 + b'"}']
SECONDS = [b"60", b"600"]
SEQUENCES = 150
STEPS = 60


class Real:
    """The real store, and listeners to its channels."""

    def __init__(self, client: RedisClient, path: str) -> None:
        self.client = client
        self._listeners = {}
        for node in NODES:
            self._listeners[node] = listener = RedisClient(path)
            listener.command("SUBSCRIBE", KEYS.channel(node))
        client.command("FLUSHALL")

    def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()

    def received(self, node: bytes) -> list[bytes]:
        """Read what was published on a node's channel since the last time."""
        self.client.command("PUBLISH", KEYS.channel(node), b"fence")
        return list(iter(lambda: self._listeners[node].read()[2], b"fence"))

    def dump(self) -> dict[bytes, Any]:
        return {key: (self._value(key), self._left(key)) for key in self.client.command("KEYS", b"*")}

    def _left(self, key: bytes) -> int | None:
        left = self.client.command("TTL", key)
        return None if left < 0 else left

    def _value(self, key: bytes) -> Any:
        kind = self.client.command("TYPE", key)
        if kind == b"hash":
            return pairs(self.client.command("HGETALL", key))
        return set(self.client.command("SMEMBERS", key)) if kind == b"set" else self.client.command("GET", key)

    def pass_time(self, seconds: int) -> None:
        """Bring all ends of keys nearer: a real store's clock cannot be set."""
        for key in self.client.command("KEYS", b"*"):
            left = self._left(key)
            if left is not None:
                # A time that is not positive deletes.
                self.client.command("EXPIRE", key, left - seconds)


class Model:
    """The model, and listeners to its channels."""

    def __init__(self) -> None:
        self.now = 1_000.000001
        self._received: dict[bytes, list[bytes]] = {KEYS.channel(node): [] for node in NODES}
        self.store = ModelStore(lambda: self.now, self._publish)

    def _publish(self, channel: bytes, data: bytes) -> int:
        if channel not in self._received:
            return 0
        self._received[channel].append(data)
        return 1

    def received(self, node: bytes) -> list[bytes]:
        received, self._received[KEYS.channel(node)] = self._received[KEYS.channel(node)], []
        return received


class Gens:
    """Names the moments at which topics were made by their order: no two clocks agree on the moments."""

    def __init__(self) -> None:
        self._names: dict[bytes, bytes] = {b"": b""}

    def name(self, gen: bytes) -> bytes:
        return self._names.setdefault(gen, b"gen%d" % len(self._names))

    def event(self, text: bytes) -> bytes:
        kind, gen, rest = text.split(b" ", 2)
        return b" ".join([kind, self.name(gen), rest])

    def reply(self, reply: list[Any]) -> list[Any]:
        if reply[0] in (b"joined", b"synced", b"moved"):
            return [reply[0], self.name(reply[1]), *reply[2:]]
        if reply[0] == b"evicted" and len(reply) > 1:
            # The order of topics is the store's choice.
            parts = reply[2]
            return [*reply[:2], sorted(zip(*(parts[at::4] for at in range(4)), strict=True))]
        # A heartbeat's time is another one.
        return [*reply[:2], None, reply[3], sorted(reply[4])] if reply[0] == b"alive" and len(reply) > 1 else reply

    def dump(self, dump: dict[bytes, Any]) -> dict[bytes, Any]:
        return {
            key: ({**value, b"gen": self.name(value[b"gen"])} if b"state:" in key else value, left)
            for key, (value, left) in dump.items()
        }


def pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Both:
    """Runs everything on both and compares."""

    def __init__(self, real: Real, random: Random) -> None:
        self.real, self.model = real, Model()
        self._gens = Gens(), Gens()
        self._random = random
        self._ids = 0
        self._latest = dict.fromkeys(NODES, b"")

    def step(self) -> None:
        names = (
            ["join"] * 6
            + ["leave"] * 3
            + ["update"] * 3
            + ["sync"] * 3
            + ["move"] * 3
            + ["heartbeat"] * 3
            + ["evict", "deregister", "broadcast", "wait"]
        )
        getattr(self, self._random.choice(names))()

    def run(self, script: str, keys: list[bytes], *arguments: bytes) -> list[Any]:
        # Two topics of one moment would have one name.
        self.model.now += 0.000001
        real = self._gens[0].reply(self.real.client.script(script, keys, arguments))
        model = self._gens[1].reply(self.model.store.run(script, keys, arguments))
        assert model == real, script
        return model

    def compare(self) -> None:
        for node in NODES:
            real = [self._gens[0].event(text) for text in self.real.received(node)]
            assert [self._gens[1].event(text) for text in self.model.received(node)] == real
        real_dump, model_dump = self._gens[0].dump(self.real.dump()), self._gens[1].dump(self.model.store.dump())
        assert {key: value for key, (value, _) in model_dump.items()} == {
            k: value for k, (value, _) in real_dump.items()
        }
        for key, (_, left) in model_dump.items():
            assert left == pytest.approx(real_dump[key][1], abs=5), key

    def _topic(self) -> bytes:
        return self._random.choice(TOPICS)

    def _node(self) -> bytes:
        return self._random.choice(NODES)

    def _peer(self) -> bytes:
        return b"01PEER%020d" % self._random.randint(max(0, self._ids - 8), self._ids)

    def _seconds(self) -> bytes:
        return self._random.choice(SECONDS)

    def join(self) -> None:
        topic, node = self._topic(), self._node()
        self._ids += self._random.choice([0, 1, 1, 2])
        keys = [*KEYS.topic(topic), KEYS.index(node)]
        most = self._random.choice([(b"4", b"1000"), (b"100", b"200"), (b"100", b"100000")])
        peer = b"01PEER%020d" % self._ids
        self.run("join", keys, KEYS.prefix, topic, self._seconds(), node, peer, self._random.choice(METADATA), *most)

    def leave(self) -> None:
        topic, node = self._topic(), self._node()
        self.run("leave", [*KEYS.topic(topic), KEYS.index(node)], KEYS.prefix, topic, node, self._peer())

    def update(self) -> None:
        topic, node = self._topic(), self._node()
        keys = [*KEYS.topic(topic), KEYS.index(node)]
        most = self._random.choice([b"100", b"200", b"100000"])
        metadata = self._random.choice(METADATA[1:])
        self.run("update", keys, KEYS.prefix, topic, node, self._peer(), metadata, most)

    def sync(self) -> None:
        topic, node = self._topic(), self._node()
        former = self._random.choice([node, self._node(), b""])
        peers = sorted({self._peer() for _ in range(self._random.randint(0, 4))})
        own = [text for peer in peers for text in (peer, self._random.choice([b"+", b'+{"name":"Eve"}', b"?"]))]
        keys = [*KEYS.topic(topic), KEYS.index(node)]
        self.run("sync", keys, KEYS.prefix, topic, self._seconds(), node, former, *own)

    def move(self) -> None:
        topic, (node, old) = self._topic(), self._random.sample(NODES, 2)
        keys = [*KEYS.topic(topic), KEYS.index(node), KEYS.index(old)]
        self.run("move", keys, KEYS.prefix, topic, self._seconds(), node, old, self._peer())

    def heartbeat(self) -> None:
        node, wants = self._node(), self._random.choice([b"0", b"1"])
        number = b"%d" % self._random.randint(1, 9)
        keys = [KEYS.nodes, KEYS.tombstone(node), KEYS.index(node)]
        reply = self.run("heartbeat", keys, self._seconds(), node, number, wants, KEYS.prefix)
        if reply[0] == b"alive":
            self._latest[node] = number

    def evict(self) -> None:
        node = self._node()
        seen = self._random.choice([self._latest[node], self._latest[node], b"0", b""])
        keys = [KEYS.nodes, KEYS.tombstone(node), KEYS.index(node)]
        # The order of topics is the store's choice: what matters is the end of an eviction, and one of a single topic.
        topics = len(self.model.store.dump().get(KEYS.index(node), (set(), None))[0])
        lists = self._random.choice([b"0", b"1"])
        arguments = [KEYS.prefix, self._seconds(), node, seen, b"1" if topics < 2 else b"1000", lists]
        self.compare()
        while (reply := self.run("evict", keys, *arguments))[0] != b"alive" and reply[1]:
            pass
        if topics > 1:
            self._compare_by_topic()

    def _compare_by_topic(self) -> None:
        for node in NODES:
            received = [
                sorted((text.partition(b"\n")[2], text) for text in map(gens.event, side.received(node)))
                for gens, side in zip(self._gens, (self.real, self.model), strict=True)
            ]
            assert received[0] == received[1]

    def deregister(self) -> None:
        node = self._node()
        self.run("deregister", [KEYS.nodes, KEYS.index(node)], node, KEYS.prefix)

    def broadcast(self) -> None:
        self.run("broadcast", [KEYS.nodes], KEYS.prefix, self._node(), b"query 1.1 what")

    def wait(self) -> None:
        seconds = self._random.choice([20, 70])
        self.real.pass_time(seconds)
        self.model.now += seconds


def test_the_model_does_what_the_store_does() -> None:
    with redis_running(unix=True) as server:
        client = RedisClient(server.socket)
        real = Real(client, server.socket)
        for seed in range(SEQUENCES):
            client.command("FLUSHALL")
            both = Both(real, Random(seed))
            for _ in range(STEPS):
                both.step()
            both.compare()
        real.close()
        client.close()
