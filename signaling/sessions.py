"""Peers that survive the loss of their connection (docs/protocol.md, "Resuming").

A connection is only one way to a peer. Where it is lost, a queue takes its place, until the peer comes back on another
connection or the window is over. What was sent is kept until pongs tell that it arrived, for a connection can be lost
together with what was written to it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hmac import compare_digest
from typing import Any, Protocol

import msgspec

from signaling import wire
from signaling.admission import Admission, Place
from signaling.announcer import Announcer, Block
from signaling.clock import Clock
from signaling.counters import Counters
from signaling.deadlines import Deadlines
from signaling.errors import Rejected
from signaling.frames import text_frame
from signaling.history import History
from signaling.ids import ID_CHARACTERS
from signaling.limits import Limits
from signaling.outbound import OutboundQueue
from signaling.peer import Peer, return_undelivered
from signaling.ports import Backplane, Outbound, Proof, Receipt
from signaling.topics import Topic, TopicMap
from signaling.upgrade import Claim, Join

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
        place: which it holds among the server's connections; None where it gave it up.
    """

    place: Place | None

    @property
    def said_goodbye(self) -> bool:
        """Whether it ends by a close frame, and its peer with it."""

    def ask(self, mark: bytes) -> None:
        """Ask the other end to return ``mark`` once everything before it has arrived."""

    def give_up(self) -> list[Receipt]:
        """End; returns the receipts of what was never written, oldest first."""


