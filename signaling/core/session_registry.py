"""The sessions of one server: finds the one that a token names, and says how long one may stay detached."""

from __future__ import annotations

from collections.abc import Callable

from signaling.core.join_request import JoinRequest
from signaling.core.peer import Peer
from signaling.core.session import PeerSession
from signaling.core.topics import TopicMap
from signaling.errors import LeaveReason
from signaling.limits import Limits
from signaling.timing.clock import Clock
from signaling.timing.timeouts import Timeouts

# How long the node that asked for a session may take to report that it has it.
_HANDOFF_SECONDS = 5.0


class SessionRegistry:
    """Finds sessions by their tokens, and closes detached ones whose time is over.

    Args:
        on_closed: is called with a session that is about to leave its topic, why in words, and the reason, unless it
            ends with its connection.

    Attributes:
        clock: of all timers.
        detached: the sessions without a connection, in the order in which they lost it.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        topics: TopicMap[Peer],
        on_closed: Callable[[Peer, str, LeaveReason], None],
    ) -> None:
        self.on_closed = on_closed
        self.clock = clock
        self.detached: dict[PeerSession, None] = {}
        self._topics = topics
        self._windows: Timeouts[PeerSession] = Timeouts(clock, limits.resume_window_seconds, _not_resumed)
        self._handoffs: Timeouts[PeerSession] = Timeouts(clock, _HANDOFF_SECONDS, self._handoff_timed_out)

    @property
    def relays_queued(self) -> int:
        """How many relays wait for detached sessions."""
        return sum(session.unwritten for session in self.detached)

    def find(self, request: JoinRequest) -> PeerSession | None:
        """Return the session that the request may resume: in its topic, with its token, and of the same owner."""
        claim = request.claim
        topic = self._topics.find(request.topic) if claim is not None else None
        if claim is None or topic is None:
            return None
        peer = topic.get(claim.peer_id)
        return peer.check_resume_token(claim.token, request.owner) if peer is not None else None

    def start_window(self, session: PeerSession) -> None:
        """Wait for the client of a detached session, until the resume window is over."""
        self.detached[session] = None
        self._windows.set(session)

    def start_handoff(self, session: PeerSession) -> None:
        """Wait for another node to take a detached session; it must not be closed meanwhile."""
        self._handoffs.set(session)
        self._windows.clear(session)

    def forget(self, session: PeerSession) -> None:
        """Stop waiting for a session that is resumed or closed."""
        self.detached.pop(session, None)
        self._windows.clear(session)
        self._handoffs.clear(session)

    def close_detached(self, session: PeerSession) -> None:
        """Close a session because the server stops, unless it was resumed or closed meanwhile."""
        if session in self.detached:
            session.close("the server is stopping", LeaveReason.SHUTDOWN)

    def cancel_idle_timers(self) -> None:
        """Cancel the timers if no session is detached."""
        self._windows.cancel_if_idle()
        self._handoffs.cancel_if_idle()

    def _handoff_timed_out(self, session: PeerSession) -> None:
        self._windows.set(session)
        session.cancel_handoff()


def _not_resumed(session: PeerSession) -> None:
    session.close("it did not resume in time")
