"""One connection of a client to a node: what a ``JoinAttempt`` and a peer see of it, without sockets and frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from signaling.admission import client_address
from signaling.admission.connection_limits import ConnectionSlot
from signaling.core.interfaces import Receipt
from signaling.core.join_request import JoinRequest
from signaling.core.joining import JoinAttempt
from signaling.core.peer import Peer, drop_undelivered
from signaling.errors import LeaveReason, Refused
from signaling.websocket.outbound_queue import OutboundQueue
from tests.simulator.updates import SentUpdate

if TYPE_CHECKING:
    from tests.simulator.clients import Client, Sent
    from tests.simulator.nodes import SimulatedNode

# From a close frame, or a handshake that took too long, to the end of the connection.
CLOSING_SECONDS = 0.5


class SimulatedConnection(OutboundQueue[Receipt]):
    """A connection that does what ``SignalingProtocol`` does for a join; what is written arrives at once.

    Attributes:
        slot: that it holds; None before it has joined, and once it gave the slot to another connection.
        peer: None before it has joined, and after its end.
        ended: whether it closes or is lost, at its node.
        lost: whether it is lost at its client.
        turned_away: why the node did not let the client join; empty if it did, or if the node stops.
    """

    end_reason = "the connection was lost"

    def __init__(self, node: SimulatedNode, client: Client) -> None:
        limits = node.limits
        super().__init__(
            self.write,
            lambda receipt: receipt[0].relay_written(receipt[1]),
            limits.high_water_messages,
            limits.high_water_bytes,
        )
        self.node = node
        self.client = client
        self.scenario = node.scenario
        self.slot: ConnectionSlot | None = None
        self.peer: Peer | None = None
        self.close_frame_seen = self.ended = self.lost = False
        self.turned_away = ""
        self._attempt: JoinAttempt | None = None
        self._accepted = self._holds_messages = self._finished = False
        self._unread: deque[Sent | SentUpdate] = deque()
        self._handshake_timeout: Any = None
        self._timers: list[Any] = []

    @property
    def source(self) -> object:
        """Whose events arrive at the node in order."""
        return self.client

    # Joining

    def start_joining(self, request: JoinRequest) -> None:
        if self.ended:
            return
        address = client_address.Client(self.client.address, self.client.address)
        self._attempt = JoinAttempt(request, b"", address, self, self.node)
        self.node.attempts.append(self._attempt)
        try:
            self._attempt.start()
        except Refused as refused:
            self.refuse("" if self.node.draining else refused.reason)

    def refuse(self, reason: str) -> None:
        """Answer the handshake with an error; ``reason`` is empty if the node stops."""
        self.turned_away = reason
        self.finish()

    def accept(self, key: bytes) -> None:
        if self._handshake_timeout is not None and self._handshake_timeout.active():
            self._handshake_timeout.cancel()
        self._accepted = True
        self.tell_accepted()
        assert self._attempt is not None
        self._attempt.opened()
        if not self._holds_messages:
            self._read()

    def accept_in_turn(self, key: bytes) -> None:
        self.scenario.counts["joins in turn"] += 1
        self.node.turns.add(self)

    def hold(self) -> None:
        if self._accepted:
            self.scenario.counts["joins announced anew"] += 1
            self._holds_messages = True
        elif self._handshake_timeout is None:
            seconds = self.scenario.joins.handshake_seconds
            self._handshake_timeout = self.later(seconds, self._late) if seconds else None

    def _late(self) -> None:
        self.scenario.counts["handshakes too late"] += 1
        self._close("its handshake took too long")

    def attach(self, peer: Peer) -> None:
        self.peer = peer
        self._attempt = None
        if self._holds_messages:
            self._holds_messages = False
            self.later(0, self._read)

    def close(self, code: int, reason: str) -> None:
        self.close_frame_seen = True
        self._close(reason)

    def _close(self, reason: str) -> None:
        self.ended = True
        self.turned_away = reason
        self.node.turns.remove(self)
        self.later(CLOSING_SECONDS, self.finish)

    def later(self, seconds: float, function: Callable[..., None], *arguments: Any) -> Any:
        """Call ``function`` at the node, unless the connection is lost before."""
        timer = self.node.process.callLater(seconds, function, *arguments)
        self._timers.append(timer)
        return timer

    # Messages

    def receive(self, sent: Sent | SentUpdate) -> None:
        """Take what the client sent, now or when messages are read."""
        if self.ended or self.lost:
            sent.lost = True
            return
        self._unread.append(sent)
        if self._accepted and not self._holds_messages:
            self._read()

    def _read(self) -> None:
        while self._unread and not self.ended:
            sent = self._unread.popleft()
            if self.peer is None:
                self.scenario.violation(f"{self.client.name}: message {sent.number} was read before there was a peer")
                return
            if isinstance(sent, SentUpdate):
                self.node.update_from(self.peer, sent)
            else:
                self.node.relay_from(self.peer, sent)

    def write(self, frame: bytes) -> None:
        self.client.take(frame)

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        taken = super().offer(frame, receipt)
        if taken and self.blocked and receipt is not None:
            self.client.waits_at(frame)
        if not taken and receipt is None:
            self.client.missed_events = True
        return taken

    def offer_at_once(self, frames: bytes) -> bool:
        return not self.blocked and self.offer(frames)

    def check_update(self) -> None:
        """Permit it."""

    def request_ack(self, payload: bytes) -> None:
        """Do nothing: only a client that resumes answers pings."""

    # The end

    def give_up_session(self) -> None:
        self.peer = None
        self.finish()

    def finish(self) -> None:
        """Be lost, at the node."""
        if self._finished:
            return
        self._finished = self.ended = True
        receipts = self.abandon()
        self.node.connections.pop(self, None)
        peer, self.peer = self.peer, None
        self.tell_end()
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self.node.turns.remove(self)
        for sent in self._unread:
            sent.lost = True
        if peer is not None and not (self.close_frame_seen or self.node.draining) and peer.detach(self.slot):
            self.slot = None
        elif peer is not None:
            drop_undelivered(receipts, self.node.counters)
            peer.leave(LeaveReason.CONNECTION_LOST)
        if self._attempt is not None:
            self._attempt.connection_lost()
        if self.slot is not None:
            self.slot.release()

    def expire(self) -> None:
        """Close because the token expired: the peer is detached at once, and the client reads the close frame."""
        if self.ended or self.peer is None or self.node.draining:
            return
        self.scenario.counts["tokens expired"] += 1
        self.close(4401, "")
        peer, self.peer = self.peer, None
        # What was not written stays in the session.
        self.abandon()
        peer.detach(self.slot)
        self.slot = None
        self.tell_end()

    def remove_peer(self, code: int, reason: str, ending: LeaveReason) -> None:
        """End because an operator removed the peer, which leaves at once."""
        self.scenario.counts["removed"] += 1
        self.say_goodbye()

    def say_goodbye(self) -> None:
        self.close_frame_seen = True
        self.finish()

    def node_crashed(self) -> None:
        self.ended = True
        self.peer = None
        self.client.gone = True

    # What the client notices

    def tell_accepted(self) -> None:
        """Do nothing: a new client knows no peer to send to before its list."""

    def tell_end(self) -> None:
        self.client.gone = True
