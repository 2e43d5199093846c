"""Presence events: which peers joined and left which topics, for an observer of the server.

``PresenceReporter`` (``core/presence_reporter.py``) makes them, in the order in which they happen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from signaling.errors import LeaveReason


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceEvent:
    """What all presence events have.

    Args:
        id: unique; an event that another node reports again has the same.
        topic: its name.
        number: counts the events of the topic, from 1 on; in a cluster those that this node reports, as long as it has
            peers in the topic.
        time: in seconds since 1970.
        node: the node that reports it; None without a cluster.
    """

    id: str
    topic: str
    number: int
    time: float
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicOpened(PresenceEvent):
    """A topic has its first peer, or is about to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicClosed(PresenceEvent):
    """A topic has lost its last peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerEvent(PresenceEvent):
    """What the events of peers have.

    Args:
        peer: its id.
        metadata_text: the JSON text of an object, or None.
        subject: of the peer's token or password; None without access control, or if it has none.
    """

    peer: str
    metadata_text: bytes | None = field(default=None, repr=False)
    subject: str | None = None

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The peer's metadata, parsed anew at each access."""
        return None if self.metadata_text is None else json.loads(self.metadata_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJoined(PeerEvent):
    """A peer joined. One that resumes has not joined again; at another node, this is reported again there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUpdated(PeerEvent):
    """A peer has replaced its metadata.

    Args:
        joined: the id of its ``PeerJoined``.
    """

    joined: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLeft(PeerEvent):
    """A peer left. One that is detached, or resumes at another node, has not left.

    Args:
        joined: the id of its ``PeerJoined``.
        reason: why it left.
        duration: seconds since it joined; None if that is not known.
    """

    joined: str
    reason: LeaveReason
    duration: float | None
