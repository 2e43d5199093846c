"""A member of a topic, without I/O: joining, relaying, leaving.

A plain peer lives as long as its connection. A peer that can resume is a ``PeerSession`` (``core/session.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from signaling.core import messages
from signaling.core.announcer import Announcer, Block
from signaling.core.counters import Counters
from signaling.core.interfaces import Backplane, Forwarding, IncomingSession, Outbound, OutgoingSession, Receipt
from signaling.core.server_messages import Feature
from signaling.core.topics import MaxPeers, Topic, TopicMap
from signaling.errors import ErrorCode, LeaveReason, Rejected
from signaling.limits import Limits
from signaling.websocket.frames import text_frame

if TYPE_CHECKING:
    from signaling.admission.connection_limits import ConnectionSlot
    from signaling.core.join_request import ResumeClaim
    from signaling.core.presence_reporter import PresenceReporter
    from signaling.core.session import PeerSession
    from signaling.core.session_registry import SessionRegistry

RELAY_ERRORS = {
    ErrorCode.TARGET_NOT_FOUND: "peer not found",
    ErrorCode.DROPPED: "the peer takes no messages now; this one was not delivered",
}
"""The text of a relay's error, whatever node its target was looked for on."""

_TOPIC_IS_BUSY = "many peers of the topic update their metadata now, and your last update waits; nothing has changed"

OtherMessage = messages.PresentedToken | messages.MetadataUpdate
"""A message that is not relayed."""


class PeerDetails(NamedTuple):
    """What the log and the admin API show of a peer besides the peer itself.

    Args:
        address: where its latest connection comes from, as in the log; None if addresses are not recorded.
        subject: the owner of its token, or None.
        issuer: the namespace of ``subject``.
    """

    address: str | None
    subject: str | None
    issuer: str | None


@dataclass(frozen=True, slots=True)
class PeerServices:
    """What all peers of one server share: one reference, because an idle peer has to be light.

    Args:
        topics: the topics that peers join and leave.
        announcer: announces events to the members of a topic.
        backplane: has the topics' peers on other nodes.
        sessions: finds and ends detached sessions.
        presence: reports to an observer which peers leave; None if there is none.
        features: those that are on; every ``welcome`` has them, in this order.
    """

    topics: TopicMap[Peer]
    announcer: Announcer
    backplane: Backplane
    counters: Counters
    limits: Limits
    sessions: SessionRegistry
    presence: PresenceReporter | None = None
    features: Sequence[Feature] = ()


