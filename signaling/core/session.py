"""Peers that survive the loss of their connection (docs/protocol.md, "Resuming").

A connection is only one way to a peer. Where it is lost, a queue takes its place, until the peer comes back on another
connection or the window is over. What was sent is kept until pongs tell that it arrived, for a connection can be lost
together with what was written to it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from hmac import compare_digest
from typing import Protocol

import msgspec

from signaling.admission.client_address import Client
from signaling.admission.connection_limits import ConnectionSlot
from signaling.core import messages
from signaling.core.announcer import Announcer, Block
from signaling.core.counters import Counters
from signaling.core.interfaces import (
    Backplane,
    Forwarding,
    IncomingSession,
    Outbound,
    OutgoingSession,
    Receipt,
    ResumeProof,
)
from signaling.core.join_request import JoinRequest, ResumeClaim
from signaling.core.peer import Peer, return_undelivered
from signaling.core.peer_ids import ID_CHARACTERS
from signaling.core.replay_buffer import ReplayBuffer
from signaling.core.topics import Topic, TopicMap
from signaling.errors import ErrorCode, Rejected
from signaling.limits import Limits
from signaling.timing.clock import Clock
from signaling.timing.timeouts import Timeouts
from signaling.timing.wall_clock_timers import WallClockTimers
from signaling.websocket.frames import text_frame
from signaling.websocket.outbound_queue import OutboundQueue

# How much is on its way at the most before the other end is asked what has arrived, besides the usual pings.
_ASK_AFTER_FRAMES = 8
_ASK_AFTER_BYTES = 16_384
_SECRET_BYTES = 18
# For the node that asked for a peer to say that it has it.
_LOAN_SECONDS = 5.0
# A pong may carry anything.
_LONGEST_MARK = 15


class Way(Outbound, Protocol):
    """A way to a resumable peer.

    Attributes:
        slot: the connection slot that it holds; None if it was given to another connection.
    """

    slot: ConnectionSlot | None

    @property
    def said_goodbye(self) -> bool:
        """Whether it ends by a close frame, and its peer with it."""

    def ask(self, mark: bytes) -> None:
        """Ask the other end to return ``mark`` once everything before it has arrived."""

    def give_up(self) -> None:
        """End; the peer knows what was never written."""


class Away(OutboundQueue[Receipt]):
    """Takes the place of a connection that was lost: what is offered waits, up to the marks.

    Attributes:
        lent: whether its peer is about to go on at another node; then nothing is taken.
    """

    __slots__ = ("lent", "slot")

    said_goodbye = False

    def __init__(self, limits: Limits, slot: ConnectionSlot | None) -> None:
        super().__init__(lambda frame: None, lambda receipt: None, limits.high_water_messages, limits.high_water_bytes)
        self.slot = slot
        self.lent = False
        self.block()

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Queue ``frame``, or refuse it."""
        return not self.lent and super().offer(frame, receipt)

    def ask(self, mark: bytes) -> None:
        """Ask nobody."""

    def give_up(self) -> None:
        """Forget all that waits."""
        self.abandon()


class _Unwritten:
    """A relay that waits for a resumable peer, as the sender that the peer's way knows."""

    __slots__ = ("_number", "_target")

    def __init__(self, target: ResumablePeer, number: int) -> None:
        self._target = target
        self._number = number

    def relay_queued(self, msg_id: bytes | None) -> None:
        """No-op: its target knows."""

    def relay_written(self, msg_id: bytes | None) -> None:
        """Report it to the true sender."""
        self._target.report(self._number, None)

    def relay_failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """Report it to the true sender."""
        self._target.report(self._number, code)


class _HandedOff:
    """A relay whose target another node has taken over, with all that waited for it."""

    __slots__ = ("_counters", "_receipt")

    def __init__(self, receipt: Receipt, counters: Counters) -> None:
        self._receipt = receipt
        self._counters = counters

    def delivered(self) -> None:
        """Report that the other node wrote it."""
        self._counters.relays_delivered_remotely += 1
        sender, msg_id = self._receipt
        sender.relay_written(msg_id)

    def failed(self, code: ErrorCode) -> None:
        """Report that it is not delivered; whatever became of its target, it was there when the relay came."""
        return_undelivered([self._receipt], self._counters)


