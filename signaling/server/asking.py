"""Who is asked for what an operator wants to know or to do, and the steps that need more than one query."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

from twisted.internet.defer import Deferred, inlineCallbacks

from signaling.core.admin_queries import BlockSubject, Merged, PeersRemoved, Query, RemovePeer, encode, merge
from signaling.core.interfaces import Answers, Backplane


class Asker(Protocol):
    """Passes queries to all processes whose peers an operator sees."""

    def ask(self, query: bytes) -> Deferred[Answers]:
        """Pass on an encoded query.

        Returns:
            Fires within a few seconds with what was answered, and never fails.
        """


class NodesAsker:
    """Asks all nodes: those of a cluster, or this process alone.

    Args:
        backplane: knows the nodes.
    """

    def __init__(self, backplane: Backplane) -> None:
        self._backplane = backplane

    def ask(self, query: bytes) -> Deferred[Answers]:
        """Pass on a query."""
        answered: Deferred[Answers] = Deferred()
        self._backplane.ask_nodes(query, answered.callback)
        return answered


@inlineCallbacks
def carry_out(asker: Asker, query: Query) -> Generator[Deferred[Any], Any, Merged]:
    """Carry out a query on all processes.

    Returns:
        Fires with the merged answer. A removal with a block fires when all processes know the block.
    """
    merged = merge(query, (yield asker.ask(encode(query))))
    removal = merged.answer
    if isinstance(query, RemovePeer) and isinstance(removal, PeersRemoved) and removal.subject is not None:
        block = BlockSubject(query.topic, removal.subject, query.block_seconds, removal.issuer, query.reason)
        others = merge(block, (yield asker.ask(encode(block))))
        if isinstance(others.answer, PeersRemoved):
            removal.peers += others.answer.peers
        return Merged(removal, sorted({*merged.missing, *others.missing}))
    return merged
