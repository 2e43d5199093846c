"""Which nodes are dead: those that sent no heartbeat for too long.

Time counts against a node only while this node itself is served: if the store or this node stood still, no other node
is suspected for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Suspect(NamedTuple):
    """A node without a heartbeat for too long.

    Args:
        heartbeat: its latest as the store had it; empty for none.
    """

    node: str
    heartbeat: bytes


class FailureDetector:
    """Compares all nodes' heartbeats with those at the check before.

    Args:
        timeout_seconds: without a heartbeat, until a node is suspected.
        max_check_seconds: between two checks; time beyond that does not count.
    """

    def __init__(self, timeout_seconds: float, max_check_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._max_check = max_check_seconds
        # The latest heartbeat of each node, and when it was first seen.
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._checked_at = float("-inf")

    def check(self, heartbeats: Mapping[str, bytes], expected: Iterable[str], now: float) -> list[Suspect]:
        """Compare all nodes' heartbeats.

        Args:
            expected: nodes that have to be there, because their peers are.

        Returns:
            The suspects; again at each check until they are no longer expected.
        """
        missed = max(0.0, now - self._checked_at - self._max_check) if self._seen else 0.0
        self._checked_at = now
        for node, (latest, since) in self._seen.items():
            self._seen[node] = latest, since + missed
        known = {*heartbeats, *expected}
        for node in known:
            latest = heartbeats.get(node, b"")
            # A node that is gone from the store has sent no heartbeat either: its time runs on.
            if node not in self._seen or (latest and latest != self._seen[node][0]):
                self._seen[node] = latest, now
        self._seen = {node: seen for node, seen in self._seen.items() if node in known}
        return [
            Suspect(node, heartbeats.get(node, b""))
            for node, (_, since) in self._seen.items()
            if now - since >= self._timeout
        ]
