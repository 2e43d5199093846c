"""Who is dead: nodes whose beats nobody saw for too long.

Time counts for a verdict only while the watcher itself is served: when the store or the watcher stood still, nobody
else is suspected for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Suspect(NamedTuple):
    """A node that did not beat for too long.

    Args:
        beats: as the store had them last; empty for none.
    """

    node: str
    beats: bytes


class Watch:
    """Compares each look at all nodes' beats with the one before.

    Args:
        patience_seconds: without a beat.
        longest_look_seconds: between two looks; what is beyond does not count.
    """

    def __init__(self, patience_seconds: float, longest_look_seconds: float) -> None:
        self._patience = patience_seconds
        self._longest_look = longest_look_seconds
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._looked = float("-inf")

    def look(self, beats: Mapping[str, bytes], mentioned: Iterable[str], now: float) -> list[Suspect]:
        """Take all nodes' beats.

        Args:
            mentioned: nodes that have to be there: their peers are.

        Returns:
            Those that are dead; again at each look, until they are forgotten.
        """
        missed = max(0.0, now - self._looked - self._longest_look) if self._seen else 0.0
        self._looked = now
        for node, (last, since) in self._seen.items():
            self._seen[node] = last, since + missed
        known = {*beats, *mentioned}
        for node in known:
            count = beats.get(node, b"")
            # One that is gone from the store has not beaten either; it keeps its time.
            if node not in self._seen or (count and count != self._seen[node][0]):
                self._seen[node] = count, now
        self._seen = {node: seen for node, seen in self._seen.items() if node in known}
        return [
            Suspect(node, beats.get(node, b""))
            for node, (_, since) in self._seen.items()
            if now - since >= self._patience
        ]
