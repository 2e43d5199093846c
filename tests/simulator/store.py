"""A model of the store: what ``signaling/backplane/redis/lua`` does, in Python and without a server.

``tests/simulator/test_store.py`` runs both beside each other. The scripts are written down as in Lua, command by
command, so that a reader can lay one beside the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from random import Random
from typing import Any, NamedTuple

NODE = 16


class _Set(dict[bytes, None]):
    """A set whose order is the same in every run."""


class _Topic(NamedTuple):
    """A topic, and the keys that a script was given for it."""

    prefix: bytes
    name: bytes
    members: bytes
    state: bytes
    index: bytes


class ModelStore:
    """A store that runs a cluster's scripts.

    Args:
        seconds: the store's clock, in seconds.
        publish: hands data to the subscribers of a channel; returns how many there are.
        random: chooses if the store would.
    """

    def __init__(
        self,
        seconds: Callable[[], float],
        publish: Callable[[bytes, bytes], int],
        random: Random | None = None,
    ) -> None:
        self._latest = 0
        self._seconds = seconds
        self.publish = publish
        self._random = random or Random(0)
        self._data: dict[bytes, Any] = {}
        self._ends: dict[bytes, float] = {}
        self._scripts: dict[str, Callable[[Any, Any], list[Any]]] = {
            "join": self._join,
            "leave": self._leave,
            "update": self._update,
            "sync": self._sync,
            "move": self._move,
            "heartbeat": self._heartbeat,
            "evict": self._evict,
            "deregister": self._deregister,
            "broadcast": self._broadcast,
        }

    def run(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        """Run a script; returns its reply."""
        self._expire()
        return self._scripts[script](keys, arguments)

    def dump(self) -> dict[bytes, tuple[Any, int | None]]:
        """Return all that is stored, and how many seconds each key has left, None if it stays."""
        self._expire()
        return {key: (_plain(value), self._left(key)) for key, value in self._data.items()}

    def save(self) -> Any:
        """Return a copy of all that is stored, for ``load``."""
        return {key: copy(value) for key, value in self._data.items()}, dict(self._ends)

    def load(self, saved: Any) -> None:
        """Store what was saved, and nothing else; None is nothing at all."""
        self._data, self._ends = saved if saved is not None else ({}, {})

    def _left(self, key: bytes) -> int | None:
        return round(self._ends[key] - self._seconds()) if key in self._ends else None

    def _expire(self) -> None:
        now = self._seconds()
        for key in [key for key, end in self._ends.items() if end <= now]:
            self._delete(key)

    # Commands

    def _delete(self, key: bytes) -> None:
        self._data.pop(key, None)
        self._ends.pop(key, None)

    def _hset(self, key: bytes, field: bytes, value: bytes) -> None:
        self._data.setdefault(key, {})[field] = value

    def _sadd(self, key: bytes, member: bytes) -> None:
        self._data.setdefault(key, _Set())[member] = None

    def _hget(self, key: bytes, field: bytes) -> bytes | None:
        return self._data.get(key, {}).get(field)

    def _hgetall(self, key: bytes) -> list[bytes]:
        return [text for pair in self._data.get(key, {}).items() for text in pair]

    def _hdel(self, key: bytes, field: bytes) -> None:
        fields = self._data.get(key)
        if fields is not None:
            fields.pop(field, None)
            if not fields:
                self._delete(key)

    _srem = _hdel

    def _hincrby(self, key: bytes, field: bytes, by: int) -> int:
        value = int(self._hget(key, field) or 0) + by
        self._hset(key, field, b"%d" % value)
        return value

    def _expire_after(self, seconds: bytes, *keys: bytes) -> None:
        for key in keys:
            if key in self._data:
                self._ends[key] = self._seconds() + int(seconds)

    def _time(self) -> tuple[int, int]:
        # No two scripts of a real store run in the same microsecond.
        micros = self._latest = max(self._latest + 1, round(self._seconds() * 1_000_000))
        return micros // 1_000_000, micros % 1_000_000

    # The prelude

    def _publish_event(self, topic: _Topic, kind: bytes, peer: bytes, value: bytes) -> bytes:
        text = self._event(topic, kind, peer, value)
        self._send_to_members(topic, text)
        return text

    def _send_to_members(self, topic: _Topic, text: bytes, also: bytes | None = None) -> None:
        nodes = [field[1:] for field in self._data.get(topic.state, {}) if field[:1] == b"@"]
        for node in nodes if also is None or also in nodes else [*nodes, also]:
            self._send(topic.prefix, node, text)

    def _send(self, prefix: bytes, node: bytes, text: bytes) -> None:
        self._hincrby(prefix + b"sent", node, 1)
        self.publish(prefix + b"node:" + node, text)

    def _event(self, topic: _Topic, kind: bytes, peer: bytes, value: bytes) -> bytes:
        gen, seq = self._hget(topic.state, b"gen"), self._hincrby(topic.state, b"seq", 1)
        assert gen is not None
        head = b" ".join([kind, gen, b"%d" % seq, peer, b"%d" % len(topic.name)])
        return head + b"\n" + topic.name + value

    def _count(self, topic: _Topic, node: bytes, by: int) -> bool:
        if self._hincrby(topic.state, b"@" + node, by) <= 0:
            self._hdel(topic.state, b"@" + node)
            return False
        return True

    def _add(self, topic: _Topic, peer: bytes, value: bytes) -> None:
        if self._hget(topic.state, b"seq") is None:
            self._hset(topic.state, b"seq", b"0")
            self._hset(topic.state, b"gen", b"%d.%d" % self._time())
        self._hset(topic.members, peer, value)
        self._hincrby(topic.state, b"bytes", listed_bytes(value))
        self._count(topic, value[:NODE], 1)
        self._sadd(topic.index, topic.name)
        last = self._hget(topic.state, b"last")
        if last is None or peer > last:
            self._hset(topic.state, b"last", peer)

    def _replace(self, topic: _Topic, peer: bytes, before: bytes, value: bytes) -> None:
        self._hset(topic.members, peer, value)
        self._hincrby(topic.state, b"bytes", listed_bytes(value) - listed_bytes(before))

    def _remove(self, topic: _Topic, peer: bytes, value: bytes) -> bool:
        self._hdel(topic.members, peer)
        self._hincrby(topic.state, b"bytes", -listed_bytes(value))
        if not self._count(topic, value[:NODE], -1):
            self._srem(topic.index, topic.name)
        if topic.members not in self._data:
            self._delete(topic.state)
            return False
        return True

    def _snapshot(self, status: bytes, topic: _Topic) -> list[Any]:
        gen, seq = self._hget(topic.state, b"gen") or b"", self._hget(topic.state, b"seq") or b"0"
        return [status, gen, seq, self._hgetall(topic.members)]

    # The scripts

    def _join(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        prefix, name, seconds, node, peer, metadata, most_peers, most_bytes = arguments
        topic = _Topic(prefix, name, *keys)
        value = node + metadata
        if prefix + b"tombstone:" + node in self._data:
            return [b"evicted"]
        last = self._hget(topic.state, b"last")
        if last is not None and peer <= last:
            return [b"behind", last]
        if len(self._data.get(topic.members, ())) >= int(most_peers):
            return [b"full", b"peers"]
        if int(self._hget(topic.state, b"bytes") or 0) + listed_bytes(value) > int(most_bytes):
            return [b"full", b"bytes"]
        self._add(topic, peer, value)
        self._publish_event(topic, b"joined", peer, value)
        self._expire_after(seconds, *keys)
        return self._snapshot(b"joined", topic)

    def _leave(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        prefix, name, node, peer = arguments
        topic = _Topic(prefix, name, *keys)
        value = self._hget(topic.members, peer)
        if value is None or value[:NODE] != node:
            return [b"left", 0 if value is None else 2]
        has_more = self._remove(topic, peer, value)
        if has_more:
            self._publish_event(topic, b"left", peer, b"")
        return [b"left", int(not has_more)]

    def _update(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        prefix, name, node, peer, metadata, most_bytes = arguments
        topic = _Topic(prefix, name, *keys)
        value = node + metadata
        if prefix + b"tombstone:" + node in self._data:
            return [b"evicted"]
        before = self._hget(topic.members, peer)
        if before is None or before[:NODE] != node:
            return [b"gone"]
        longer = listed_bytes(value) - listed_bytes(before)
        if longer > 0 and int(self._hget(topic.state, b"bytes") or 0) + longer > int(most_bytes):
            return [b"full", b"bytes"]
        self._replace(topic, peer, before, value)
        self._publish_event(topic, b"updated", peer, value)
        return [b"updated"]

    def _sync(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        prefix, name, seconds, node, former = arguments[:5]
        topic = _Topic(prefix, name, *keys)
        if prefix + b"tombstone:" + node in self._data:
            return [b"evicted"]
        peers = dict(zip(arguments[5::2], arguments[6::2], strict=True))
        own = {peer: node + metadata[1:] for peer, metadata in peers.items() if metadata[:1] == b"+"}
        unsure = {peer for peer, metadata in peers.items() if metadata[:1] != b"+"}
        removed = []
        for peer, value in list(self._data.get(topic.members, {}).items()):
            of = value[:NODE]
            if peer in own and of == former and of != node:
                self._replace(topic, peer, value, own[peer])
                if not self._count(topic, former, -1):
                    self._srem(prefix + b"topics:" + former, name)
                self._count(topic, node, 1)
                self._sadd(topic.index, name)
                self._publish_event(topic, b"moved", peer, own[peer])
            elif peer in own and of == node and own[peer] != value:
                self._replace(topic, peer, value, own[peer])
                self._publish_event(topic, b"updated", peer, own[peer])
            elif of in (node, former) and not (peer in own or peer in unsure):
                text = self._event(topic, b"left", peer, b"")
                self._remove(topic._replace(index=prefix + b"topics:" + of), peer, value)
                self._send_to_members(topic, text, node)
                removed.append(peer)
            own.pop(peer, None)
        for peer in peers:
            if peer in own:
                self._add(topic, peer, own[peer])
                self._publish_event(topic, b"joined", peer, own[peer])
        self._expire_after(seconds, *keys)
        return [*self._snapshot(b"synced", topic), removed]

    def _move(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        *own_keys, old_index = keys
        prefix, name, seconds, node, old, peer = arguments
        topic = _Topic(prefix, name, *own_keys)
        if prefix + b"tombstone:" + node in self._data:
            return [b"evicted"]
        value = self._hget(topic.members, peer)
        if value is None or value[:NODE] != old:
            return [b"gone"]
        value = node + value[NODE:]
        self._hset(topic.members, peer, value)
        has_more = self._count(topic, old, -1)
        if not has_more:
            self._srem(old_index, name)
        self._count(topic, node, 1)
        self._sadd(topic.index, name)
        text = self._publish_event(topic, b"moved", peer, value)
        if not has_more:
            self._send(prefix, old, text)
        self._expire_after(seconds, *own_keys)
        return self._snapshot(b"moved", topic)

    def _heartbeat(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        nodes, tombstone, index = keys
        seconds, node, number, registers, prefix = arguments
        sent = prefix + b"sent"
        if tombstone in self._data:
            return [b"evicted"]
        before = self._hget(nodes, node) or b""
        self._hset(nodes, node, number)
        self._expire_after(seconds, nodes, index, sent)
        events = self._hget(sent, node) or b"0"
        self.publish(prefix + b"node:" + node, b"heartbeat %b %b" % (number, events))
        whole, micros = self._time()
        topics = list(self._data.get(index, ())) if registers == b"1" else []
        return [b"alive", before, whole * 1000 + micros // 1000, self._hgetall(nodes), topics]

    def _evict(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        nodes, tombstone, index = keys
        prefix, seconds, node, seen, _, lists = arguments
        most = int(arguments[4])
        removed: list[Any] = []
        if tombstone not in self._data:
            if (self._hget(nodes, node) or b"") != seen:
                return [b"alive"]
            self._data[tombstone] = b"1"
            self._expire_after(seconds, tombstone)
            self._hdel(nodes, node)
        while most > 0 and index in self._data:
            name = self._random.choice(list(self._data[index]))
            topic = _Topic(prefix, name, prefix + b"members:" + name, prefix + b"state:" + name, index)
            for peer, value in list(self._data.get(topic.members, {}).items()):
                if most > 0 and value[:NODE] == node:
                    most -= 1
                    has_more = self._remove(topic, peer, value)
                    if has_more:
                        self._publish_event(topic, b"left", peer, b"")
                    if lists == b"1":
                        removed += [name, peer, value, int(not has_more)]
            if most > 0:
                self._srem(index, name)
        left = len(self._data.get(index, ()))
        if not left:
            self._hdel(prefix + b"sent", node)
        return [b"evicted", left, removed]

    def _deregister(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        nodes, index = keys
        node, prefix = arguments
        if index not in self._data:
            self._hdel(nodes, node)
            self._hdel(prefix + b"sent", node)
        return [b"deregistered"]

    def _broadcast(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        [nodes] = keys
        prefix, node, message = arguments
        others = [other for other in self._data.get(nodes, {}) if other != node]
        counts = [part for other in others for part in (other, self.publish(prefix + b"node:" + other, message))]
        return [b"sent", *counts]


def listed_bytes(value: bytes) -> int:
    """Tell how long a member's entry in a ``peer-list`` is, as ``prelude.lua`` does."""
    metadata = len(value) - NODE
    return 36 + (metadata + 12 if metadata > 0 else 0)


def _plain(value: Any) -> Any:
    return set(value) if isinstance(value, _Set) else dict(value) if isinstance(value, dict) else value
