"""A session: a peer that can outlive its connection (docs/protocol-features.md, "Resuming").

A connection can be lost together with what was written to it, so frames stay in a replay buffer until a pong
acknowledges them. While a session has no connection, a queue stands in for it, until the client resumes here or at
another node, or the resume window is over.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from enum import StrEnum
from hmac import compare_digest
from typing import ClassVar, Protocol

from signaling.admission.client_address import Client
from signaling.admission.connection_limits import ConnectionSlot
from signaling.core import messages
from signaling.core.announcer import Block
from signaling.core.counters import Counters
from signaling.core.handoff_texts import SessionText, decode_proof, decode_session, encode_session
from signaling.core.interfaces import (
    Forwarding,
    IncomingSession,
    Outbound,
    OutgoingSession,
    Receipt,
    RelaySender,
)
from signaling.core.join_request import JoinRequest, ResumeClaim
from signaling.core.peer import Peer, PeerServices, drop_undelivered
from signaling.core.peer_ids import ID_CHARACTERS
from signaling.core.presence_reporter import Origin
from signaling.core.replay_buffer import ReplayBuffer
from signaling.core.topics import Topic
from signaling.errors import REMOVAL_TEXTS, ErrorCode, LeaveReason, Rejected
from signaling.limits import Limits
from signaling.websocket.frames import text_frame
from signaling.websocket.outbound_queue import OutboundQueue

# How much may be unacknowledged before the client is asked for an acknowledgment, besides the usual pings.
_REQUEST_ACK_FRAMES = 8
_REQUEST_ACK_BYTES = 16_384
_SECRET_BYTES = 18
# A pong may carry anything.
_MAX_ACK_DIGITS = 15


class SessionState(StrEnum):
    """The states of a ``PeerSession``."""

    CONNECTED = "connected"  # frames go to a connection
    DETACHED = "detached"  # the connection was lost: frames wait for the client to resume
    HANDING_OFF = "handing off"  # detached, and offered to another node: frames are refused
    CLOSED = "closed"  # the peer left its topic, or resumed at another node


TRANSITIONS: dict[SessionState, frozenset[SessionState]] = {
    # To itself: the client resumes on another connection before the loss of the first one is noticed.
    SessionState.CONNECTED: frozenset({SessionState.CONNECTED, SessionState.DETACHED, SessionState.CLOSED}),
    SessionState.DETACHED: frozenset({SessionState.CONNECTED, SessionState.HANDING_OFF, SessionState.CLOSED}),
    # A client that resumes here cancels the hand-off first.
    SessionState.HANDING_OFF: frozenset({SessionState.DETACHED, SessionState.CLOSED}),
    SessionState.CLOSED: frozenset(),
}


class SessionConnection(Outbound, Protocol):
    """The connection of a session.

    Attributes:
        slot: its connection slot; None if that was transferred to another connection.
    """

    slot: ConnectionSlot | None

    @property
    def close_frame_seen(self) -> bool:
        """Whether either end sent a close frame, which ends the session as well."""

    def request_ack(self, payload: bytes) -> None:
        """Send a ping whose pong acknowledges everything before it."""

    def give_up_session(self) -> None:
        """End the connection; its session continues without it, and knows what was never written."""


class DetachedQueue(OutboundQueue[Receipt]):
    """Stands in for the connection of a detached session: what is offered waits, up to the high-water marks.

    Nothing leaves it: a client that resumes is sent the replay buffer.
    """

    __slots__ = ("slot",)

    close_frame_seen = False

    def __init__(self, limits: Limits, slot: ConnectionSlot | None) -> None:
        super().__init__(lambda frame: None, lambda receipt: None, limits.high_water_messages, limits.high_water_bytes)
        self.slot = slot
        self.block()

    def offer_at_once(self, frames: bytes) -> bool:
        """Return False: everything waits."""
        return False

    def remove_peer(self, code: int, reason: str, ending: LeaveReason) -> None:
        """No-op: there is no connection to end."""

    def check_update(self) -> None:
        """No-op: there is no client that could send one."""

    def request_ack(self, payload: bytes) -> None:
        """No-op: there is no client to ask."""

    def give_up_session(self) -> None:
        """No-op: there is no connection to end."""


class PeerSession(Peer):
    """A peer that keeps what it was sent, and that a client can resume on another connection.

    It knows the relays to it that are not written yet, and its own that have no outcome yet: a hand-off to another
    node includes both.

    Args:
        request: the request that it joins or resumes by.

    Attributes:
        state: changes by the table ``TRANSITIONS``. A new session counts as connected.
        owner: whose session it is; None if everybody may do everything.
    """

    __slots__ = (
        "_bytes_since_ack_request",
        "_deferred_errors",
        "_handoffs",
        "_last_pending",
        "_pending",
        "_replay",
        "_secrets",
        "_sent_at_ack_request",
        "_token_sent_at",
        "_unwritten",
        "owner",
        "state",
    )

    resumable: ClassVar[bool] = True
    _outbound: SessionConnection

    def __init__(self, peer_id: str, request: JoinRequest, services: PeerServices) -> None:
        super().__init__(peer_id, request.metadata, services)
        self.state = SessionState.CONNECTED
        self.owner = request.owner
        limits = services.limits
        self._replay = ReplayBuffer(16 * limits.high_water_messages, 2 * limits.high_water_bytes)
        # The secrets of its tokens, the latest first: a connection may be lost before the client reads its new token.
        self._secrets: list[bytes] = []
        # The number of the message that brought the latest token.
        self._token_sent_at = 0
        self._sent_at_ack_request = self._bytes_since_ack_request = 0
        # The relays to this peer that are not written yet, by their numbers in the replay buffer.
        self._unwritten: dict[int, Receipt] = {}
        # This peer's own relays without an outcome: by msgId, their numbers, which count these relays.
        self._pending: dict[bytes | None, list[int]] = {}
        self._last_pending = 0
        # What was offered to other nodes, which may still take it, and the errors to send if none does.
        self._handoffs: list[OutgoingSession] = []
        self._deferred_errors: list[tuple[bytes | None, ErrorCode]] = []

    def _change_state(self, state: SessionState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a session that is {self.state.value} cannot become {state.value}")
        self.state = state

    @property
    def unwritten(self) -> int:
        """How many relays wait for this peer."""
        return len(self._unwritten)

    @property
    def detached(self) -> bool:
        """Whether its connection was lost and its client may resume."""
        return self.state in (SessionState.DETACHED, SessionState.HANDING_OFF)

    def forbid_resuming(self) -> None:
        """Make the tokens that its client has invalid."""
        self._secrets = []

    @property
    def _may_be_elsewhere(self) -> bool:
        """Whether another node may have this peer by now."""
        return bool(self._handoffs)

    @property
    def is_handing_off(self) -> bool:
        """Whether another node may have taken this session."""
        return self.state is SessionState.HANDING_OFF

    # The connection slot

    def transfer_slot(self, client: Client) -> ConnectionSlot | None:
        """Give the connection slot to a connection that is about to resume this session.

        Returns:
            None if another connection has it already.

        Raises:
            Refused: 429; then the slot is still held.
        """
        held = self._outbound.slot
        if held is None:
            return None
        slot = held.transfer(client)
        self._outbound.slot = None
        return slot

    def check_transfer(self, client: Client) -> bool:
        """Return whether ``transfer_slot`` would give a slot; raises ``Refused`` if that would."""
        held = self._outbound.slot
        if held is None:
            return False
        held.check_transfer(client)
        return True

    def return_slot(self, slot: ConnectionSlot) -> None:
        """Take the slot back from a connection that ended before it resumed this session, or release it."""
        if self.state is not SessionState.CLOSED and self._outbound.slot is None:
            self._outbound.slot = slot
        else:
            slot.release()

    def _release(self) -> None:
        """Release the slot and the timers: the session resumes or ends."""
        self._services.sessions.forget(self)
        slot, self._outbound.slot = self._outbound.slot, None
        if slot is not None:
            slot.release()

    # Detaching, resuming, closing

    def detach(self, slot: ConnectionSlot | None) -> bool:
        """Wait for the client to resume.

        Args:
            slot: the connection's, which the session keeps: a client that connects and disconnects again and again
                must not have more sessions than it may have connections.
        """
        self._change_state(SessionState.DETACHED)
        self._outbound = DetachedQueue(self._services.limits, slot)
        self._services.sessions.start_window(self)
        return True

    def check_resume_token(self, token: bytes, owner: bytes | None) -> PeerSession | None:
        """Return this session if ``token`` and ``owner`` permit to resume it; the time that takes reveals nothing."""
        if owner != self.owner or self._outbound.close_frame_seen:
            return None
        secret = token[ID_CHARACTERS:]
        return self if any(compare_digest(secret, own) for own in self._secrets) else None

    def resume(
        self,
        connection: SessionConnection,
        claim: ResumeClaim,
        ice_servers: bytes | None,
        expires_in: int | None = None,
    ) -> bool:
        """Continue on another connection: welcome, peer list, and the messages that the client has not received.

        Args:
            claim: that ``check_resume_token`` accepted, here or at the node that the session comes from.
            ice_servers: the JSON text of the welcome's ``iceServers``, or None.
            expires_in: in how many seconds the client's token expires, or None.

        Returns:
            False if the claim's ``seen`` is out of range: the session was closed, and the client has to join anew.
        """
        if self._outbound is not connection:
            self._release()
        if self.state is SessionState.HANDING_OFF:
            # First: the errors that it sends may push messages out of the replay buffer that the client has not seen.
            self.cancel_handoff()
        if not self._replay.reaches(claim.seen):
            self.close("its client missed more messages than are kept")
            return False
        if self._outbound is not connection:
            self._outbound.give_up_session()
        self._trim_handoffs()
        missed = self._replay.rewind(claim.seen)
        # If this connection is lost at once, the new token may be lost with it: the token that the client used stays
        # valid until a pong shows that the new one arrived.
        self._secrets = [claim.secret]
        self._change_state(SessionState.CONNECTED)
        self._outbound = connection
        if self.topic is not None:
            self._send_welcome(self.topic, ice_servers, expires_in)
        for number, frame in missed:
            connection.answer(frame)
            self._replay.add(frame)
            self.finish_relay(number, None)
        # A client may say that it has seen messages that it was never sent: those are not sent any more.
        self._drop_unwritten()
        self._request_ack()
        return True

    def close(self, text: str, reason: LeaveReason = LeaveReason.RESUME_TIMEOUT) -> None:
        """Leave the topic, with a connection or without one.

        Args:
            text: why, for the log.
            reason: why, for counters and observers.
        """
        self._release()
        self._services.sessions.on_closed(self, text, reason)
        self._outbound.give_up_session()
        self.leave(reason)

    def remove(self, code: int, reason: str, ending: LeaveReason) -> None:
        """Leave the topic at once, with a connection or without one."""
        if self.state is SessionState.CONNECTED:
            super().remove(code, reason, ending)
        else:
            self.close(REMOVAL_TEXTS[ending], ending)

    def leave(self, reason: LeaveReason) -> None:
        """Leave the topic; relays that were never written fail."""
        self._change_state(SessionState.CLOSED)
        super().leave(reason)
        self._drop_unwritten()

    # Handing off to another node

    def prepare_handoff(self, proof: bytes) -> OutgoingSession | None:
        """Offer the session to another node, as ``Node.prepare_handoff``; it lacks whatever is sent from now on."""
        proven = decode_proof(proof)
        if proven is None or self.check_resume_token(proven.token, proven.owner) is None:
            return None
        if not self._replay.reaches(proven.seen):
            self.close("its client missed more messages than are kept")
            return None
        if self.state is SessionState.CONNECTED:
            connection = self._outbound
            slot, connection.slot = connection.slot, None
            connection.give_up_session()
            self.detach(slot)
        self._services.sessions.start_handoff(self)
        if self.state is SessionState.DETACHED:
            self._change_state(SessionState.HANDING_OFF)
            replay, waiting = self._replay, list(self._unwritten)
            pending = [(number, msg_id) for msg_id, numbers in self._pending.items() for number in numbers]
            seconds = self._services.sessions.clock.seconds() - self.joined_at
            parts = self.metadata, self.owner, replay.sent, replay.frames, waiting, pending, self._origin(), seconds
            text = encode_session(SessionText(*parts))
            # The outcomes of its pending relays are reported to the other node, whether that takes the session or not.
            self._handoffs.append(OutgoingSession(text, waiting, {number for number, _ in pending}))
        return self._handoffs[-1]

    def _origin(self) -> Origin | None:
        presence, topic = self._services.presence, self.topic
        return presence.origin(topic.name, self.id) if presence is not None and topic is not None else None

    def cancel_handoff(self) -> None:
        """Keep the session at this node: no other node took it."""
        self._change_state(SessionState.DETACHED)
        errors, self._deferred_errors = self._deferred_errors, []
        for msg_id, code in errors:
            super().relay_failed(msg_id, code)
        if self.topic is not None:
            self._services.backplane.resync(self.topic.name)

    def moved(self, taken: Collection[int]) -> Mapping[int, Forwarding]:
        """Remove the peer, as ``Node.moved``: the session continues at another node."""
        self._release()
        self._outbound.give_up_session()
        self._change_state(SessionState.CLOSED)
        self._leave_topic()
        counters = self._services.counters
        unwritten, self._unwritten = self._unwritten, {}
        drop_undelivered([receipt for number, receipt in unwritten.items() if number not in taken], counters)
        return {number: _HandedOffRelay(receipt, counters) for number, receipt in unwritten.items() if number in taken}

    def restore(self, session: IncomingSession, topic_name: str, claim: ResumeClaim) -> PeerSession | None:
        """Become the peer of a session that another node handed off, in its topic; nothing is announced to the members.

        Args:
            claim: that the other node accepted.

        Returns:
            None if that is not possible: another version's session, or the topic is full.
        """
        text = decode_session(session.text)
        if text is None:
            return None
        self.metadata = text.metadata
        self.joined_at = self._services.sessions.clock.seconds() - text.seconds
        self._replay.restore(text.sent, text.frames)
        if not self._replay.reaches(claim.seen):
            return None
        try:
            self.topic = self._services.topics.join(topic_name, self)
        except Rejected:
            return None
        if self._services.presence is not None:
            self._services.presence.moved_here(topic_name, self, text.origin)
        self._secrets = [claim.secret]
        self._unwritten = {number: session.receipt(number) for number in text.waiting}
        self._services.counters.relays_received += len(text.waiting)
        for number, msg_id in text.pending:
            self._last_pending = max(self._last_pending, number)
            self._pending.setdefault(msg_id, []).append(number)
            session.follow(number, _FollowedRelay(self, msg_id))
        return self

    def _trim_handoffs(self) -> None:
        """Keep of each offered session only the relays whose outcome the other node still needs."""
        for handoff in self._handoffs:
            # The relays that waited for this peer are finished here, and the replay buffer counts anew.
            handoff.waiting = ()
        pending = {number for numbers in self._pending.values() for number in numbers} if self._handoffs else set()
        self._handoffs = [handoff for handoff in self._handoffs if not pending.isdisjoint(handoff.open)]

    # The outcomes of relays to this peer

    def finish_relay(self, number: int, code: ErrorCode | None) -> None:
        """Report the outcome of a relay that waited, unless it was reported before; None for written."""
        sender, msg_id = self._unwritten.pop(number, (None, None))
        if sender is None:
            return
        if code is None:
            sender.relay_written(msg_id)
        else:
            sender.relay_failed(msg_id, code)

    def _drop_unwritten(self) -> None:
        unwritten, self._unwritten = self._unwritten, {}
        drop_undelivered(unwritten.values(), self._services.counters)

    # The outcomes of relays from this peer

    def relay_queued(self, msg_id: bytes | None) -> None:
        """Remember a relay that has no outcome yet."""
        self._last_pending += 1
        self._pending.setdefault(msg_id, []).append(self._last_pending)

    def relay_written(self, msg_id: bytes | None) -> None:
        """Report the outcome to the node that may have taken this session."""
        self._finish_pending(msg_id, None)

    def relay_failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """Answer a relay that was accepted and is not delivered, here or at the node that has taken this session."""
        self._finish_pending(msg_id, code)
        if self.state is SessionState.HANDING_OFF:
            self._deferred_errors.append((msg_id, code))
        elif self.state is not SessionState.CLOSED:
            super().relay_failed(msg_id, code)

    def _finish_pending(self, msg_id: bytes | None, code: ErrorCode | None) -> None:
        numbers = self._pending.get(msg_id)
        if numbers is None:
            return
        # Relays with the same msgId are interchangeable: their answers differ in nothing else.
        number = numbers.pop()
        if not numbers:
            del self._pending[msg_id]
        for handoff in self._handoffs:
            if number in handoff.open:
                handoff.report(number, code)

    # Frames to this peer

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Pass ``frame`` to the connection or the queue, and keep it if that took it."""
        if self.state is SessionState.HANDING_OFF:
            return False
        if receipt is None or not self.blocked:
            taken = super().offer(frame, receipt)
        else:
            taken = self._offer_waiting(frame, receipt)
        if taken:
            # Events are not sent again: the peer list that a resumed client gets first contains their effect, also of
            # those that were dropped, or missed between two nodes.
            self._remember(len(frame), frame if receipt is not None else None)
        return taken

    def offer_notice(self, frame: bytes) -> bool:
        """Pass on a notice and keep it as a relay is kept; False if it was refused."""
        if self.state is SessionState.HANDING_OFF or not super().offer(frame):
            return False
        self._remember(len(frame), frame)
        return True

    def _offer_waiting(self, frame: bytes, receipt: Receipt) -> bool:
        number = self._replay.sent + 1
        sender, msg_id = receipt
        self._unwritten[number] = receipt
        if not super().offer(frame, (_QueuedRelay(self, number), msg_id)):
            del self._unwritten[number]
            return False
        sender.relay_queued(msg_id)
        return True

    def take_block(self, block: Block) -> int:
        """Take events of the topic, and number them; returns how many were refused."""
        if not self._outbound.offer_at_once(block.data):
            return self._offer_each(block)
        self._remember(len(block.data), *(None for _ in block.events))
        return 0

    def send_once(self, message: bytes) -> None:
        """Send a message and number it, but do not keep it."""
        frame = text_frame(message)
        self._outbound.answer(frame)
        self._remember(len(frame), None)

    def _answer(self, message: bytes) -> None:
        frame = text_frame(message)
        self._outbound.answer(frame)
        self._remember(len(frame), frame)

    def _send_welcome(self, topic: Topic[Peer], ice_servers: bytes | None, expires_in: int | None) -> None:
        self._services.announcer.skip(topic, self)
        resumed = bool(self._secrets)
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        self._secrets = [secret.encode(), *self._secrets]
        resume = (self.id + secret, self._services.limits.resume_window_seconds)
        for message in (
            messages.welcome(
                self.id,
                ice_servers,
                resume,
                resumed=resumed,
                expires_in=expires_in,
                features=self._services.features,
            ),
            messages.peer_list(self._listed(topic)),
        ):
            self._outbound.answer(text_frame(message))
            self._replay.add(None)
        self._token_sent_at = self._replay.sent

    # Acknowledgments

    def _remember(self, size: int, *frames: bytes | None) -> None:
        """Add frames of ``size`` bytes in all to the replay buffer; None stands for one that is not sent again."""
        for frame in frames:
            self._replay.add(frame)
        self._bytes_since_ack_request += size
        if (
            self._replay.sent - self._sent_at_ack_request >= _REQUEST_ACK_FRAMES
            or self._bytes_since_ack_request >= _REQUEST_ACK_BYTES
        ):
            self._request_ack()

    def _request_ack(self) -> None:
        self._outbound.request_ack(self.ping_payload)

    @property
    def ping_payload(self) -> bytes:
        """What a ping to this peer carries: the number of the latest message, which the pong acknowledges."""
        self._bytes_since_ack_request, self._sent_at_ack_request = 0, self._replay.sent
        return b"%d" % self._replay.sent

    def acknowledge(self, payload: bytes) -> None:
        """Forget the messages that a pong acknowledges."""
        if not (payload.isdigit() and len(payload) <= _MAX_ACK_DIGITS):
            return
        # Messages that were not written did not arrive, whatever the client says.
        number = min(int(payload), next(iter(self._unwritten), self._replay.sent + 1) - 1)
        self._replay.acknowledge(number)
        if number >= self._token_sent_at:
            # The client has its new token; the one that it resumed with is not valid any more.
            del self._secrets[1:]


