"""What an operator asks, in a form that other processes can be sent, and what they answer.

A query is encoded, so that it can be sent to other processes unread, and so is its answer. ``merge`` makes one answer
of those of several processes. docs/admin-reference.md describes the effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple, TypeVar

import msgspec

from signaling.core import messages
from signaling.core.interfaces import Answers
from signaling.websocket.frames import MAX_REASON_BYTES

MAX_LIMIT = 1_000
"""How many topics a page may have."""
MAX_BLOCK_SECONDS = 31 * 86_400
"""How long a block may last."""


# Queries


class ListTopics(msgspec.Struct, tag=True, frozen=True):
    """Ask for the names of topics in ascending order, with the number of their peers.

    Args:
        prefix: only names that start with it.
        after: only names that are greater.
        limit: how many, at most ``MAX_LIMIT``.
    """

    prefix: str = ""
    after: str = ""
    limit: int = 100


class DescribeTopic(msgspec.Struct, tag=True, frozen=True):
    """Ask for the peers of a topic."""

    topic: str


class RemovePeer(msgspec.Struct, tag=True, frozen=True):
    """Remove a peer from its topic.

    Args:
        reason: of the close frame; the client shows it.
        block_seconds: how long to keep the owner of the peer's token out of the topic, with all of its peers; 0 means
            not at all. If that is not possible, the peer is not removed.
    """

    topic: str
    peer: str
    reason: str = ""
    block_seconds: float = 0.0


class CloseTopic(msgspec.Struct, tag=True, frozen=True):
    """Remove all peers of a topic; clients may join it again at once.

    Args:
        reason: of the close frames; clients show it.
    """

    topic: str
    reason: str = ""


class SendNotice(msgspec.Struct, tag=True, frozen=True):
    """Send a ``notice`` to the peers of a topic.

    Args:
        to: the id of the only peer that gets it; None means all.
        data: JSON text.
    """

    topic: str
    to: str | None
    data: bytes


class BlockSubject(msgspec.Struct, tag=True, frozen=True):
    """Keep the owner of a token out of a topic, and remove its peers from it.

    Args:
        seconds: how long.
        issuer: the namespace of ``subject``.
        reason: of the close frames of its peers.
    """

    topic: str
    subject: str
    seconds: float
    issuer: str | None = None
    reason: str = ""


Query = ListTopics | DescribeTopic | RemovePeer | CloseTopic | SendNotice | BlockSubject


def check_reason(reason: str) -> None:
    """Check the reason of a close frame.

    Raises:
        ValueError: it is too long, or not valid Unicode.
    """
    try:
        length = len(reason.encode())
    except UnicodeEncodeError:
        raise ValueError("reason: not valid Unicode") from None
    if length > MAX_REASON_BYTES:
        raise ValueError(f"reason: {length} bytes in UTF-8; a close frame has room for {MAX_REASON_BYTES}")


def check_block(seconds: float) -> None:
    """Check how long a block lasts.

    Raises:
        ValueError: it is out of range.
    """
    if not 0 <= seconds <= MAX_BLOCK_SECONDS:
        raise ValueError(f"block: a number of seconds from 0 to {MAX_BLOCK_SECONDS} is needed")


def check_notice(data: bytes, max_bytes: int) -> None:
    """Check the data of a notice: JSON that every client can read.

    Raises:
        ValueError: it is too long, is no JSON, or is nested too deeply.
    """
    if len(data) > max_bytes:
        raise ValueError(f"data: {len(data)} bytes; at most {max_bytes}")
    messages.check_notice(data)


# Answers


class TopicSize(msgspec.Struct, array_like=True):
    """A topic of a page."""

    name: str
    peers: int


class TopicPage(msgspec.Struct, tag=True):
    """The answer to ``ListTopics``.

    Args:
        topics: in ascending order of their names.
        after: the name that the page ends with, for the next page; None if there are no more topics. A topic of that
            name may be gone meanwhile.
    """

    topics: list[TopicSize]
    after: str | None


class PeerEntry(msgspec.Struct, array_like=True):
    """A peer of a topic.

    Args:
        metadata: the JSON text of an object, or None.
        seconds: since it joined.
        subject: the owner of its token; None if it has none, or if that is not recorded.
        address: where its latest connection comes from; None if that is not recorded.
        detached: whether it has lost its connection and may resume.
        node: the process that has it; empty if there is only one.
    """

    id: str
    metadata: bytes | None
    seconds: float
    subject: str | None
    address: str | None
    detached: bool
    node: str = ""


class TopicDescription(msgspec.Struct, tag=True):
    """The answer to ``DescribeTopic``.

    Args:
        peers: in joining order; empty if there is no such topic.
    """

    peers: list[PeerEntry]


class Obstacle(StrEnum):
    """Why a query had no effect."""

    UNKNOWN_TOPIC = "unknown topic"
    UNKNOWN_PEER = "unknown peer"  # the topic has peers
    NO_SUBJECT = "no subject"  # to block: the peer's token names no owner, or tokens are not checked


class PeersRemoved(msgspec.Struct, tag=True):
    """The answer to ``RemovePeer``, ``CloseTopic`` and ``BlockSubject``.

    Args:
        peers: how many were removed.
        obstacle: why none was; None if the query had its effect.
        subject: of a peer that was removed with a block, for ``BlockSubject``.
        issuer: the same.
    """

    peers: int = 0
    obstacle: Obstacle | None = None
    subject: str | None = None
    issuer: str | None = None


class NoticeSent(msgspec.Struct, tag=True):
    """The answer to ``SendNotice``.

    Args:
        received: how many peers it was written to or queued for.
        obstacle: why nobody was asked to take it.
    """

    received: int = 0
    obstacle: Obstacle | None = None


Answer = TopicPage | TopicDescription | PeersRemoved | NoticeSent

_encode = msgspec.msgpack.Encoder().encode
_decode_query = msgspec.msgpack.Decoder(Query).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


def encode(query: Query | Answer) -> bytes:
    """Encode a query, or an answer."""
    return _encode(query)


def decode(query: bytes) -> Query:
    """Decode a query.

    Raises:
        msgspec.MsgspecError: it is no query, or another version's.
    """
    decoded: Query = _decode_query(query)
    return decoded


A = TypeVar("A", bound=Answer)


class Merged(NamedTuple):
    """One answer of several processes.

    Args:
        answer: as if one process had everything.
        missing: the names of processes whose answer is not in it, sorted.
    """

    answer: Answer
    missing: list[str]


def merge(query: Query, answers: Answers) -> Merged:
    """Make one answer of those of several processes. One that cannot be read counts as missing."""
    kind, merged = _MERGERS[type(query)]
    found: dict[str, Answer] = {}
    missing = set(answers.missing)
    for node, text in answers.answers.items():
        try:
            answer = _decode_answer(text)
        except msgspec.MsgspecError:
            answer = None
        if isinstance(answer, kind):
            found[node] = answer
        else:
            # Another version's.
            missing.add(node)
    return Merged(merged(query, found), sorted(missing))


def _merge_pages(query: ListTopics, pages: Mapping[str, TopicPage]) -> TopicPage:
    # Up to where the shortest page ends, the sums are complete.
    after = min((page.after for page in pages.values() if page.after is not None), default=None)
    sizes: dict[str, int] = {}
    for page in pages.values():
        for topic in page.topics:
            if after is None or topic.name <= after:
                sizes[topic.name] = sizes.get(topic.name, 0) + topic.peers
    names = sorted(sizes)
    if len(names) > query.limit:
        del names[query.limit :]
        after = names[-1]
    return TopicPage([TopicSize(name, sizes[name]) for name in names], after)


def _merge_descriptions(query: DescribeTopic, descriptions: Mapping[str, TopicDescription]) -> TopicDescription:
    peers: dict[str, PeerEntry] = {}
    for node, description in descriptions.items():
        for peer in description.peers:
            known = peers.get(peer.id)
            # A peer that moves to another node may be at both for a moment.
            if known is None or known.detached:
                peer.node = node
                peers[peer.id] = peer
    return TopicDescription([peers[peer_id] for peer_id in sorted(peers)])


def _merge_removals(query: Query, removals: Mapping[str, PeersRemoved]) -> PeersRemoved:
    subject, issuer = next(((r.subject, r.issuer) for r in removals.values() if r.subject is not None), (None, None))
    peers = sum(removal.peers for removal in removals.values())
    if isinstance(query, RemovePeer) and not query.block_seconds:
        # One that moves may be removed at both of its nodes.
        peers = min(1, peers)
    return PeersRemoved(peers, _merge_obstacles(removals.values()), subject, issuer)


def _merge_notices(query: SendNotice, notices: Mapping[str, NoticeSent]) -> NoticeSent:
    return NoticeSent(sum(notice.received for notice in notices.values()), _merge_obstacles(notices.values()))


def _merge_obstacles(answers: Iterable[PeersRemoved | NoticeSent]) -> Obstacle | None:
    found = {answer.obstacle for answer in answers}
    for obstacle in (Obstacle.NO_SUBJECT, None, Obstacle.UNKNOWN_PEER):
        if obstacle in found:
            return obstacle
    return Obstacle.UNKNOWN_TOPIC


_MERGERS: dict[type[Query], tuple[type[Answer], Callable[..., Answer]]] = {
    ListTopics: (TopicPage, _merge_pages),
    DescribeTopic: (TopicDescription, _merge_descriptions),
    RemovePeer: (PeersRemoved, _merge_removals),
    CloseTopic: (PeersRemoved, _merge_removals),
    BlockSubject: (PeersRemoved, _merge_removals),
    SendNotice: (NoticeSent, _merge_notices),
}