class Peer:
    """A member of one topic.

    Args:
        peer_id: a ULID.
        metadata: the JSON text of an object, or None.

    Attributes:
        details: None if there are none.
        joined_at: when it joined, in seconds of the reactor; before this server knew it if another node handed it off.
        resumable: whether the peer can outlive its connection.
    """

    __slots__ = ("_outbound", "_services", "details", "id", "joined_at", "metadata", "topic")

    resumable: ClassVar[bool] = False

    def __init__(self, peer_id: str, metadata: bytes | None, services: PeerServices) -> None:
        self.id = peer_id
        self.metadata = metadata
        self.topic: Topic[Peer] | None = None
        self.joined_at = 0.0
        self.details: PeerDetails | None = None
        self._services = services
        self._outbound: Outbound | None = None

    @property
    def subject(self) -> str | None:
        """The owner of its token, or None."""
        return self.details.subject if self.details is not None else None

    @property
    def listed_bytes(self) -> int:
        """How long this peer's entry in a ``peer-list`` is."""
        return messages.listed_bytes(self.id, self.metadata)

    @property
    def blocked(self) -> bool:
        """Whether offered frames have to wait."""
        return self._outbound is not None and self._outbound.blocked

    def attach(self, outbound: Outbound) -> None:
        """Send to ``outbound`` from now on."""
        self._outbound = outbound

    # Joining and leaving

    def join(
        self,
        topic_name: str,
        ice_servers: bytes | None = None,
        expires_in: int | None = None,
        max_peers: MaxPeers | None = None,
    ) -> None:
        """Join the topic: the peer gets ``welcome`` and ``peer-list``, the other members ``peer-joined``.

        Args:
            ice_servers: the JSON text of the welcome's ``iceServers``, or None.
            expires_in: in how many seconds the client's token expires, or None.
            max_peers: as for ``TopicMap.join``.

        Raises:
            Rejected: ``topic_full``; nothing happened.
        """
        topic = self.topic = self._services.topics.join(topic_name, self, max_peers)
        self._send_welcome(topic, ice_servers, expires_in)
        if len(topic.members) > 1:
            event = text_frame(messages.peer_joined(self.id, self.metadata))
            self._services.announcer.announce(topic, event, exclude=self)

    def _send_welcome(self, topic: Topic[Peer], ice_servers: bytes | None, expires_in: int | None) -> None:
        self._services.announcer.skip(topic, self)
        features = self._services.features
        welcome = text_frame(messages.welcome(self.id, ice_servers, expires_in=expires_in, features=features))
        if self._outbound is not None:
            self._outbound.answer(welcome + text_frame(messages.peer_list(self._listed(topic))))

    def _listed(self, topic: Topic[Peer]) -> Iterable[messages.ListedPeer]:
        here = [peer for peer in topic.members.values() if peer is not self]
        remote = self._services.backplane.remote_members(topic.name)
        if not remote:
            return here
        # A peer that resumes here is another node's until this node has reported it.
        there = [_RemotePeer(*entry) for entry in remote if entry[0] != self.id]
        # Ids increase in joining order, whatever node made them.
        return sorted([*here, *there], key=attrgetter("id"))

    def send_once(self, message: bytes) -> None:
        """Send a message that a client which resumes is not sent again."""
        self._answer(message)

    def leave(self, reason: LeaveReason) -> None:
        """Leave the topic, if the peer is in one; the other members get ``peer-left``."""
        topic, services = self._leave_topic(), self._services
        if topic is not None:
            if topic.members:
                services.announcer.announce(topic, text_frame(messages.peer_left(self.id)))
            if services.presence is not None:
                services.presence.left(topic.name, self, reason, may_be_elsewhere=self._may_be_elsewhere)
            services.backplane.leave(topic.name, self.id)

    def _leave_topic(self) -> Topic[Peer] | None:
        topic, self.topic, self._outbound = self.topic, None, None
        if topic is not None:
            self._services.topics.leave(topic, self)
            if not topic:
                self._services.announcer.forget(topic)
        return topic

    def remove(self, code: int, reason: str, ending: LeaveReason) -> None:
        """Leave the topic at once, because an operator says so; the client cannot resume.

        Args:
            code: of the close frame.
            reason: of the close frame.
            ending: for the log and the counters.
        """
        if self._outbound is not None:
            self._outbound.remove_peer(code, reason, ending)

    # Metadata

    def _update_metadata(self, update: messages.MetadataUpdate) -> messages.MetadataUpdate | Rejected:
        """Replace the metadata, and tell all members, this one included; with other nodes, as soon as they agree."""
        topic, services = self.topic, self._services
        if topic is None or self._outbound is None:
            return update
        try:
            self._outbound.check_update()
            services.topics.check_room(topic, self._longer_by(update.metadata))
        except Rejected as rejected:
            return Rejected(rejected.code, rejected.text, update.msg_id)
        if not services.announcer.request_update(topic, self.id, partial(self._ask_for_update, update)):
            return Rejected(ErrorCode.RATE_LIMITED, _TOPIC_IS_BUSY, update.msg_id)
        return update

    def _ask_for_update(self, update: messages.MetadataUpdate) -> None:
        topic, services = self.topic, self._services
        if topic is None:
            return
        try:
            # Others may have come first.
            services.topics.check_room(topic, self._longer_by(update.metadata))
        except Rejected as rejected:
            self.reject(Rejected(rejected.code, rejected.text, update.msg_id))
            return
        services.backplane.update(topic.name, self.id, update.metadata, partial(self._update_decided, update))

    def _update_decided(self, update: messages.MetadataUpdate, full: str | None) -> None:
        if self.topic is None:
            return
        if full is not None:
            self.reject(Rejected(ErrorCode.TOPIC_FULL, full, update.msg_id))
        else:
            self._replace_metadata(self.topic, update.metadata)

    def _replace_metadata(self, topic: Topic[Peer], metadata: bytes) -> None:
        topic.lengthen(self._longer_by(metadata))
        self.metadata = metadata
        self._services.counters.metadata_updates += 1
        if self._services.presence is not None:
            self._services.presence.updated(topic.name, self)
        announcer, event = self._services.announcer, messages.peer_updated(self.id, metadata)
        # Its own is the answer, which a full queue does not drop; it stays in the order of the other events.
        announcer.catch_up(topic, self)
        self.send_once(event)
        if len(topic.members) > 1:
            announcer.announce(topic, text_frame(event), exclude=self, updated=self.id)

    def _longer_by(self, metadata: bytes) -> int:
        return messages.listed_bytes(self.id, metadata) - self.listed_bytes

    # Resuming, which a plain peer cannot: see PeerSession

    @property
    def detached(self) -> bool:
        """Whether its connection was lost and its client may resume."""
        return False

    def forbid_resuming(self) -> None:
        """Make the tokens that its client has invalid."""

    @property
    def _may_be_elsewhere(self) -> bool:
        """Whether another node may have this peer by now."""
        return False

    @property
    def is_handing_off(self) -> bool:
        """Whether another node may have taken this peer's session."""
        return False

    @property
    def ping_payload(self) -> bytes:
        """What a ping to this peer carries, for ``acknowledge``."""
        return b""

    def acknowledge(self, payload: bytes) -> None:
        """Process the payload of a pong."""

    def detach(self, slot: ConnectionSlot | None) -> bool:
        """Keep this peer without its connection, which was lost; False if it cannot outlive it.

        Args:
            slot: the connection's, which the peer keeps.
        """
        return False

    def check_resume_token(self, token: bytes, owner: bytes | None) -> PeerSession | None:
        """Return this peer's session, if ``token`` and ``owner`` permit to resume it."""
        return None

    def prepare_handoff(self, proof: bytes) -> OutgoingSession | None:
        """Offer this peer's session to another node, as ``Node.prepare_handoff``."""
        return None

    def moved(self, taken: Collection[int]) -> Mapping[int, Forwarding]:
        """Remove this peer, which resumed at another node, as ``Node.moved``."""
        return {}

    def restore(self, session: IncomingSession, topic_name: str, claim: ResumeClaim) -> PeerSession | None:
        """Become the peer of a session that another node handed off; None if that is not possible."""
        return None

    # Messages from this peer

    def receive(self, data: bytes) -> messages.ClientMessage | OtherMessage | Rejected:
        """Relay one message of this peer, or answer it with an error.

        Returns:
            The message if it was delivered or queued, or why it was not; new metadata, if it may be replaced and was
            not rejected at once; a new token, if tokens are checked, which is not answered.
        """
        topic, services = self.topic, self._services
        try:
            message = messages.decode(data)
            frame = text_frame(messages.relayed(message, self.id))
            target = topic.members.get(message.to) if topic is not None else None
            if target is None:
                self._relay_to_another_node(message, frame)
                return message
            if services.announcer.backlogs:
                target.catch_up()
            msg_id = message.msg_id if message.msg_id_text else None
            if not target.offer(frame, (self, msg_id)):
                raise self.refused(message.type, ErrorCode.DROPPED, msg_id)
        except Rejected as rejected:
            outcome = self._other_message(rejected)
            if isinstance(outcome, messages.MetadataUpdate):
                outcome = self._update_metadata(outcome)
            if isinstance(outcome, Rejected):
                self.reject(outcome)
                # Its traceback holds the frame of the caller, which holds what is returned here.
                outcome.__traceback__ = outcome.__context__ = None
            return outcome
        counters = services.counters
        counters.relays_accepted[message.type] += 1
        counters.relayed_bytes += len(frame)
        return message

    def _other_message(self, rejected: Rejected) -> OtherMessage | Rejected:
        """Return a message that ``decode`` rejected if it is of another type that is taken; otherwise why it is not."""
        if not isinstance(rejected, messages.NotRelayed):
            return rejected
        message, services, other = rejected.message, self._services, None
        if Feature.METADATA_UPDATES in services.features:
            try:
                other = message.metadata_update(services.limits.max_metadata_bytes)
            except Rejected as wrong:
                return wrong
        if other is None and Feature.TOKEN in services.features:
            return message.presented_token() or rejected
        return other or rejected

    def reject(self, rejected: Rejected) -> None:
        """Answer one message of this peer with an error."""
        self._services.counters.errors_sent[rejected.code] += 1
        message = messages.error(rejected.code, rejected.text, rejected.msg_id)
        if rejected.code is ErrorCode.INVALID_TOKEN:
            # A client that resumes has presented another token.
            self.send_once(message)
        else:
            self._answer(message)

    def _relay_to_another_node(self, message: messages.ClientMessage, frame: bytes) -> None:
        sent, topic, msg_id = None, self.topic, message.msg_id
        if topic is not None:
            relay = _RemoteRelay(self, message.type, len(frame), msg_id)
            sent = self._services.backplane.forward(topic.name, message.to, self.id, frame, relay)
        if not sent:
            code = ErrorCode.TARGET_NOT_FOUND if sent is None else ErrorCode.DROPPED
            raise self.refused(message.type, code, msg_id)
        self.relay_queued(msg_id)

    def delivered_remotely(self, kind: str, size: int) -> None:
        """Count a relay that another node wrote."""
        counters = self._services.counters
        counters.relays_accepted[kind] += 1
        counters.relayed_bytes += size
        counters.relays_delivered_remotely += 1

    def refused(self, kind: str, code: ErrorCode, msg_id: bytes | None) -> Rejected:
        """Count a relay that is not delivered, and return its error."""
        self._services.counters.relays_rejected[kind, code] += 1
        return Rejected(code, RELAY_ERRORS[code], msg_id)

    def relay_queued(self, msg_id: bytes | None) -> None:
        """No-op: a plain peer does not hand off the outcomes of its relays."""

    def relay_written(self, msg_id: bytes | None) -> None:
        """No-op: a successful delivery needs no reply."""

    def relay_failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """Answer a relay that was accepted and is not delivered."""
        self.reject(Rejected(code, RELAY_ERRORS[code], msg_id))

    # Frames to this peer

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Pass ``frame`` to the outbound queue; False if it was refused."""
        return self._outbound is not None and self._outbound.offer(frame, receipt)

    def offer_notice(self, frame: bytes) -> bool:
        """Pass on a notice, which waits like a relay; False if it was refused."""
        return self.offer(frame)

    def catch_up(self) -> None:
        """Take the topic's events so far, ahead of a relay."""
        if self.topic is not None:
            self._services.announcer.catch_up(self.topic, self)

    def take_block(self, block: Block) -> int:
        """Take events of the topic; returns how many were refused."""
        if self._outbound is not None and self._outbound.offer_at_once(block.data):
            return 0
        return self._offer_each(block)

    def _offer_each(self, block: Block) -> int:
        for number, event in enumerate(block.events):
            if not self.offer(event):
                # A full queue refuses the following events as well.
                return len(block.events) - number
        return 0

    def _answer(self, message: bytes) -> None:
        if self._outbound is not None:
            self._outbound.answer(text_frame(message))


class _RemotePeer(NamedTuple):
    id: str
    metadata: bytes | None


class _RemoteRelay:
    """A relay to a peer of another node that has no outcome yet."""

    __slots__ = ("_kind", "_msg_id", "_sender", "_size")

    def __init__(self, sender: Peer, kind: str, size: int, msg_id: bytes | None) -> None:
        self._sender = sender
        self._kind = kind
        self._size = size
        self._msg_id = msg_id

    def delivered(self) -> None:
        """Count the relay."""
        self._sender.delivered_remotely(self._kind, self._size)
        self._sender.relay_written(self._msg_id)

    def failed(self, code: ErrorCode) -> None:
        """Answer the relay with an error."""
        self._sender.refused(self._kind, code, self._msg_id)
        self._sender.relay_failed(self._msg_id, code)


def drop_undelivered(receipts: Iterable[Receipt], counters: Counters) -> None:
    """Answer relays that were queued for a peer and will not be written with ``dropped``."""
    for sender, msg_id in receipts:
        counters.relays_undelivered += 1
        sender.relay_failed(msg_id, ErrorCode.DROPPED)
