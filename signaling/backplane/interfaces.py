"""What a cluster asks of its store (``Engine``) and of the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class ClusterLog(Protocol):
    """Where a node of a cluster logs what happens to it."""

    def node_registered(self, node: str) -> None:
        """The store serves this node, at first or again."""

    def node_unregistered(self, reason: str) -> None:
        """The store does not serve this node."""

    def node_evicted(self, node: str) -> None:
        """Another node had sent no heartbeat for too long, and its peers leave."""

    def this_node_evicted(self, node: str) -> None:
        """The other nodes had evicted this node."""

    def clocks_differ(self, seconds: float) -> None:
        """The store's wall clock is ahead of this node's by so many seconds, or behind if they are negative."""


# The engine: what a cluster's nodes run on


class EngineListener(Protocol):
    """What an engine calls back."""

    def connected(self) -> None:
        """The engine takes calls, and ``received`` gets what is published on this node's channel from now on."""

    def disconnected(self, reason: str) -> None:
        """The engine takes no calls for now. The callbacks of calls without a reply got None before."""

    def received(self, data: bytes) -> None:
        """Data was published on this node's channel; it arrives in the order of publication, and once."""


class Engine(Protocol):
    """A store that runs scripts atomically (``signaling/backplane/redis/lua``), and channels.

    Calls and publications of one node are carried out in their order. Nothing is lost but with the connection.
    """

    def connect(self, channel: bytes, listener: EngineListener) -> None:
        """Drop the connection if there is one, connect, and retry until it works.

        Args:
            channel: what is published there goes to the listener.
        """

    def disconnect(self) -> None:
        """End the connection, and connect no more; ``disconnected`` is not called."""

    def call(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Reply) -> None:
        """Run a script; ``done`` gets its reply, or None if that is not known (the script may have run)."""

    def publish(self, channel: bytes, data: bytes, done: Callable[[int | None], None]) -> None:
        """Publish; ``done`` gets the number of listeners that got it, or None if that is not known."""


Reply = Callable[[list[Any] | None], None]
"""Takes a script's reply: integers, byte strings, and lists of them; None if it is not known."""
