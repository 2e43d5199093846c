"""What a node asks of the store and of other nodes, by the names that things have there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from signaling.backplane.interfaces import Engine, Reply
from signaling.backplane.membership import KEEP_SECONDS, Registration
from signaling.backplane.messages import Message, encode
from signaling.backplane.redis.scripts import Keys


class Store:
    """The engine, as one node uses it.

    Args:
        engine: that all nodes share.
        keys: name what is in the store.
        registration: knows this node's id, and whether the engine serves it.
    """

    def __init__(self, engine: Engine, keys: Keys, registration: Registration) -> None:
        self._engine = engine
        self._keys = keys
        self._registration = registration

    @property
    def node(self) -> str:
        """The id of this node."""
        return self._registration.node

    @property
    def formers(self) -> set[str]:
        """The ids that this node had before."""
        return self._registration.formers

    @property
    def good(self) -> bool:
        """Whether the engine serves this node."""
        return self._registration.good

    @property
    def may_deliver(self) -> bool:
        """Whether nobody can take this node for dead."""
        return self._registration.may_deliver

    def join(self, topic: str, peer: str, metadata: bytes | None, most: tuple[int, int], done: Reply) -> None:
        """Run ``join.lua``; ``most`` are peers and bytes of a topic."""
        most_peers, most_bytes = most
        arguments = [peer.encode(), metadata or b"", b"%d" % most_peers, b"%d" % most_bytes]
        self._call("join", topic, [b"%d" % KEEP_SECONDS, self.node.encode(), *arguments], done)

    def leave(self, topic: str, peer: str, done: Reply) -> bool:
        """Run ``leave.lua``; returns False where it cannot, because the engine is not connected."""
        if not self._registration.reachable:
            return False
        self._call("leave", topic, [self.node.encode(), peer.encode()], done)
        return True

    def sync(self, topic: str, own: Sequence[tuple[str, bytes]], done: Reply) -> None:
        """Run ``sync.lua``; ``own`` are ids and what the script wants to be told of each."""
        arguments = [b"%d" % KEEP_SECONDS, self.node.encode(), self._registration.former.encode()]
        self._call("sync", topic, [*arguments, *(part for peer, text in own for part in (peer.encode(), text))], done)

    def move(self, topic: str, peer: str, old_node: str, done: Reply) -> None:
        """Run ``move.lua``."""
        arguments = [b"%d" % KEEP_SECONDS, self.node.encode(), old_node.encode(), peer.encode()]
        self._call("move", topic, arguments, done, self._keys.index(old_node.encode()))

    def _call(self, script: str, topic: str, arguments: Sequence[bytes], done: Reply, *keys: bytes) -> None:
        name = topic.encode()
        all_keys = [*self._keys.topic(name), self._keys.index(self.node.encode()), *keys]

        def replied(reply: list[Any] | None) -> None:
            if reply is not None:
                self._registration.answered()
            # A node that was taken for dead is refused: its next beat tells it, and it begins anew.
            done(None if reply == [b"buried"] else reply)

        self._engine.call(script, all_keys, [self._keys.prefix, name, *arguments], replied)

    def tell(self, node: str, message: Message, done: Callable[[int | None], None] | None = None) -> None:
        """Send a message to another node; ``done`` gets how many listened, or None where that is not known."""
        self._engine.publish(self._keys.channel(node.encode()), encode(message), done or _ignore)


def _ignore(listeners: int | None) -> None:
    """Need no answer: where it matters, somebody asks again."""
