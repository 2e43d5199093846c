"""Which workers are asked a query of the admin API."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults

from signaling.core.admin_queries import ListTopics, decode
from signaling.core.interfaces import Answers
from signaling.workers.supervisor import Supervisor, Worker, WorkerState
from signaling.workers.topic_router import TopicRouter

_SECONDS = 2.0
# A worker that is a node waits for the other nodes for 2 s.
_CLUSTER_SECONDS = 3.0


class WorkerQueries:
    """Asks workers.

    Args:
        supervisor: runs the workers.
        router: says which worker owns a topic.
        are_nodes: whether each worker is a node of a cluster: then one of them asks all nodes.
    """

    def __init__(self, supervisor: Supervisor, router: TopicRouter, *, are_nodes: bool) -> None:
        self._supervisor = supervisor
        self._router = router
        self._are_nodes = are_nodes

    def ask(self, query: bytes) -> Deferred[Answers]:
        """Ask the workers, or all nodes of the cluster that they are in."""
        return self._ask_one(query) if self._are_nodes else self._ask_owners(query)

    def _ask_one(self, query: bytes) -> Deferred[Answers]:
        # Not another one if it does not answer: it may have done what it was asked to.
        worker = min(self._supervisor, key=_preference)

        def answered(answers: Answers | None) -> Answers:
            return answers if answers is not None else Answers({}, [_name(worker)])

        return worker.ask(query, _CLUSTER_SECONDS).addCallback(answered)

    def _ask_owners(self, query: bytes) -> Deferred[Answers]:
        decoded = decode(query)
        if isinstance(decoded, ListTopics):
            workers = list(self._supervisor)
        else:
            workers = [self._supervisor[self._router.owner(decoded.topic)]]
        asked = gatherResults([worker.ask(query, _SECONDS) for worker in workers])

        def answered(replies: list[Answers | None]) -> Answers:
            pairs = list(zip(map(_name, workers), replies, strict=True))
            answers = {name: answer for name, reply in pairs if reply is not None for answer in reply.answers.values()}
            return Answers(answers, [name for name, _ in pairs if name not in answers])

        return asked.addCallback(answered)


def _preference(worker: Worker) -> tuple[bool, bool]:
    """Return a key by which the worker that most probably reaches the other nodes is first."""
    return worker.state is not WorkerState.READY, bool(worker.backplane_reasons)


def _name(worker: Worker) -> str:
    return f"worker {worker.number}"
