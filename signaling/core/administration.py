"""Carries out what an operator asks on the peers of this process, a slice at a time (docs/admin.md)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import msgspec

from signaling.admission.logged_addresses import LoggedAddresses
from signaling.core import messages
from signaling.core.admin_queries import (
    MAX_LIMIT,
    Answer,
    BlockSubject,
    CloseTopic,
    DescribeTopic,
    ListTopics,
    NoticeSent,
    Obstacle,
    PeerEntry,
    PeersRemoved,
    Query,
    RemovePeer,
    SendNotice,
    TopicDescription,
    TopicPage,
    TopicSize,
    decode,
    encode,
)
from signaling.core.blocks import Blocks
from signaling.core.peer import Peer, PeerServices
from signaling.core.topics import Topic
from signaling.errors import CloseCode, LeaveReason
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler
from signaling.websocket.frames import text_frame

# Each slice takes about a millisecond; the reactor handles its other events after it.
_NAMES_PER_SLICE = 5_000
_PEERS_PER_SLICE = 1_000
_NOTICES_PER_SLICE = 128
_CLOSES_PER_SLICE = 32

_Steps = Generator[None, None, Answer]


class _Job:
    def __init__(self, steps: _Steps, on_answer: Callable[[bytes], None]) -> None:
        self.steps = steps
        self.on_answer = on_answer


class Administration:
    """Carries out queries on the peers of this process.

    Args:
        services: what the peers share.
        blocks: which owners of tokens are kept out of topics.
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
                # Another program may have sent it to this process, and no client could read what is not JSON.
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
            job.on_answer(encode(end.value))
        except Exception:
            # The process that asked must not wait for an answer that never comes; the reactor logs what was raised.
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
        now = self._clock.seconds()
        entries = []
        for number, peer in enumerate(self._topics.find(query.topic) or ()):
            if number and not number % _PEERS_PER_SLICE:
                yield
            address = self._addresses.shown(peer.details.address if peer.details is not None else None)
            seconds = round(max(0.0, now - peer.joined_at), 3)
            entries.append(PeerEntry(peer.id, peer.metadata, seconds, peer.subject, address, peer.detached))
        return TopicDescription(entries)

    def _remove_peer(self, query: RemovePeer) -> _Steps:
        topic = self._topics.find(query.topic)
        peer = topic.get(query.peer) if topic is not None else None
        if topic is None or peer is None:
            if self._remove_resuming(
                query.topic, query.peer, CloseCode.PEER_REMOVED, query.reason, LeaveReason.REMOVED
            ):
                return PeersRemoved(1)
            return PeersRemoved(obstacle=_nobody(topic))
        if not query.block_seconds:
            removed = yield from _remove([peer], CloseCode.PEER_REMOVED, query.reason, LeaveReason.REMOVED)
            return PeersRemoved(removed)
        details = peer.details
        # An empty subject identifies nobody, as in ``session_owner``.
        if details is None or not details.subject:
            return PeersRemoved(obstacle=Obstacle.NO_SUBJECT)
        block = BlockSubject(query.topic, details.subject, query.block_seconds, details.issuer, query.reason)
        removal = yield from self._block_subject(block)
        return PeersRemoved(removal.peers, subject=details.subject, issuer=details.issuer)

    def _block_subject(self, query: BlockSubject) -> Generator[None, None, PeersRemoved]:
        self._blocks.add(query.topic, query.subject, query.issuer, query.seconds)
        owner = query.subject, query.issuer
        peers = [
            peer
            for peer in self._topics.find(query.topic) or ()
            if peer.details is not None and (peer.details.subject, peer.details.issuer) == owner
        ]
        removed = yield from _remove(peers, CloseCode.PEER_REMOVED, query.reason, LeaveReason.REMOVED)
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
        self._remove_resuming(query.topic, None, CloseCode.TOPIC_CLOSED, query.reason, LeaveReason.TOPIC_CLOSED)
        topic = self._topics.find(query.topic)
        if topic is None:
            return PeersRemoved(obstacle=Obstacle.UNKNOWN_TOPIC)
        removed = yield from _remove(tuple(topic), CloseCode.TOPIC_CLOSED, query.reason, LeaveReason.TOPIC_CLOSED)
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
