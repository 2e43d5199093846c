"""The observer of a server, from its first event to the end of a drain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.python.failure import Failure

from signaling.core.handoff_texts import session_origin
from signaling.core.interfaces import Backplane
from signaling.core.peer import Peer
from signaling.core.presence_reporter import PresenceReporter
from signaling.core.topics import TopicMap
from signaling.log.events import Events

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from signaling.server.observer import IPresenceObserver

# For what an observer still has to do after a drain.
_STOP_SECONDS = 6.0


class Observation:
    """Reports what happens to the peers of a server to its observer, and waits for that at the end.

    Args:
        observer: of an application.
        topics: the peers of this process.
        backplane: knows what happens on other nodes.
        reactor: runs the timers.
        wall_clock: returns the seconds since 1970, for the events.
        events: the log of what the observer raises.

    Attributes:
        reporter: makes the events.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - whom it reports to, and what it reads
        self,
        observer: IPresenceObserver,
        topics: TopicMap[Peer],
        backplane: Backplane,
        reactor: IReactorTime,
        wall_clock: Callable[[], float],
        events: Events,
    ) -> None:
        self._observer = observer
        self._reactor = reactor
        self._events = events
        self._end: Deferred[None] | None = None
        self.reporter = PresenceReporter(
            observer,
            lambda: backplane.node,
            lambda topic: topics.find(topic) or (),
            session_origin,
            reactor.seconds,
            wall_clock,
            events.observer_failed,
        )
        backplane.report_presence(self.reporter)

    def stop(self) -> Deferred[None]:
        """Report the end of a drain to the observer; fires when it has stopped, or after some seconds."""
        stop: Callable[[], Any] = self._observer.stopped
        self._end = end = maybeDeferred(stop)
        # By then it has given up, or never will.
        end.addTimeout(_STOP_SECONDS, self._reactor)
        end.addErrback(self._failed)
        return end

    def abort(self) -> None:
        """Wait no longer for the observer."""
        if self._end is not None:
            self._end.cancel()

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._events.observer_failed(failure.value)
