"""The store, as one node of a cluster uses it: its scripts, what they reply, and messages to other nodes.

Replies are parsed here and nowhere else. A callback gets None if the result is not known: there was no connection or no
reply, this node has been evicted (its next heartbeat says so), or the reply made no sense, which is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from twisted.logger import Logger

from signaling.backplane.interfaces import Engine, EngineListener
from signaling.backplane.messages import Member, Message, Version, encode, parse_member, parse_version
from signaling.limits import Limits

# What is stored outlives the latest heartbeat of its nodes by this.
KEEP_SECONDS = 3600
# Peers in one call of ``evict``: the store runs one script at a time, and a node may have had ten thousand.
_MAX_EVICTED_AT_ONCE = 200

_log = Logger()
_T = TypeVar("_T")


class Keys:
    """The names of the keys and channels of a cluster.

    Args:
        prefix: of every name, so that clusters can share a store.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.nodes = self.prefix + b"nodes"

    def topic(self, name: bytes) -> list[bytes]:
        """Return the keys of a topic's members and of its state."""
        return [self.prefix + b"members:" + name, self.prefix + b"state:" + name]

    def index(self, node: bytes) -> bytes:
        """Return the key of the set of topics in which a node has members."""
        return self.prefix + b"topics:" + node

    def tombstone(self, node: bytes) -> bytes:
        """Return the key that exists if a node has been evicted."""
        return self.prefix + b"tombstone:" + node

    def channel(self, node: bytes) -> bytes:
        """Return the channel of a node."""
        return self.prefix + b"node:" + node


class Snapshot(NamedTuple):
    """The members of a topic: the reply to ``join``, ``sync`` or ``move`` if it did what it was asked for.

    Args:
        removed: by ``sync``: what the store had listed as peers of this node, and are not.
    """

    version: Version
    members: dict[str, Member]
    removed: Sequence[str] = ()


class Gone(NamedTuple):
    """The reply to ``move`` if the old node does not have the peer any more."""


class IdTooSmall(NamedTuple):
    """The id of a peer that wants to join is not greater than all in its topic: another node's clock is ahead."""

    greatest: str


class TopicFull(Enum):
    """A topic takes no further peer; which limit it has reached."""

    PEERS = b"peers"
    BYTES = b"bytes"


class UpdateReply(Enum):
    """The reply to ``update``."""

    UPDATED = b"updated"
    GONE = b"gone"
    """This node does not have the peer, for the store."""
    FULL = b"full"
    """The list of the topic would be too long."""


class Evicted:
    """The reply to a heartbeat of a node that has been evicted."""


class Departure(Enum):
    """What became of a topic whose peer left."""

    OPEN = 0
    """It has other peers; or nobody knew the peer."""
    CLOSED = 1
    """It has no peer left."""
    ELSEWHERE = 2
    """Another node has the peer, which stays."""


class RemovedMember(NamedTuple):
    """A member of an evicted node, which was removed.

    Args:
        was_last: whether it was the last of its topic.
    """

    topic: str
    peer: str
    metadata: bytes | None
    was_last: bool


class Eviction(NamedTuple):
    """How far the eviction of a node is.

    Args:
        topics_left: in which the node may have members.
        removed: the members that were removed now; empty unless ``Store.lists_evicted``.
    """

    topics_left: int
    removed: list[RemovedMember]


class Alive(NamedTuple):
    """The reply to a heartbeat.

    Args:
        previous: the number of this node's heartbeat before; 0 if the store knew none.
        milliseconds: the store's clock.
        heartbeats: the latest number of each node's heartbeat, as text.
        topics: in which the store has members of this node; empty unless the node asked for them.
    """

    previous: int
    milliseconds: int
    heartbeats: dict[str, bytes]
    topics: list[str]