class _QueuedRelay:
    """The receipt of a relay that waits for a session: reports the outcome to the session, which knows the sender."""

    __slots__ = ("_number", "_target")

    def __init__(self, target: PeerSession, number: int) -> None:
        self._target = target
        self._number = number

    def relay_queued(self, msg_id: bytes | None) -> None:
        """No-op: the session has recorded it."""

    def relay_written(self, msg_id: bytes | None) -> None:
        """Report it to the sender."""
        self._target.finish_relay(self._number, None)

    def relay_failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """Report it to the sender."""
        self._target.finish_relay(self._number, code)


class _HandedOffRelay:
    """A relay whose target moved to another node, together with the relay."""

    __slots__ = ("_counters", "_receipt")

    def __init__(self, receipt: Receipt, counters: Counters) -> None:
        self._receipt = receipt
        self._counters = counters

    def delivered(self) -> None:
        """Report that the other node wrote the relay."""
        self._counters.relays_delivered_remotely += 1
        sender, msg_id = self._receipt
        sender.relay_written(msg_id)

    def failed(self, code: ErrorCode) -> None:
        """Report ``dropped``, whatever the other node says: the target was here when the relay was accepted."""
        drop_undelivered([self._receipt], self._counters)


class _FollowedRelay:
    """A relay that a session sent at the node which handed it off; that node counts it."""

    __slots__ = ("_msg_id", "_sender")

    def __init__(self, sender: RelaySender, msg_id: bytes | None) -> None:
        self._sender = sender
        self._msg_id = msg_id

    def delivered(self) -> None:
        """Report that the relay was written."""
        self._sender.relay_written(self._msg_id)

    def failed(self, code: ErrorCode) -> None:
        """Answer the relay with an error."""
        self._sender.relay_failed(self._msg_id, code)