class _Followed:
    """A relay that its sender sent at another node, before it was handed off to this one."""

    __slots__ = ("_msg_id", "_sender")

    def __init__(self, sender: ResumablePeer, msg_id: bytes | None) -> None:
        self._sender = sender
        self._msg_id = msg_id

    def delivered(self) -> None:
        """The other node has counted it."""
        self._sender.relay_written(self._msg_id)

    def failed(self, code: ErrorCode) -> None:
        """Answer it; the other node has counted it."""
        self._sender.relay_failed(self._msg_id, code)


class ResumablePeer(Peer):
    """A peer that remembers what it was sent, and can prove to be the same on another connection.

    It knows the relays to it that are not written yet, and its own that have no outcome yet: both go with it to another
    node.
    """

    __slots__ = (
        "_asked_at",
        "_history",
        "_offers",
        "_open",
        "_opened",
        "_proven_at",
        "_secrets",
        "_since_asked",
        "_unanswered",
        "_unwritten",
        "_window",
        "expires",
        "owner",
        "way",
    )

    way: Way

    def __init__(  # noqa: PLR0913, PLR0917 - what a peer needs, and its bounds
        self,
        peer_id: str,
        join: JoinRequest,
        topics: TopicMap[Peer],
        announcer: Announcer,
        backplane: Backplane,
        counters: Counters,
        limits: Limits,
    ) -> None:
        super().__init__(peer_id, join.metadata, topics, announcer, backplane, counters)
        self.owner = join.owner
        # Of the token of its latest connection, in seconds since 1970; None means never.
        self.expires = join.expires
        self._window = limits.resume_window_seconds
        self._history = ReplayBuffer(16 * limits.high_water_messages, 2 * limits.high_water_bytes)
        self._secrets: list[bytes] = []
        self._asked_at = self._since_asked = self._proven_at = 0
        # Relays to it that no way has written yet, by their numbers in the history.
        self._unwritten: dict[int, Receipt] = {}
        # Its own relays without an outcome, by msgId, with numbers of their own; what other nodes were offered, and may
        # still take; and what this peer has to be answered if none takes it.
        self._open: dict[bytes | None, list[int]] = {}
        self._opened = 0
        self._offers: list[OutgoingSession] = []
        self._unanswered: list[tuple[bytes | None, ErrorCode]] = []

    @property
    def lent(self) -> bool:
        """Whether it may go on at another node by now."""
        return isinstance(self.way, Away) and self.way.lent

    @property
    def waiting(self) -> int:
        """How many relays wait for it."""
        return len(self._unwritten)

    def stay(self) -> None:
        """Be this node's for sure: no other one took it."""
        if isinstance(self.way, Away):
            self.way.lent = False
        unanswered, self._unanswered = self._unanswered, []
        for msg_id, code in unanswered:
            super().relay_failed(msg_id, code)
        if self.topic is not None:
            self._backplane.resync(self.topic.name)

    def go(self, way: Way) -> None:
        """Send to ``way`` from now on."""
        self.way = way
        self.attach(way)

    def transfer_slot(self, client: Client) -> ConnectionSlot | None:
        """Give the connection slot to a connection that is about to resume this session.

        Returns:
            None if another connection has it already.

        Raises:
            Refused: 429; then the slot is still held.
        """
        held = self.way.slot
        if held is None:
            return None
        slot = held.transfer(client)
        self.way.slot = None
        return slot

    def return_slot(self, slot: ConnectionSlot) -> None:
        """Take back the slot of a connection that ended before it resumed this session; release it if not needed."""
        if self.topic is not None and self.way.slot is None:
            self.way.slot = slot
        else:
            slot.release()

    def knows(self, secret: bytes) -> bool:
        """Tell whether a token's secret is this peer's; how long that takes tells nothing of it."""
        return any(compare_digest(secret, own) for own in self._secrets)

    def reaches(self, seen: int) -> bool:
        """Tell whether everything after the ``seen``-th message can be sent again."""
        return self._history.reaches(seen)

    def hand_off(self) -> OutgoingSession:
        """Write down what another node needs to go on with this peer, which takes nothing from now on.

        Outcomes of its relays are reported to that node, whether it takes the peer or not.
        """
        if isinstance(self.way, Away) and not self.way.lent:
            self.way.lent = True
            history, waiting = self._history, list(self._unwritten)
            opened = [(number, msg_id) for msg_id, numbers in self._open.items() for number in numbers]
            text = _encode(_Session(self.metadata, self.owner, history.sent, history.kept, waiting, opened))
            self._offers.append(OutgoingSession(text, waiting, {number for number, _ in opened}))
        return self._offers[-1]

    def revive(self, session: IncomingSession, topic: str, claim: ResumeClaim) -> bool:
        """Be the peer whose session another node wrote down, in its topic, without a word to anybody.

        Args:
            claim: that the other node found good.

        Returns:
            False where it cannot: another version's session, or a topic that is full.
        """
        try:
            text = _decode_session(session.text)
            self.metadata = text.metadata
            self._history.restore(text.sent, text.kept)
            if not self.reaches(claim.seen):
                return False
            self.topic = self._topics.join(topic, self)
        except (msgspec.MsgspecError, Rejected):
            return False
        self._secrets = [claim.token[ID_CHARACTERS:]]
        self._unwritten = {number: session.receipt(number) for number in text.waiting}
        self._counters.relays_received += len(text.waiting)
        for number, msg_id in text.open:
            self._opened = max(self._opened, number)
            self._open.setdefault(msg_id, []).append(number)
            session.follow(number, _Followed(self, msg_id))
        return True

    def go_elsewhere(self, taken: Collection[int]) -> Mapping[int, Forwarding]:
        """Leave without a word, as another node has this peer; as ``Node.moved``."""
        self.detach()
        self.vanish()
        unwritten, self._unwritten = self._unwritten, {}
        return_undelivered([receipt for number, receipt in unwritten.items() if number not in taken], self._counters)
        return {number: _HandedOff(receipt, self._counters) for number, receipt in unwritten.items() if number in taken}

    def come_back(self, way: Way, claim: ResumeClaim, ice_servers: bytes | None) -> None:
        """Go on where the other end lost its connection.

        Args:
            way: to the other end's new connection.
            claim: what it said; ``knows`` and ``reaches`` hold.
            ice_servers: as for ``join``.
        """
        if self.way is not way:
            self.way.give_up()
        self._outdate_offers()
        missed = self._history.rewind(claim.seen)
        # A connection that breaks at once may take the new token with it: the one that was used holds until a pong
        # proves that the new one arrived.
        self._secrets = [claim.token[ID_CHARACTERS:]]
        self.go(way)
        if self.topic is not None:
            self._greet(self.topic, ice_servers)
        for number, frame in missed:
            way.answer(frame)
            self._history.add(frame)
            self.report(number, None)
        # A client that counts what it was never sent gets none of it.
        self._drop_unwritten()
        self._ask()

    def _outdate_offers(self) -> None:
        """Keep what was offered to other nodes to what they may still have to be told."""
        for offer in self._offers:
            # What waited has its end here, and numbers begin anew.
            offer.waiting = ()
        opened = {number for numbers in self._open.values() for number in numbers} if self._offers else set()
        self._offers = [offer for offer in self._offers if not opened.isdisjoint(offer.open)]

    def _wait(self, receipt: Receipt) -> Receipt:
        """Remember that the next frame waits; returns the receipt for the way."""
        number = self._history.sent + 1
        self._unwritten[number] = receipt
        return _Unwritten(self, number), receipt[1]

    def report(self, number: int, code: ErrorCode | None) -> None:
        """Report the outcome of a relay that waited to its sender, unless that was done before; None for written."""
        sender, msg_id = self._unwritten.pop(number, (None, None))
        if sender is not None and code is None:
            sender.relay_written(msg_id)
        elif sender is not None and code is not None:
            sender.relay_failed(msg_id, code)

    def acknowledge(self, mark: bytes) -> None:
        """Take a pong's payload: what it numbers has arrived."""
        if not (mark.isdigit() and len(mark) <= _LONGEST_MARK):
            return
        # What was not written did not arrive, whatever the other end says.
        number = min(int(mark), next(iter(self._unwritten), self._history.sent + 1) - 1)
        self._history.forget(number)
        if number >= self._proven_at:
            # The other end has its new token, and the one that it used is good for nothing any more.
            del self._secrets[1:]

    @property
    def mark(self) -> bytes:
        """What a ping asks to be returned."""
        self._since_asked, self._asked_at = 0, self._history.sent
        return b"%d" % self._history.sent

    def leave(self) -> None:
        """Leave, and tell the senders of what was never written."""
        super().leave()
        self._drop_unwritten()

    def _drop_unwritten(self) -> None:
        unwritten, self._unwritten = self._unwritten, {}
        return_undelivered(unwritten.values(), self._counters)

    def relay_queued(self, msg_id: bytes | None) -> None:
        """Remember a relay that has no outcome yet."""
        self._opened += 1
        self._open.setdefault(msg_id, []).append(self._opened)

    def relay_written(self, msg_id: bytes | None) -> None:
        """Report it to the node that may have taken this peer."""
        self._close(msg_id, None)

    def relay_failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """Answer a relay that was accepted and is not delivered, at this node or the one that has taken this peer."""
        self._close(msg_id, code)
        if self.topic is not None and self.lent:
            self._unanswered.append((msg_id, code))
        elif self.topic is not None:
            super().relay_failed(msg_id, code)

    def _close(self, msg_id: bytes | None, code: ErrorCode | None) -> None:
        numbers = self._open.get(msg_id)
        if numbers is None:
            return
        # Of relays with the same msgId it does not matter which is which: their answers differ in nothing else.
        number = numbers.pop()
        if not numbers:
            del self._open[msg_id]
        for offer in self._offers:
            if number in offer.open:
                offer.report(number, code)

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Hand ``frame`` to the way, and remember it where that took it."""
        if receipt is None or not self.blocked:
            taken = super().offer(frame, receipt)
        else:
            taken = self._offer_waiting(frame, receipt)
        if taken:
            # An event makes no sense a second time: the list that comes first has what came of it, and of those that
            # were dropped, or missed on the way from one node to another.
            self._remember(len(frame), frame if receipt is not None else None)
        return taken

    def _write_block(self, block: Block) -> bool:
        taken = super()._write_block(block)
        if taken:
            self._remember(len(block.data), *(None for _ in block.events))
        return taken

    def _offer_waiting(self, frame: bytes, receipt: Receipt) -> bool:
        if not super().offer(frame, self._wait(receipt)):
            del self._unwritten[self._history.sent + 1]
            return False
        sender, msg_id = receipt
        sender.relay_queued(msg_id)
        return True

    def renew(self, ice_servers: bytes) -> None:
        """Tell the peer of new ICE servers, once: those in the welcome of a resume are fresher."""
        frame = text_frame(messages.ice_servers(ice_servers))
        self.way.answer(frame)
        self._remember(len(frame), None)

    def _answer(self, message: bytes) -> None:
        frame = text_frame(message)
        self.way.answer(frame)
        self._remember(len(frame), frame)

    def _remember(self, size: int, *frames: bytes | None) -> None:
        """Remember what was sent: so many bytes, and None for each frame that makes no sense a second time."""
        for frame in frames:
            self._history.add(frame)
        self._since_asked += size
        if self._history.sent - self._asked_at >= _ASK_AFTER_FRAMES or self._since_asked >= _ASK_AFTER_BYTES:
            self._ask()

    def _ask(self) -> None:
        self.way.ask(self.mark)

    def _greet(self, topic: Topic[Peer], ice_servers: bytes | None) -> None:
        self._announcer.skip(topic, self)
        resumed = bool(self._secrets)
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        self._secrets = [secret.encode(), *self._secrets]
        for message in (
            messages.welcome(self.id, ice_servers, (self.id + secret, self._window), resumed=resumed),
            messages.peer_list(self._listed(topic)),
        ):
            self.way.answer(text_frame(message))
            self._history.add(None)
        self._proven_at = self._history.sent


class _Session(msgspec.Struct, array_like=True):
    metadata: bytes | None
    owner: bytes | None
    sent: int
    kept: list[bytes | None]
    waiting: list[int]
    open: list[tuple[int, bytes | None]]


class _ProofText(msgspec.Struct, array_like=True):
    token: bytes
    seen: int
    owner: bytes | None


_encode = msgspec.msgpack.Encoder().encode
_decode_session = msgspec.msgpack.Decoder(_Session).decode
_decode_proof = msgspec.msgpack.Decoder(_ProofText).decode


def proof(join: JoinRequest) -> ResumeProof | None:
    """Write down what a request says of being a peer again; None where it says nothing."""
    claim = join.claim
    if claim is None:
        return None
    peer = claim.token[:ID_CHARACTERS].decode("ascii", "replace")
    return ResumeProof(peer, _encode(_ProofText(claim.token, claim.seen, join.owner)))


class Sessions:
    """The peers of one server that can come back.

    Args:
        limits: the bounds.
        clock: tells the time.
        topics: where the peers are.
        on_gone: hears of a peer that is about to leave without having come back.
        wall_clock: tells when tokens expire, in seconds since 1970.

    Attributes:
        away: those without a connection, in the order in which they lost it.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        topics: TopicMap[Peer],
        on_gone: Callable[[ResumablePeer, str], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits
        self._topics = topics
        self._on_gone = on_gone
        self.away: dict[ResumablePeer, None] = {}
        self._windows: Timeouts[ResumablePeer] = Timeouts(clock, limits.resume_window_seconds, self._gone)
        self._loans: Timeouts[ResumablePeer] = Timeouts(clock, _LOAN_SECONDS, self._stay)
        self._wall_clock = wall_clock
        self._expiries: WallClockTimers[ResumablePeer] = WallClockTimers(clock, wall_clock, self._expired)

    @property
    def waiting(self) -> int:
        """How many relays wait for those without a connection."""
        return sum(peer.waiting for peer in self.away)

    def find(self, join: JoinRequest) -> ResumablePeer | None:
        """Return the peer that the request may be again: of that topic, with that token, and of the same owner."""
        claim = join.claim
        if claim is None:
            return None
        topic = self._topics.find(join.topic)
        peer = topic.get(claim.token[:ID_CHARACTERS].decode("ascii", "replace")) if topic is not None else None
        return self._proven(peer, claim.token, join.owner)

    def _proven(self, peer: Peer | None, token: bytes, owner: bytes | None) -> ResumablePeer | None:
        if not isinstance(peer, ResumablePeer) or peer.owner != owner or peer.way.said_goodbye:
            return None
        return peer if peer.knows(token[ID_CHARACTERS:]) else None

    def prepare_handoff(self, peer: Peer, text: bytes) -> OutgoingSession | None:
        """Get a peer ready to go on at another node.

        Until that node has it, or for some seconds, it takes nothing: what it were given would be missing there.

        Args:
            text: of the proof.

        Returns:
            Its session; None where the proof is not good, or reaches too far back.
        """
        try:
            told = _decode_proof(text)
        except msgspec.MsgspecError:
            # Another version's.
            return None
        proven = self._proven(peer, told.token, told.owner)
        if proven is None:
            return None
        if not proven.reaches(told.seen):
            self.dismiss(proven, "it came back for more than is kept")
            return None
        way = proven.way
        if not isinstance(way, Away):
            slot, way.slot = way.slot, None
            way.give_up()
            self.keep(proven, slot)
        self._loans.set(proven)
        # It must not leave while another node takes it over.
        self._windows.clear(proven)
        return proven.hand_off()

    def _stay(self, peer: ResumablePeer) -> None:
        self._windows.set(peer)
        peer.stay()

    def keep(self, peer: ResumablePeer, slot: ConnectionSlot | None) -> None:
        """Let a peer stay whose connection was lost.

        Args:
            slot: the connection's, which the peer holds on to: who comes and breaks off again and again must not
                hold more than connections could.
        """
        peer.go(Away(self._limits, slot))
        self.away[peer] = None
        self._windows.set(peer)
        if peer.expires is not None:
            self._expiries.set(peer, peer.expires)

    def back(self, peer: ResumablePeer) -> None:
        """Notice that a peer is back on another connection."""
        was_lent = peer.lent
        self._release(peer)
        if was_lent:
            peer.stay()

    def _release(self, peer: ResumablePeer) -> None:
        """Free what a peer needed while it waited, or on its former connection."""
        self.away.pop(peer, None)
        self._windows.clear(peer)
        self._loans.clear(peer)
        self._expiries.clear(peer)
        self._expiries.rest()
        slot, peer.way.slot = peer.way.slot, None
        if slot is not None:
            slot.release()

    def dismiss(self, peer: ResumablePeer, reason: str) -> None:
        """Let a peer leave, whether it has a connection or not."""
        self._release(peer)
        self._on_gone(peer, reason)
        peer.way.give_up()
        peer.detach()
        peer.leave()

    def hand_over(self, peer: ResumablePeer, taken: Collection[int]) -> Mapping[int, Forwarding]:
        """Forget a peer that goes on elsewhere, without a word; as ``Node.moved``."""
        self._release(peer)
        peer.way.give_up()
        return peer.go_elsewhere(taken)

    def dismiss_away(self, peer: ResumablePeer) -> None:
        """Let a peer leave because the server stops, unless it is gone already."""
        if peer in self.away:
            self.dismiss(peer, "the server is stopping")

    def rest(self) -> None:
        """Take no timer where nobody is away."""
        self._windows.rest()
        self._loans.rest()
        self._expiries.rest()

    def _expired(self, peer: ResumablePeer) -> None:
        if peer.lent:
            # Another node, which was shown a good token, may have it by now: look again when that is settled.
            self._expiries.set(peer, self._wall_clock() + _LOAN_SECONDS)
        else:
            self.dismiss(peer, "its token has expired")
            self.rest()

    def _gone(self, peer: ResumablePeer) -> None:
        self.dismiss(peer, "it did not come back")
