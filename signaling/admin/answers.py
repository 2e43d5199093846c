"""Writes the answers of the admin API: a status, headers and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from signaling.core.admin_queries import (
    DescribeTopic,
    Merged,
    NoticeSent,
    Obstacle,
    PeerEntry,
    PeersRemoved,
    Query,
    RemovePeer,
    TopicDescription,
    TopicPage,
)
from signaling.errors import Refused


class AdminAnswer(NamedTuple):
    """An answer.

    Args:
        status: of HTTP.
        content: for JSON; ``msgspec.Raw`` is written as it is.
        headers: besides those of every answer.
    """

    status: int
    content: Any
    headers: Mapping[bytes, bytes] = MappingProxyType({})

    @property
    def all_headers(self) -> dict[bytes, bytes]:
        """All headers but the length."""
        headers = {b"Content-Type": b"application/json", b"Cache-Control": b"no-store", **self.headers}
        if self.status == 401:
            headers[b"WWW-Authenticate"] = b'Bearer realm="signaling admin"'
        elif self.status == 503:
            headers[b"Retry-After"] = b"1"
        return headers


def refusal(refused: Refused) -> AdminAnswer:
    """Return the answer to a request that is not carried out."""
    return AdminAnswer(refused.status, {"reason": refused.reason}, refused.headers)


def answer_to(query: Query, merged: Merged) -> AdminAnswer:
    """Return the answer to a request that was carried out."""
    answer, missing = merged
    content: dict[str, Any]
    match answer:
        case TopicPage():
            content = {"topics": [{"name": topic.name, "peers": topic.peers} for topic in answer.topics]}
            if answer.after is not None:
                content["after"] = answer.after
        case TopicDescription():
            if not answer.peers:
                return _not_found("topic", missing)
            name = query.topic if isinstance(query, DescribeTopic) else ""
            content = {"name": name, "peers": [_peer(peer) for peer in answer.peers]}
        case PeersRemoved(obstacle=None):
            content = {"removed": answer.peers}
            if isinstance(query, RemovePeer) and answer.subject is not None:
                content["blocked"] = {"subject": answer.subject, "seconds": int(query.block_seconds)}
        case NoticeSent(obstacle=None):
            content = {"received": answer.received}
        case PeersRemoved(obstacle=Obstacle.NO_SUBJECT):
            return AdminAnswer(400, {"reason": "block: the peer's token has no owner (sub); the peer was not removed"})
        case _:
            return _not_found("topic" if answer.obstacle is Obstacle.UNKNOWN_TOPIC else "peer", missing)
    if missing:
        content["missing"] = missing
    return AdminAnswer(200, content)


def _not_found(what: str, missing: Sequence[str]) -> AdminAnswer:
    if missing:
        reason = f"no process that answered has this {what}; those that did not answer may have it"
        return AdminAnswer(503, {"reason": reason, "missing": missing})
    return AdminAnswer(404, {"reason": f"there is no such {what}"})


def _peer(peer: PeerEntry) -> dict[str, Any]:
    content: dict[str, Any] = {"id": peer.id}
    if peer.metadata is not None:
        content["metadata"] = msgspec.Raw(peer.metadata)
    content["seconds"] = peer.seconds
    optional = {"subject": peer.subject, "address": peer.address, "node": peer.node or None}
    content |= {key: value for key, value in optional.items() if value is not None}
    if peer.detached:
        content["detached"] = True
    return content
