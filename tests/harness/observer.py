"""An observer that keeps what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from signaling import IPresenceObserver
from signaling.core.presence_events import PeerEvent, PeerLeft, PeerUpdated, PresenceEvent, TopicClosed, TopicOpened


def name(event: PresenceEvent) -> str:
    """Return what happened in one or two words."""
    kinds = {TopicOpened: "opened", TopicClosed: "closed", PeerUpdated: "updated", PeerLeft: "left"}
    return kinds.get(type(event), "joined")


@implementer(IPresenceObserver)
class RecordingObserver:
    """Keeps all events, in order.

    Args:
        then: is called with each.
        end: what ``stopped`` returns.
    """

    def __init__(self, then: Callable[[Any], object] = lambda event: None, end: Deferred[None] | None = None) -> None:
        self.events: list[Any] = []
        self.stops = 0
        self._then = then
        self._end = end

    def topic_opened(self, event: Any) -> None:
        self.take(event)

    peer_joined = peer_updated = peer_left = topic_closed = topic_opened

    def take(self, event: Any) -> None:
        """Keep an event."""
        self.events.append(event)
        self._then(event)

    def stopped(self) -> Deferred[None] | None:
        self.stops += 1
        return self._end

    @property
    def story(self) -> list[tuple[str, ...]]:
        """What happened, in which topic, and to whom."""
        return [
            (name(event), event.topic, *([event.peer] if isinstance(event, PeerEvent) else [])) for event in self.events
        ]
