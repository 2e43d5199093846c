"""The sessions of one server: finds the one that a token names, and says how long one may stay detached."""

from __future__ import annotations

import time
from collections.abc import Callable

from signaling.core.join_request import JoinRequest
from signaling.core.peer import Peer
from signaling.core.session import PeerSession, peer_id_of
from signaling.core.topics import TopicMap
from signaling.limits import Limits
from signaling.timing.clock import Clock
from signaling.timing.timeouts import Timeouts
from signaling.timing.wall_clock_timers import WallClockTimers

# How long the node that asked for a session may take to report that it has it.
_HANDOFF_SECONDS = 5.0


class SessionRegistry:
    """Finds sessions by their tokens, and closes detached ones whose time is over.

    Args:
        on_closed: is called with a session that is about to leave its topic, and the reason, unless it ends with its
            connection.
        wall_clock: tells when tokens expire, in seconds since 1970.

    Attributes:
        detached: the sessions without a connection, in the order in which they lost it.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        topics: TopicMap[Peer],
        on_closed: Callable[[Peer, str], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.on_closed = on_closed
        self.detached: dict[PeerSession, None] = {}
        self._topics = topics
        self._windows: Timeouts[PeerSession] = Timeouts(clock, limits.resume_window_seconds, _not_resumed)
        self._handoffs: Timeouts[PeerSession] = Timeouts(clock, _HANDOFF_SECONDS, self._handoff_timed_out)
        self._wall_clock = wall_clock
        self._expiries: WallClockTimers[PeerSession] = WallClockTimers(clock, wall_clock, self._token_expired)

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
        peer = topic.get(peer_id_of(claim.token))
        return peer.check_resume_token(claim.token, request.owner) if peer is not None else None

    def start_window(self, session: PeerSession) -> None:
        """Wait for the client of a detached session, until the resume window or its token expires."""
        self.detached[session] = None
        self._windows.set(session)
        if session.expires is not None:
            self._expiries.set(session, session.expires)

    def start_handoff(self, session: PeerSession) -> None:
        """Wait for another node to take a detached session; it must not be closed meanwhile."""
        self._handoffs.set(session)
        self._windows.clear(session)

    def forget(self, session: PeerSession) -> None:
        """Stop waiting for a session that is resumed or closed."""
        self.detached.pop(session, None)
        self._windows.clear(session)
        self._handoffs.clear(session)
        self._expiries.clear(session)
        self._expiries.cancel_if_idle()

    def close_detached(self, session: PeerSession) -> None:
        """Close a session because the server stops, unless it was resumed or closed meanwhile."""
        if session in self.detached:
            session.close("the server is stopping")

    def cancel_idle_timers(self) -> None:
        """Cancel the timers if no session is detached."""
        self._windows.cancel_if_idle()
        self._handoffs.cancel_if_idle()
        self._expiries.cancel_if_idle()

    def _handoff_timed_out(self, session: PeerSession) -> None:
        self._windows.set(session)
        session.cancel_handoff()

    def _token_expired(self, session: PeerSession) -> None:
        if session.is_handing_off:
            # Another node, which was shown a valid token, may have it by now: check again when that is certain.
            self._expiries.set(session, self._wall_clock() + _HANDOFF_SECONDS)
        else:
            session.close("its token has expired")
            self.cancel_idle_timers()


def _not_resumed(session: PeerSession) -> None:
    session.close("it did not resume in time")
