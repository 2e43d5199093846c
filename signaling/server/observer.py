"""The interface of an observer, which an application gives to its factory (docs/embedding.md)."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import Interface

from signaling.core.presence_events import PeerJoined, PeerLeft, PeerUpdated, TopicClosed, TopicOpened


class IPresenceObserver(Interface):
    """Is called when peers join and leave.

    Each method is called in the reactor's thread, in the middle of what it reports, and must return soon. What it does
    to the server's own peers has to wait for the reactor's next pass (``reactor.callLater(0, ...)``). What it raises is
    logged and goes no further.
    """

    def topic_opened(event: TopicOpened) -> None:  # noqa: N805
        """A topic has its first peer, or is about to."""

    def peer_joined(event: PeerJoined) -> None:  # noqa: N805
        """A peer joined. One that resumes has not joined again, except that another node reports it there again."""

    def peer_updated(event: PeerUpdated) -> None:  # noqa: N805
        """A peer has replaced its metadata."""

    def peer_left(event: PeerLeft) -> None:  # noqa: N805
        """A peer left. One that is detached, or resumes at another node, has not left."""

    def topic_closed(event: TopicClosed) -> None:  # noqa: N805
        """A topic has lost its last peer."""

    def stopped() -> Deferred[None] | None:
        """The server has drained, and all peers were reported.

        Returns:
            What the end of the drain waits for, a few seconds at most; None if there is nothing to wait for.
        """
