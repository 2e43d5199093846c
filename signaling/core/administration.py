"""What an operator asks of this process: which topics and peers there are, to remove them, and to send notices.

A query is encoded, so that it can be sent to other processes unread, and so is its answer. ``merge`` makes one answer
of those of several processes. docs/admin.md describes the effects.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeVar

import msgspec

from signaling.admission.logged_addresses import LoggedAddresses
from signaling.core import messages
from signaling.core.blocks import Blocks
from signaling.core.interfaces import Answers
from signaling.core.peer import Peer, PeerServices
from signaling.core.topics import Topic
from signaling.errors import PEER_REMOVED, TOPIC_CLOSED, LeaveReason
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler
from signaling.websocket.frames import MAX_REASON_BYTES, text_frame

MAX_LIMIT = 1_000
"""How many topics a page may have."""
MAX_BLOCK_SECONDS = 31 * 86_400
"""How long a block may last."""

# Each slice takes about a millisecond; the reactor handles its other events after it.
_NAMES_PER_SLICE = 5_000
_PEERS_PER_SLICE = 1_000
_NOTICES_PER_SLICE = 128
_CLOSES_PER_SLICE = 32


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


def encode(query: Query) -> bytes:
    """Encode a query."""
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


# This process

_Steps = Generator[None, None, Answer]


class _Job:
    def __init__(self, steps: _Steps, on_answer: Callable[[bytes], None]) -> None:
        self.steps = steps
        self.on_answer = on_answer


class Administration:
    """Carries out queries on the peers of this process.

    Args:
        services: what the peers share.
        blocks: who is kept out of topics.
        clock: schedules the slices of a query that takes long.
        addresses: decides what is shown of the addresses of clients.
    """

    def __init__(
        self, services: PeerServices, blocks: Blocks, clock: Clock, addresses: LoggedAddresses | None = None
    ) -> None:
        self._services = services
        self._topics = services.topics
        self._blocks = blocks
        self._clock = clock
        self._addresses = addresses or LoggedAddresses()
        self._jobs: FairScheduler[_Job] = FairScheduler(clock, 1, self._advance)

    def answer(self, query: bytes, on_answer: Callable[[bytes], None]) -> None:
        """Carry out a query.

        Args:
            query: encoded.
            on_answer: called once with the encoded answer: before this method returns, or in a later pass of the
                reactor if there is much to do. The answer to a query that cannot be read is empty.
        """
        try:
            decoded = decode(query)
            if isinstance(decoded, SendNotice):
                # Who sent it to this process may be a stranger, and no client could read what is not JSON.
                messages.check_notice(decoded.data)
        except (msgspec.MsgspecError, ValueError):
            # Another version's.
            on_answer(b"")
            return
        self._advance(_Job(self._steps(decoded), on_answer))

    def _advance(self, job: _Job) -> None:
        try:
            next(job.steps)
        except StopIteration as end:
            job.on_answer(_encode(end.value))
        except Exception:
            # Whoever asked must not wait for ever; the reactor logs what was raised.
            job.on_answer(b"")
            raise
        else:
            self._jobs.add(job)

    def _steps(self, query: Query) -> _Steps:
        match query:
            case ListTopics():
                return self._list_topics(query)
            case DescribeTopic():
                return self._describe_topic(query)
            case RemovePeer():
                return self._remove_peer(query)
            case CloseTopic():
                return self._close_topic(query)
            case SendNotice():
                return self._send_notice(query)
            case BlockSubject():
                return self._block_subject(query)

    def _list_topics(self, query: ListTopics) -> _Steps:
        # As of now: what is made or deleted during the next slices may be in the page or not.
        names = self._topics.names()
        limit = max(1, min(query.limit, MAX_LIMIT))
        smallest: list[str] = []
        longest: str | None = None
        for start in range(0, len(names), _NAMES_PER_SLICE):
            if start:
                yield
            smallest += [
                name
                for name in names[start : start + _NAMES_PER_SLICE]
                if name > query.after and (longest is None or name <= longest) and name.startswith(query.prefix)
            ]
            smallest.sort()
            # One more than the page has, to know whether there are more.
            del smallest[limit + 1 :]
            longest = smallest[-1] if len(smallest) > limit else None
        after = smallest[limit - 1] if len(smallest) > limit else None
        sizes = [TopicSize(name, self._topics.size(name)) for name in smallest[:limit]]
        return TopicPage([topic for topic in sizes if topic.peers], after)

    def _describe_topic(self, query: DescribeTopic) -> _Steps:
        now, details = self._clock.seconds(), self._services.details or {}
        entries = []
        for number, peer in enumerate(self._topics.find(query.topic) or ()):
            if number and not number % _PEERS_PER_SLICE:
                yield
            known = details.get(peer.id)
            subject, address = (known.subject, known.address) if known is not None else (None, None)
            address = self._addresses.shown(address)
            seconds = round(max(0.0, now - peer.joined_at), 3)
            entries.append(PeerEntry(peer.id, peer.metadata, seconds, subject, address, peer.detached))
        return TopicDescription(entries)

    def _remove_peer(self, query: RemovePeer) -> _Steps:
        topic = self._topics.find(query.topic)
        peer = topic.get(query.peer) if topic is not None else None
        if topic is None or peer is None:
            if self._remove_resuming(query.topic, query.peer, PEER_REMOVED, query.reason, LeaveReason.REMOVED):
                return PeersRemoved(1)
            return PeersRemoved(obstacle=_nobody(topic))
        if not query.block_seconds:
            removed = yield from _remove([peer], PEER_REMOVED, query.reason, LeaveReason.REMOVED)
            return PeersRemoved(removed)
        known = (self._services.details or {}).get(peer.id)
        # An empty one identifies nobody, as in ``session_owner``.
        if known is None or not known.subject:
            return PeersRemoved(obstacle=Obstacle.NO_SUBJECT)
        block = BlockSubject(query.topic, known.subject, query.block_seconds, known.issuer, query.reason)
        removal = yield from self._block_subject(block)
        return PeersRemoved(removal.peers, subject=known.subject, issuer=known.issuer)

    def _block_subject(self, query: BlockSubject) -> Generator[None, None, PeersRemoved]:
        self._blocks.add(query.topic, query.subject, query.issuer, query.seconds)
        details = self._services.details or {}
        owner = query.subject, query.issuer
        peers = []
        for peer in self._topics.find(query.topic) or ():
            known = details.get(peer.id)
            if known is not None and (known.subject, known.issuer) == owner:
                peers.append(peer)
        removed = yield from _remove(peers, PEER_REMOVED, query.reason, LeaveReason.REMOVED)
        return PeersRemoved(removed)

    def _remove_resuming(self, topic: str, peer: str | None, code: int, reason: str, ending: LeaveReason) -> bool:
        """Remove peers whose sessions are on their way from another node, which may have removed them too late.

        Returns:
            Whether there are any.
        """

        def resumed(peer_id: str) -> None:
            # Not at once: its client is still being welcomed.
            self._clock.callLater(0, remove, peer_id)

        def remove(peer_id: str) -> None:
            found = self._topics.find(topic)
            here = found.get(peer_id) if found is not None else None
            if here is not None:
                here.remove(code, reason, ending)

        return self._services.backplane.for_resuming(topic, peer, resumed)

    def _close_topic(self, query: CloseTopic) -> _Steps:
        self._remove_resuming(query.topic, None, TOPIC_CLOSED, query.reason, LeaveReason.TOPIC_CLOSED)
        topic = self._topics.find(query.topic)
        if topic is None:
            return PeersRemoved(obstacle=Obstacle.UNKNOWN_TOPIC)
        removed = yield from _remove(tuple(topic), TOPIC_CLOSED, query.reason, LeaveReason.TOPIC_CLOSED)
        return PeersRemoved(removed)

    def _send_notice(self, query: SendNotice) -> _Steps:
        topic = self._topics.find(query.topic)
        if topic is None:
            return NoticeSent(obstacle=Obstacle.UNKNOWN_TOPIC)
        if query.to is None:
            targets = tuple(topic)
        else:
            only = topic.get(query.to)
            if only is None:
                return NoticeSent(obstacle=Obstacle.UNKNOWN_PEER)
            targets = (only,)
        frame = text_frame(messages.notice(query.data))
        received = 0
        for number, peer in enumerate(targets):
            if number and not number % _NOTICES_PER_SLICE:
                yield
            if peer.topic is topic:
                peer.catch_up()
                received += peer.offer_notice(frame)
        self._services.counters.notices_received += received
        return NoticeSent(received)


def _nobody(topic: Topic[Peer] | None) -> Obstacle:
    return Obstacle.UNKNOWN_TOPIC if topic is None else Obstacle.UNKNOWN_PEER


def _remove(peers: Sequence[Peer], code: int, reason: str, ending: LeaveReason) -> Generator[None, None, int]:
    """Remove peers from their topic, a few in each slice; returns how many have not left by themselves before."""
    for peer in peers:
        # Those whose turn comes later must not move to another node meanwhile.
        peer.forbid_resuming()
    removed = 0
    for number, peer in enumerate(peers):
        if number and not number % _CLOSES_PER_SLICE:
            yield
        if peer.topic is not None:
            peer.remove(code, reason, ending)
            removed += 1
    return removed