class Store:
    """The scripts and channels of a cluster.

    Args:
        engine: shared by all nodes.
        keys: the names in the store.
        limits: of a topic, over all nodes.
        node: the id of this node.

    Attributes:
        node: the id of this node.
        former_nodes: the ids that it had before it was evicted.
        replies: how many replies have come.
        lists_evicted: whether the reply to ``evict`` lists the members that were removed.
    """

    def __init__(self, engine: Engine, keys: Keys, limits: Limits, node: str) -> None:
        self._engine = engine
        self._keys = keys
        self._max_peer_list_bytes = b"%d" % limits.max_peer_list_bytes
        self.node = self._previous_node = node
        self.former_nodes: set[str] = set()
        self.replies = 0
        self.lists_evicted = False

    def rename(self, node: str) -> None:
        """Use another id of this node from now on."""
        self.former_nodes.add(self.node)
        self._previous_node, self.node = self.node, node

    def connect(self, listener: EngineListener) -> None:
        """Connect, or connect again, and listen to this node's channel."""
        self._engine.connect(self._keys.channel(self.node.encode()), listener)

    def disconnect(self) -> None:
        """End the connection; the listener is not called any more."""
        self._engine.disconnect()

    # Topics

    def join(
        self,
        topic: str,
        peer: str,
        metadata: bytes | None,
        max_peers: int,
        done: Callable[[Snapshot | IdTooSmall | TopicFull | None], None],
    ) -> None:
        """Add a peer to a topic, unless that has ``max_peers`` already."""

        def parse(reply: list[Any]) -> Snapshot | IdTooSmall | TopicFull:
            if reply[0] == b"behind":
                return IdTooSmall(reply[1].decode())
            return TopicFull(reply[1]) if reply[0] == b"full" else _snapshot(b"joined", reply)

        arguments = [b"%d" % KEEP_SECONDS, self.node.encode(), peer.encode(), metadata or b""]
        arguments += [b"%d" % max_peers, self._max_peer_list_bytes]
        self._call_for_topic("join", topic, arguments, parse, done)

    def leave(self, topic: str, peer: str, done: Callable[[Departure | None], None]) -> None:
        """Remove a peer of this node."""
        arguments = [self.node.encode(), peer.encode()]
        self._call_for_topic("leave", topic, arguments, lambda reply: Departure(reply[1]), done)

    def update(self, topic: str, peer: str, metadata: bytes, done: Callable[[UpdateReply | None], None]) -> None:
        """Replace the metadata of a peer of this node."""
        arguments = [self.node.encode(), peer.encode(), metadata, self._max_peer_list_bytes]
        self._call_for_topic("update", topic, arguments, lambda reply: UpdateReply(reply[0]), done)

    def sync(self, topic: str, own: Sequence[tuple[str, bytes]], done: Callable[[Snapshot | None], None]) -> None:
        """State which peers this node has in a topic, and get the others.

        Args:
            own: ids, and ``+`` and the metadata, or ``?`` for a peer of which a call has no reply yet.
        """
        arguments = [b"%d" % KEEP_SECONDS, self.node.encode(), self._previous_node.encode()]
        arguments += [part for peer, text in own for part in (peer.encode(), text)]
        self._call_for_topic("sync", topic, arguments, lambda reply: _snapshot(b"synced", reply), done)

    def move(self, topic: str, peer: str, old_node: str, done: Callable[[Snapshot | Gone | None], None]) -> None:
        """Move a peer to this node."""

        def parse(reply: list[Any]) -> Snapshot | Gone:
            return Gone() if reply[0] == b"gone" else _snapshot(b"moved", reply)

        arguments = [b"%d" % KEEP_SECONDS, self.node.encode(), old_node.encode(), peer.encode()]
        self._call_for_topic("move", topic, arguments, parse, done, self._keys.index(old_node.encode()))

    def _call_for_topic(
        self,
        script: str,
        topic: str,
        arguments: Sequence[bytes],
        parse: Callable[[list[Any]], _T],
        done: Callable[[_T | None], None],
        *keys: bytes,
    ) -> None:
        name = topic.encode()
        all_keys = [*self._keys.topic(name), self._keys.index(self.node.encode()), *keys]
        self._call(script, all_keys, [self._keys.prefix, name, *arguments], parse, done)

    # Nodes

    def heartbeat(self, number: int, *, registers: bool, done: Callable[[Alive | Evicted | None], None]) -> None:
        """Send a heartbeat; a node that registers also gets the topics in which it has members."""

        def parse(reply: list[Any]) -> Alive | Evicted:
            if reply[0] == b"evicted":
                return Evicted()
            _, previous, milliseconds, nodes, topics = reply
            heartbeats = dict(zip([node.decode() for node in nodes[::2]], nodes[1::2], strict=True))
            return Alive(int(previous or 0), int(milliseconds), heartbeats, [topic.decode() for topic in topics])

        arguments = [b"%d" % KEEP_SECONDS, self.node.encode(), b"%d" % number, b"%d" % registers, self._keys.prefix]
        self._call("heartbeat", self._node_keys(self.node), arguments, parse, done)

    def evict(self, node: str, heartbeat: bytes, done: Callable[[Eviction | None], None]) -> None:
        """Evict a node, or go on with that.

        Args:
            heartbeat: the node's latest as it was seen; empty for none.
            done: gets None as well if the node is alive.
        """

        def parse(reply: list[Any]) -> Eviction | None:
            return None if reply[0] == b"alive" else Eviction(int(reply[1]), _removed_members(reply[2]))

        limit, lists = b"%d" % _MAX_EVICTED_AT_ONCE, b"%d" % self.lists_evicted
        arguments = [self._keys.prefix, b"%d" % KEEP_SECONDS, node.encode(), heartbeat, limit, lists]
        self._call("evict", self._node_keys(node), arguments, parse, done)

    def deregister(self, done: Callable[[bool | None], None]) -> None:
        """Remove this node, which shuts down."""
        node = self.node.encode()
        keys, arguments = [self._keys.nodes, self._keys.index(node)], [node, self._keys.prefix]
        self._call("deregister", keys, arguments, _completed, done)

    def send(self, node: str, message: Message, done: Callable[[int | None], None] | None = None) -> None:
        """Send a message to another node; ``done`` gets the number of listeners, or None if that is not known."""
        # No-op by default: if the answer matters, the sender asks again.
        self._engine.publish(self._keys.channel(node.encode()), encode(message), done or (lambda listeners: None))

    def broadcast(self, message: Message, done: Callable[[dict[str, int] | None], None]) -> None:
        """Send a message to all other nodes at once.

        Args:
            done: gets the other nodes, and how many listeners the channel of each has.
        """

        def parse(reply: list[Any]) -> dict[str, int]:
            return {node.decode(): int(count) for node, count in zip(reply[1::2], reply[2::2], strict=True)}

        arguments = [self._keys.prefix, self.node.encode(), encode(message)]
        self._call("broadcast", [self._keys.nodes], arguments, parse, done)

    def _node_keys(self, node: str) -> list[bytes]:
        name = node.encode()
        return [self._keys.nodes, self._keys.tombstone(name), self._keys.index(name)]

    def _call(
        self,
        script: str,
        keys: Sequence[bytes],
        arguments: Sequence[bytes],
        parse: Callable[[list[Any]], _T],
        done: Callable[[_T | None], None],
    ) -> None:
        def replied(reply: list[Any] | None) -> None:
            result: _T | None = None
            if reply is not None:
                self.replies += 1
                try:
                    result = None if reply == [b"evicted"] and script != "heartbeat" else parse(reply)
                except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                    _log.failure("the reply of {script} is not understood", script=script)
            done(result)

        self._engine.call(script, keys, arguments, replied)


def _completed(_: list[Any]) -> bool:
    return True


def _removed_members(parts: list[Any]) -> list[RemovedMember]:
    fours = zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True)
    return [
        RemovedMember(topic.decode(), peer.decode(), parse_member(value).metadata, was_last == 1)
        for topic, peer, value, was_last in fours
    ]


def _snapshot(status: bytes, reply: list[Any]) -> Snapshot:
    found, gen, seq, stored, *removed = reply
    if found != status:
        raise ValueError(f"{found!r} in place of {status!r}")
    members = {peer.decode(): parse_member(value) for peer, value in zip(stored[::2], stored[1::2], strict=True)}
    return Snapshot(parse_version(gen.decode(), seq), members, [peer.decode() for peer in (removed or [()])[0]])
