"""The queue of events that wait for their delivery: bounded, in order, in batches.

If it is full, the oldest events are dropped. They are counted, and the next delivery has their number and their
topics. If a ``peer.joined`` was dropped, all other events of the same peer are dropped as well: a receiver never gets
a leave without a join.
"""

from __future__ import annotations

import secrets
from collections import deque
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from signaling.core.presence_events import PeerEvent, PeerJoined, PeerLeft, PeerUpdated, PresenceEvent, TopicOpened

MAX_BATCH_EVENTS = 100
MAX_BATCH_BYTES = 256 * 1024
# A peer that joins and leaves again and again may have long metadata.
_BYTES_PER_EVENT = 2048
_MAX_LOST_TOPICS = 100
# Of peers that are gone without a leave, because another node has them: these are forgotten, the oldest first.
_MAX_UNREPORTED = 1_000_000

_encode = msgspec.json.Encoder().encode


class Batch(NamedTuple):
    """Events that are delivered together, in the form of the request.

    Args:
        id: of the message; the same for every attempt to deliver it.
        body: the JSON text.
        size: how many events there are.
    """

    id: str
    body: bytes
    size: int


class _Waiting(NamedTuple):
    """An event in the queue.

    Args:
        joined: the id of the peer's ``peer.joined``; None if it is about a topic alone.
    """

    topic: str
    joined: str | None
    kind: type[PresenceEvent]
    text: bytes


class EventQueue:
    """Events that wait, and the batch that is being delivered.

    Args:
        max_events: that wait, besides those of the batch; together they may have 2 KB for each.

    Attributes:
        lost: how many events were dropped so far.
    """

    def __init__(self, max_events: int) -> None:
        self.lost = 0
        self._max = max_events
        self._max_bytes = _BYTES_PER_EVENT * max_events
        self._bytes = 0
        self._waiting: deque[_Waiting] = deque()
        self._batch: Batch | None = None
        # What the next batch says about dropped events.
        self._lost_since = 0
        # None if there were too many.
        self._lost_topics: dict[str, None] | None = {}
        # The ids of dropped peer.joined whose peer.left was not dropped yet.
        self._unreported: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._waiting) + (self._batch.size if self._batch is not None else 0)

    def add(self, event: PresenceEvent) -> None:
        """Append an event; if the queue is full, the oldest one is dropped."""
        joined = None
        if isinstance(event, PeerEvent):
            joined = event.joined if isinstance(event, PeerUpdated | PeerLeft) else event.id
        text = event_text(event)
        self._waiting.append(_Waiting(event.topic, joined, type(event), text))
        self._bytes += len(text)
        while len(self._waiting) > self._max or (self._bytes > self._max_bytes and len(self._waiting) > 1):
            self._drop(self._next())

    def batch(self, now: float) -> Batch | None:
        """Return what has to be delivered: the same until ``delivered`` is called; None if there is nothing.

        Args:
            now: seconds since 1970.
        """
        if self._batch is None:
            events = self._take()
            if events or self._lost_since:
                self._batch = self._make(events, now)
        return self._batch

    def delivered(self) -> None:
        """Forget the batch."""
        self._batch = None

    def drop_all(self) -> None:
        """Drop everything, the batch as well."""
        if self._batch is not None:
            self.lost += self._batch.size
            self._batch = None
        while self._waiting:
            self._drop(self._next())

    def _next(self) -> _Waiting:
        waiting = self._waiting.popleft()
        self._bytes -= len(waiting.text)
        return waiting

    def _take(self) -> list[bytes]:
        events: list[bytes] = []
        size = 0
        while self._waiting and len(events) < MAX_BATCH_EVENTS:
            waiting = self._waiting[0]
            if waiting.kind is not PeerJoined and waiting.joined in self._unreported:
                self._drop(self._next())
                continue
            size += len(waiting.text) + 1
            if events and size > MAX_BATCH_BYTES:
                break
            if waiting.kind is PeerJoined and waiting.joined is not None:
                # It may have been reported, and dropped, before: the peer moved to another node and came back.
                self._unreported.pop(waiting.joined, None)
            events.append(self._next().text)
        return events

    def _drop(self, waiting: _Waiting) -> None:
        self.lost += 1
        self._lost_since += 1
        if self._lost_topics is not None:
            self._lost_topics[waiting.topic] = None
            if len(self._lost_topics) > _MAX_LOST_TOPICS:
                self._lost_topics = None
        if waiting.joined is None:
            return
        if waiting.kind is PeerLeft:
            self._unreported.pop(waiting.joined, None)
        elif waiting.kind is PeerJoined:
            self._unreported[waiting.joined] = None
            if len(self._unreported) > _MAX_UNREPORTED:
                del self._unreported[next(iter(self._unreported))]

    def _make(self, events: list[bytes], now: float) -> Batch:
        head: dict[str, Any] = {"type": "presence", "timestamp": _time_text(now)}
        if self._lost_since:
            topics = None if self._lost_topics is None else list(self._lost_topics)
            head["lost"] = {"count": self._lost_since, "topics": topics}
            self._lost_since, self._lost_topics = 0, {}
        body = b'%b,"events":[%b]}' % (_encode(head)[:-1], b",".join(events))
        return Batch(f"msg_{secrets.token_hex(12)}", body, len(events))


def event_text(event: PresenceEvent) -> bytes:
    """Return the JSON text of an event."""
    data: dict[str, Any] = {"topic": event.topic}
    if event.node is not None:
        data["node"] = event.node
    if isinstance(event, PeerEvent):
        kind = "peer.updated" if isinstance(event, PeerUpdated) else "peer.joined"
        data["peer"] = event.peer
        if event.metadata_text is not None:
            data["metadata"] = msgspec.Raw(event.metadata_text)
        if event.subject is not None:
            data["subject"] = event.subject
        if isinstance(event, PeerUpdated | PeerLeft):
            data["joinedId"] = event.joined
        if isinstance(event, PeerLeft):
            kind = "peer.left"
            data["reason"] = event.reason
            if event.duration is not None:
                data["duration"] = round(event.duration, 3)
    else:
        kind = "topic.opened" if isinstance(event, TopicOpened) else "topic.closed"
    whole = {"type": kind, "timestamp": _time_text(event.time), "id": event.id, "number": event.number, "data": data}
    return _encode(whole)


def _time_text(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
