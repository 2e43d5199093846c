"""What a cluster asks of its store (``Engine``) and of the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class ClusterLog(Protocol):
    """Where a node of a cluster tells an operator what happens to it."""

    def node_registered(self, node: str) -> None:
        """The store serves this node, at first or again."""

    def node_unregistered(self, reason: str) -> None:
        """The store does not serve this node."""

    def node_buried(self, node: str) -> None:
        """Another node did not beat for too long, and its peers leave."""

    def node_taken_for_dead(self, node: str) -> None:
        """The others took this node for dead."""

    def clocks_differ(self, seconds: float) -> None:
        """The store's wall clock is ahead of this node's by so many seconds, or behind where they are less than 0."""


# The engine: what a cluster's nodes run on


class EngineListener(Protocol):
    """Whoever uses an engine."""

    def connected(self) -> None:
        """The engine takes calls, and what is published on this node's channel arrives from now on."""

    def disconnected(self, reason: str) -> None:
        """The engine takes nothing for now. Calls without a reply were answered with None before."""

    def received(self, data: bytes) -> None:
        """Something was published on this node's channel; in the order of publication, none twice."""


class Engine(Protocol):
    """A store that runs scripts atomically (``signaling/backplane/redis/lua``), and channels.

    Calls and publications of one node are carried out in their order. Whatever is lost is lost with the connection.
    """

    def connect(self, channel: bytes, listener: EngineListener) -> None:
        """Drop the connection where there is one, connect, and try again until it works.

        Args:
            channel: that the listener hears from now on.
        """

    def disconnect(self) -> None:
        """End the connection, and connect no more; ``disconnected`` is not called."""

    def call(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Reply) -> None:
        """Run a script; ``done`` gets its reply, or None where that is not known (the script may have run)."""

    def publish(self, channel: bytes, data: bytes, done: Callable[[int | None], None]) -> None:
        """Publish; ``done`` gets how many listeners it was handed to, or None where that is not known."""


Reply = Callable[[list[Any] | None], None]
"""Takes a script's reply: integers, byte strings, and lists of them; None where it is not known."""
