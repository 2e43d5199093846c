"""The backplane of a single server: there are no other nodes, and nothing to wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from signaling.core.interfaces import Answers, Forwarding, JoinTicket, Node, PresenceListener, ResumeProof
from signaling.core.topics import MaxPeers

_TICKET = JoinTicket(opens=True)


class StandaloneBackplane:
    """A ``Backplane`` without other nodes."""

    unready_reasons: list[str] = []  # noqa: RUF012 - there never are any
    node = None
    forwarding = 0

    _node: Node

    def report_presence(self, listener: PresenceListener) -> None:
        """No-op: there is nothing that only a backplane knows."""

    def start(self, node: Node) -> None:
        """Answer for the peers of ``node``."""
        self._node = node

    def stop(self, done: Callable[[], None]) -> None:
        """No-op."""
        done()

    def request_join(
        self,
        topic: str,
        metadata: bytes | None,
        max_peers: MaxPeers,
        on_ticket: Callable[[JoinTicket], None],
        proof: ResumeProof | None = None,
    ) -> None:
        """Let the peer join at once."""
        on_ticket(_TICKET)

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        """No-op."""

    def update(self, topic: str, peer: str, metadata: bytes, on_decided: Callable[[str | None], None]) -> None:
        """Let the peer have the metadata at once."""
        on_decided(None)

    def leave(self, topic: str, peer: str) -> None:
        """No-op."""

    def resync(self, topic: str) -> None:
        """No-op."""

    def remote_members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """Return none."""
        return ()

    def forward(self, topic: str, to: str, sender: str, frame: bytes, forwarding: Forwarding) -> bool | None:
        """Return None: no other node has the target."""
        return None

    def for_resuming(self, topic: str, peer: str | None, then: Callable[[str], None]) -> bool:
        """Return False: no session comes from another node."""
        return False

    def ask_nodes(self, query: bytes, on_answers: Callable[[Answers], None]) -> None:
        """Answer for this server."""
        self._node.answer(query, lambda answer: on_answers(Answers({"": answer}, [])))
