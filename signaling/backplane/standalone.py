"""The backplane of a server that is alone: there is nobody elsewhere, and nothing to wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from signaling.core.interfaces import Forwarding, JoinTicket, Node, ResumeProof

_ENTRANT = JoinTicket()


class StandaloneBackplane:
    """Everybody is here."""

    unready_reasons: list[str] = []  # noqa: RUF012 - there never are any
    forwarding = 0

    def start(self, node: Node) -> None:
        """Need nothing."""

    def stop(self, done: Callable[[], None]) -> None:
        """Need nothing."""
        done()

    def request_join(
        self,
        topic: str,
        metadata: bytes | None,
        entered: Callable[[JoinTicket], None],
        proof: ResumeProof | None = None,
    ) -> None:
        """Let the peer join at once."""
        entered(_ENTRANT)

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        """Need nothing."""

    def leave(self, topic: str, peer: str) -> None:
        """Need nothing."""

    def resync(self, topic: str) -> None:
        """Need nothing."""

    def remote_members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """Return nobody."""
        return ()

    def forward(self, topic: str, to: str, sender: str, frame: bytes, forwarding: Forwarding) -> bool | None:
        """Find nobody."""
        return None
