"""Queries of the admin API that all nodes of a cluster answer, each for its own peers.

A query is on the channels of all nodes at once (``redis/lua/broadcast.lua``): a peer that is being handed off is in the
answer of one node at most, because what its old node sends the new one is behind the query there. A query is sent once,
and never again: a node whose answer is lost is named as missing, and may have done what it was asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from signaling.backplane.membership import Membership
from signaling.backplane.messages import NodeAnswer, NodeQuery
from signaling.backplane.store import Store
from signaling.core.interfaces import Answers, Node
from signaling.timing.clock import Clock

BACKPLANE = "backplane"
"""Named as missing if the store is out of reach: there may be nodes that this one does not know."""

_ANSWER_SECONDS = 2.0
_MAX_QUERIES = 64
# What comes behind a part must not wait for long: relays and heartbeats are on the same connections.
_MAX_PART_BYTES = 1 << 16
# Of the answers that come for all queries together, and of those that are being sent.
_MAX_BYTES = 64 << 20
# What an answer takes in memory besides its data.
_OVERHEAD_BYTES = 256


class _Query:
    """A query that this node has asked.

    Args:
        node: the id of this node.
        on_answers: as for ``NodeQueries.ask``.

    Attributes:
        answers: by node; those of nodes that were not asked are dropped in the end.
        parts: of answers that are not complete yet.
        asked: this node, and others whose channel has a listener; None until the store's reply.
        gone: nodes whose channel has none, or that the store does not know any more.
        size: in bytes, of all that came for it.
    """

    def __init__(self, node: str, on_answers: Callable[[Answers], None]) -> None:
        self.node = node
        self.on_answers = on_answers
        self.answers: dict[str, bytes] = {}
        self.parts: dict[str, list[bytes]] = {}
        self.asked: set[str] | None = None
        self.gone: set[str] = set()
        self.size = 0
        self.timeout: Any = None

    @property
    def is_answered(self) -> bool:
        """Whether every node that was asked has answered."""
        return self.asked is not None and self.asked <= self.answers.keys()


class NodeQueries:
    """Asks all nodes, and answers what they ask.

    Args:
        store: to send to other nodes.
        membership: knows which nodes there are.
        clock: for timeouts.
    """

    def __init__(self, store: Store, membership: Membership, clock: Clock) -> None:
        self._store = store
        self._membership = membership
        self._clock = clock
        self._node: Node | None = None
        self._queries: dict[int, _Query] = {}
        self._latest = 0
        # Queries of other nodes that this one has not answered yet.
        self._answering = 0
        self._received_bytes = self._sending_bytes = 0

    def start(self, node: Node) -> None:
        """Answer for the peers of ``node``."""
        self._node = node

    def stop(self) -> None:
        """Wait for no more answers."""
        for number in tuple(self._queries):
            self._finish(number)

    # Queries of this node

    def ask(self, query: bytes, on_answers: Callable[[Answers], None]) -> None:
        """Ask all nodes, this one included; as ``Backplane.ask_nodes``."""
        if self._node is None or len(self._queries) >= _MAX_QUERIES:
            on_answers(Answers({}, [self._store.node]))
            return
        self._latest += 1
        number, node = self._latest, self._store.node
        asked = self._queries[number] = _Query(node, on_answers)
        asked.timeout = self._clock.callLater(_ANSWER_SECONDS, self._finish, number)

        def sent(listeners: dict[str, int] | None) -> None:
            if listeners is None:
                # Whether the query was sent is not known, and answers do not come without the store.
                asked.asked, asked.gone = {node}, {BACKPLANE, *self._membership.other_nodes}
            else:
                asked.asked = {node, *(other for other, count in listeners.items() if count)}
                # A store that lost its data lists a node again with its next heartbeat.
                asked.gone = (listeners.keys() | self._membership.other_nodes) - asked.asked
            self._finish_if_answered(number)

        def answered(answer: bytes) -> None:
            asked.answers[node] = answer
            self._finish_if_answered(number)

        # In this order: what this node sends because of the query must be behind it on the channels.
        self._store.broadcast(NodeQuery(node, number, query), sent)
        self._node.answer(query, answered)

    def receive(self, answer: NodeAnswer) -> None:
        """Take a part of another node's answer."""
        query = self._queries.get(answer.number)
        if query is None or answer.node in query.answers:
            return
        parts = query.parts.setdefault(answer.node, [])
        size = len(answer.data) + len(answer.node) + _OVERHEAD_BYTES
        # Without this part the rest is not taken either, and the node is missing.
        if answer.part != len(parts) or self._received_bytes + size > _MAX_BYTES:
            return
        query.size += size
        self._received_bytes += size
        parts.append(answer.data)
        if answer.is_last:
            query.answers[answer.node] = b"".join(query.parts.pop(answer.node))
            self._finish_if_answered(answer.number)

    def _finish_if_answered(self, number: int) -> None:
        query = self._queries.get(number)
        if query is not None and query.is_answered:
            self._finish(number)

    def _finish(self, number: int) -> None:
        query = self._queries.pop(number)
        if query.timeout.active():
            query.timeout.cancel()
        self._received_bytes -= query.size
        if query.asked is None:
            query.asked = {query.node, *self._membership.other_nodes}
            query.gone = {BACKPLANE}
        answers = {node: answer for node, answer in query.answers.items() if node in query.asked}
        query.on_answers(Answers(answers, sorted((query.asked | query.gone) - answers.keys())))

    # Queries of other nodes

    def answer(self, query: NodeQuery) -> None:
        """Answer another node for the peers of this one."""
        if self._node is None or self._answering >= _MAX_QUERIES:
            return
        self._answering += 1

        def answered(answer: bytes) -> None:
            self._answering -= 1
            if self._sending_bytes + len(answer) <= _MAX_BYTES:
                self._sending_bytes += len(answer)
                self._send_part(query, self._store.node, len(answer), _parts(answer))

        self._node.answer(query.query, answered)

    def _send_part(self, query: NodeQuery, node: str, size: int, parts: Iterator[tuple[int, bytes, bool]]) -> None:
        """Send the next part, and the others one by one as the store takes them."""
        part, data, is_last = next(parts)

        def published(listeners: int | None) -> None:
            # Without a listener the node that asked is gone.
            if listeners and not is_last:
                self._send_part(query, node, size, parts)
            else:
                self._sending_bytes -= size

        self._store.send(query.reply_to, NodeAnswer(query.number, node, part, is_last, data), published)


def _parts(answer: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Cut an answer into parts: the number of each, its data, and whether it is the last."""
    starts = range(0, max(1, len(answer)), _MAX_PART_BYTES)
    for number, start in enumerate(starts):
        end = start + _MAX_PART_BYTES
        yield number, answer[start:end], end >= len(answer)
