"""Scenarios in which an operator asks nodes: to describe topics, to send notices, to remove peers."""

from __future__ import annotations

from random import Random
from typing import Any

from signaling.core.admin_queries import (
    DescribeTopic,
    Merged,
    NoticeSent,
    PeersRemoved,
    Query,
    RemovePeer,
    SendNotice,
    TopicDescription,
    encode,
    merge,
)
from signaling.core.interfaces import Answers
from tests.simulator.clients import Sent
from tests.simulator.nodes import SimulatedNode
from tests.simulator.resuming import ResumingClient, ResumingScenario

ANSWER_SECONDS = 2.0


class Asked:
    """A query to one node, and its answer.

    Attributes:
        merged: the answer; None before it came.
    """

    def __init__(self, node: SimulatedNode, query: Query) -> None:
        self.node = node
        self.query = query
        self.merged: Merged | None = None


class QueryingScenario(ResumingScenario):
    """A scenario in which an operator asks any node now and then.

    Each query has one answer. A peer gets each notice once at most, and a notice whose answer names no missing node was
    counted for each peer that has it. A peer that was removed is nowhere afterwards. In the end, each node's
    description of each topic is right.
    """

    kind = "q"

    def __init__(self, seed: int, log: Any = None) -> None:
        super().__init__(seed, log)
        self._choose = Random(f"queries {seed}")
        self._asked: list[Asked] = []
        self._notices = 0
        # The peers that have each notice, by its number.
        self._received: dict[int, set[str]] = {}

    def relay(self) -> None:
        """Relay, or ask."""
        if self._choose.random() < 0.3 and self.serving():
            self._ask_anything()
        else:
            super().relay()

    def _come_back(self, client: ResumingClient) -> None:
        """Resume, on whatever node; sometimes the operator acts on the peer on its way."""
        super()._come_back(client)
        if client.id and client.connection is not None and self._choose.random() < 0.3:
            remove = self._choose.random() < 0.5
            query: Query = RemovePeer(client.topic, client.id) if remove else self._notice(client.topic)
            self.timeline.after(4 * self._choose.random() * self.latency(), self._ask_any_node, query)

    def _notice(self, topic: str) -> SendNotice:
        self._notices += 1
        return SendNotice(topic, None, b"%d" % self._notices)

    def _ask_any_node(self, query: Query) -> None:
        if self.serving():
            self.counts[f"asked {type(query).__name__}"] += 1
            self._ask(self._choose.choice(self.serving()), query)

    def _ask_anything(self) -> None:
        choose, topic = self._choose, self._choose.choice(self.topics)
        live = [client for client in self.live() if client.topic == topic]
        if live and choose.random() < 0.3:
            self._ask_any_node(RemovePeer(topic, choose.choice(live).id))
        else:
            self._ask_any_node(self._notice(topic))

    def _ask(self, node: SimulatedNode, query: Query) -> Asked:
        asked = Asked(node, query)
        self._asked.append(asked)
        self.trace("operator", "asks", node.name, query)

        def answered(answers: Answers) -> None:
            if asked.merged is not None:
                self.violation(f"{node.name} answers {query} twice")
            asked.merged = merge(query, answers)
            self.trace("operator", "gets of", node.name, asked.merged)

        node.process.take("operator", lambda _: node.backplane.ask_nodes(encode(query), answered), None)
        return asked

    def _excuse(self, sent: Sent) -> str | None:
        """Excuse a relay of a peer that was removed while it moved: one node drops it, the other one may write it."""
        removed = {asked.query.peer for asked in self._asked if isinstance(asked.query, RemovePeer)}
        if removed & {sent.target_id, sent.sender_id} & self.left_nodes.keys():
            self.excuses["both: its target or its sender was removed while it moved"] += 1
            return None
        return super()._excuse(sent)

    def noticed(self, peer: str, number: int) -> None:
        """A client received a notice."""
        received = self._received.setdefault(number, set())
        if peer in received:
            self.violation(f"{peer} receives notice {number} twice")
        received.add(peer)
        self.counts["notices received"] += 1

    def _calm(self) -> None:
        super()._calm()
        self._check_asked()
        for node in self.serving():
            described = [self._ask(node, DescribeTopic(topic)) for topic in self.topics]
            self.run_for(ANSWER_SECONDS)
            for asked in described:
                self._check_description(asked)
        self.check()

    def _check_asked(self) -> None:
        there = {client.id for client in self.live()}
        for asked in self._asked:
            if asked.merged is None:
                if asked.node.serves:
                    self.violation(f"{asked.node.name} does not answer {asked.query}")
                continue
            answer, missing = asked.merged
            match asked.query, answer:
                case RemovePeer(_, peer), PeersRemoved(peers=1) if peer in there and not missing:
                    self.violation(f"{peer} is there, though it was removed")
                case SendNotice(data=data), NoticeSent(received=count):
                    received = self._received.get(int(data), set())
                    if not missing and count < len(received):
                        self.violation(f"notice {int(data)} was received by {received}, and counted {count}")

    def _check_description(self, asked: Asked) -> None:
        assert isinstance(asked.query, DescribeTopic)
        expected = sorted(client.id for client in self.live() if client.topic == asked.query.topic)
        if asked.merged is None:
            self.violation(f"{asked.node.name} does not answer though all is calm")
            return
        answer, missing = asked.merged
        assert isinstance(answer, TopicDescription)
        described = [peer.id for peer in answer.peers]
        # Slow links may take longer than the others wait.
        if (not missing and described != expected) or not set(described) <= set(expected):
            self.violation(f"{asked.node.name} describes {described}, not {expected}; missing are {missing}")
        self.counts["described"] += not missing