class Away(OutboundQueue[Receipt]):
    """Takes the place of a connection that was lost: what is offered waits, up to the marks.

    Attributes:
        lent: whether its peer is about to go on at another node; then nothing is taken.
    """

    __slots__ = ("lent", "place")

    said_goodbye = False

    def __init__(self, limits: Limits, place: Place | None) -> None:
        super().__init__(lambda frame: None, lambda receipt: None, limits.high_water_messages, limits.high_water_bytes)
        self.place = place
        self.lent = False
        self.block()

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Queue ``frame``, or refuse it."""
        return not self.lent and super().offer(frame, receipt)

    def ask(self, mark: bytes) -> None:
        """Ask nobody."""

    def give_up(self) -> list[Receipt]:
        """Return the receipts of all that waits."""
        return self.abandon()


class ResumablePeer(Peer):
    """A peer that remembers what it was sent, and can prove to be the same on another connection."""

    __slots__ = (
        "_asked_at",
        "_history",
        "_proven_at",
        "_secrets",
        "_since_asked",
        "_window",
        "owner",
        "unwritten",
        "way",
    )

    way: Way

    def __init__(  # noqa: PLR0913, PLR0917 - what a peer needs, and its bounds
        self,
        peer_id: str,
        join: Join,
        topics: TopicMap[Peer],
        announcer: Announcer,
        backplane: Backplane,
        counters: Counters,
        limits: Limits,
    ) -> None:
        super().__init__(peer_id, join.metadata, topics, announcer, backplane, counters)
        self.owner = join.owner
        self._window = limits.resume_window_seconds
        self._history = History(16 * limits.high_water_messages, 2 * limits.high_water_bytes)
        self._secrets: list[bytes] = []
        self._asked_at = self._since_asked = self._proven_at = 0
        # Relays that a former way never wrote.
        self.unwritten: list[Receipt] = []

    @property
    def lent(self) -> bool:
        """Whether it may go on at another node by now."""
        return isinstance(self.way, Away) and self.way.lent

    def stay(self) -> None:
        """Be this node's for sure: no other one took it."""
        if isinstance(self.way, Away):
            self.way.lent = False
        if self.topic is not None:
            self._backplane.doubt(self.topic.name)

    def go(self, way: Way) -> None:
        """Send to ``way`` from now on."""
        self.way = way
        self.attach(way)

    def knows(self, secret: bytes) -> bool:
        """Tell whether a token's secret is this peer's; how long that takes tells nothing of it."""
        return any(compare_digest(secret, own) for own in self._secrets)

    def reaches(self, seen: int) -> bool:
        """Tell whether everything after the ``seen``-th message can be sent again."""
        return self._history.reaches(seen)

    def session(self) -> bytes:
        """Write down what another node needs to go on with this peer."""
        return _encode(_Session(self.metadata, self.owner, self._history.sent, self._history.kept))

    def revive(self, session: bytes, topic: str, claim: Claim) -> bool:
        """Be the peer whose session another node wrote down, in its topic, without a word to anybody.

        Args:
            claim: that the other node found good.

        Returns:
            False where it cannot: another version's session, one longer than is kept here, or a topic that is full.
        """
        try:
            text = _decode_session(session)
            self.metadata = text.metadata
            self._history.restore(text.sent, text.kept)
            if not self.reaches(claim.seen):
                return False
            self.topic = self._topics.join(topic, self)
        except (msgspec.MsgspecError, Rejected):
            return False
        self._secrets = [claim.token[ID_CHARACTERS:]]
        return True

    def come_back(self, way: Way, claim: Claim, ice_servers: bytes | None) -> None:
        """Go on where the other end lost its connection.

        Args:
            way: to the other end's new connection.
            claim: what it said; ``knows`` and ``reaches`` hold.
            ice_servers: as for ``join``.
        """
        # What they are for is sent again below.
        given_up = self.way.give_up() if self.way is not way else []
        again, self.unwritten = self.unwritten + given_up, []
        missed = self._history.rewind(claim.seen)
        # A connection that breaks at once may take the new token with it: the one that was used holds until a pong
        # proves that the new one arrived.
        self._secrets = [claim.token[ID_CHARACTERS:]]
        self.go(way)
        if self.topic is not None:
            self._greet(self.topic, ice_servers)
        for frame in missed:
            way.answer(frame)
            self._history.add(frame)
        for sender, _ in again:
            sender.written()
        self._ask()

    def acknowledge(self, mark: bytes) -> None:
        """Take a pong's payload: what it numbers has arrived."""
        if not (mark.isdigit() and len(mark) <= _LONGEST_MARK):
            return
        number = min(int(mark), self._history.sent)
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
        unwritten, self.unwritten = self.unwritten, []
        return_undelivered(unwritten, self._counters)

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Hand ``frame`` to the way, and remember it where that took it."""
        taken = super().offer(frame, receipt)
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
            wire.welcome(self.id, ice_servers, (self.id + secret, self._window), resumed=resumed),
            wire.peer_list(self._listed(topic)),
        ):
            self.way.answer(text_frame(message))
            self._history.add(None)
        self._proven_at = self._history.sent


class _Session(msgspec.Struct, array_like=True):
    metadata: bytes | None
    owner: tuple[str | None, bytes | None] | None
    sent: int
    kept: list[bytes | None]


class _ProofText(msgspec.Struct, array_like=True):
    token: bytes
    seen: int
    owner: tuple[str | None, bytes | None] | None


_encode = msgspec.msgpack.Encoder().encode
_decode_session = msgspec.msgpack.Decoder(_Session).decode
_decode_proof = msgspec.msgpack.Decoder(_ProofText).decode


def proof(join: Join) -> Proof | None:
    """Write down what a request says of being a peer again; None where it says nothing."""
    claim = join.claim
    if claim is None:
        return None
    peer = claim.token[:ID_CHARACTERS].decode("ascii", "replace")
    return Proof(peer, _encode(_ProofText(claim.token, claim.seen, join.owner)))


class Sessions:
    """The peers of one server that can come back.

    Args:
        limits: the bounds.
        clock: tells the time.
        topics: where the peers are.
        admission: where the places of those that do not come back go.
        on_gone: hears of a peer that is about to leave without having come back.

    Attributes:
        away: those without a connection.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        topics: TopicMap[Peer],
        admission: Admission,
        on_gone: Callable[[ResumablePeer, str], None],
    ) -> None:
        self._limits = limits
        self._topics = topics
        self._admission = admission
        self._on_gone = on_gone
        self.away: set[ResumablePeer] = set()
        self._windows: Deadlines[ResumablePeer] = Deadlines(clock, limits.resume_window_seconds, self._gone)
        self._loans: Deadlines[ResumablePeer] = Deadlines(clock, _LOAN_SECONDS, ResumablePeer.stay)

    @property
    def waiting(self) -> int:
        """How many relays wait for those without a connection."""
        return sum(len(peer.unwritten) + peer.way.receipts for peer in self.away if isinstance(peer.way, Away))

    def find(self, join: Join) -> ResumablePeer | None:
        """Return the peer that the request may be again: of that topic, with that token, and of the same owner."""
        claim = join.claim
        if claim is None:
            return None
        topic = self._topics.find(join.topic)
        peer = topic.get(claim.token[:ID_CHARACTERS].decode("ascii", "replace")) if topic is not None else None
        return self._proven(peer, claim.token, join.owner)

    def _proven(self, peer: Peer | None, token: bytes, owner: Any) -> ResumablePeer | None:
        if not isinstance(peer, ResumablePeer) or peer.owner != owner or peer.way.said_goodbye:
            return None
        return peer if peer.knows(token[ID_CHARACTERS:]) else None

    def lend(self, peer: Peer, text: bytes) -> bytes | None:
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
            place, way.place = way.place, None
            proven.unwritten += way.give_up()
            self.keep(proven, place)
        if isinstance(proven.way, Away):
            proven.way.lent = True
        self._loans.set(proven)
        # It must not leave while another node takes it over.
        self._windows.set(proven)
        return proven.session()

    def keep(self, peer: ResumablePeer, place: Place | None) -> None:
        """Let a peer stay whose connection was lost.

        Args:
            place: the connection's, which the peer holds on to: who comes and breaks off again and again must not
                hold more than connections could.
        """
        peer.go(Away(self._limits, place))
        self.away.add(peer)
        self._windows.set(peer)

    def back(self, peer: ResumablePeer) -> None:
        """Notice that a peer is back on another connection."""
        was_lent = peer.lent
        self._release(peer)
        if was_lent:
            peer.stay()

    def _release(self, peer: ResumablePeer) -> None:
        """Free what a peer needed while it waited, or on its former connection."""
        self.away.discard(peer)
        self._windows.clear(peer)
        self._loans.clear(peer)
        place, peer.way.place = peer.way.place, None
        if place is not None:
            self._admission.release(place)

    def dismiss(self, peer: ResumablePeer, reason: str) -> None:
        """Let a peer leave, whether it has a connection or not."""
        self._release(peer)
        self._on_gone(peer, reason)
        peer.unwritten += peer.way.give_up()
        peer.detach()
        peer.leave()

    def hand_over(self, peer: ResumablePeer) -> None:
        """Forget a peer that goes on elsewhere, without a word."""
        self._release(peer)
        for sender, _ in peer.unwritten + peer.way.give_up():
            sender.written()
        peer.detach()
        peer.vanish()

    def dismiss_away(self, peer: ResumablePeer) -> None:
        """Let a peer leave because the server stops, unless it is gone already."""
        if peer in self.away:
            self.dismiss(peer, "the server is stopping")

    def rest(self) -> None:
        """Take no timer where nobody is away."""
        self._windows.rest()
        self._loans.rest()

    def _gone(self, peer: ResumablePeer) -> None:
        self.dismiss(peer, "it did not come back")
