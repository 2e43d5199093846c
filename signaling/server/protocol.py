"""The protocol of a signaling connection: its login, its join, and its peer's messages."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from signaling.admission.client_address import Client
from signaling.admission.connection_limits import ConnectionSlot
from signaling.admission.rate_limit import TokenBucket
from signaling.auth.cred import Logout, forbidden, granted
from signaling.core import messages
from signaling.core.grants import Bearer, Grant, session_owner
from signaling.core.interfaces import Receipt
from signaling.core.join_request import JoinRequest
from signaling.core.joining import JoinAttempt
from signaling.core.peer import OtherMessage, Peer, drop_undelivered
from signaling.errors import REMOVAL_TEXTS, CloseCode, ErrorCode, LeaveReason, Refused, Rejected
from signaling.limits import FRAMES_PER_TOKEN
from signaling.server.http import HttpProtocol
from signaling.web.credentials import bearer
from signaling.websocket.read_pause import ReadPause
from signaling.websocket.request_head import HeaderValues

if TYPE_CHECKING:
    from signaling.server.factory import SignalingFactory

_OTHER_OWNER = "the token has another owner (sub), or other metadata"
_NO_OWNER = "the token has no owner (sub), so it cannot replace another one"


class SignalingProtocol(HttpProtocol[Receipt]):
    """One connection of a signaling server, and the peer attached to it once it is open."""

    factory: SignalingFactory
    _peer: Peer | None = None
    # None before the login, and again once there is a peer.
    _attempt: JoinAttempt | None = None
    slot: ConnectionSlot | None = None
    _bucket: TokenBucket | None = None
    _login: Deferred[Any] | None = None
    _logout: Logout | None = None
    _may_send = True
    # Messages a second; None if its token has no such bound.
    _token_rate: float | None = None
    # Whether the token decides its peer's metadata.
    _metadata_fixed = False
    _metadata_bucket: TokenBucket | None = None
    _owner: bytes | None = None
    # A new token that waits for this connection's turn.
    _presented: messages.PresentedToken | None = None
    # Whether its token expired while it was open.
    _expired = False
    # Whether a message is rejected, counted or logged, whatever it says.
    _judges_messages = False

    # The request and the login

    def handshake_timed_out(self) -> None:
        """End a connection whose request or login took too long."""
        if self._login is not None:
            self._login.cancel()
        else:
            super().handshake_timed_out()

    def join(self, request: JoinRequest, key: bytes, values: HeaderValues) -> None:
        """Check the client's token, if tokens are checked; then let it join its topic, or refuse it.

        Args:
            key: the checked ``Sec-WebSocket-Key``.
            values: the request's headers.
        """
        client = self.factory.client(self.transport.getPeer(), values)
        self._address = client.text
        if self.factory.access is None:
            self._start_joining(request, key, values, client)
            return
        self._login = login = self.factory.access.login(request.credential)
        login.addCallbacks(self._logged_in, self._login_refused, (request, key, values, client), {}, (values,))
        login.addErrback(self._login_broken)
        if self._login is not None:
            self.hold()

    def _logged_in(
        self, login: tuple[Any, Grant, Logout], request: JoinRequest, key: bytes, values: HeaderValues, client: Client
    ) -> None:
        self._login = None
        _, grant, self._logout = login
        self._subject = grant.subject
        if self.state != self.STATE_CONNECTING:
            self._log_out()
            return
        try:
            request = granted(request, grant)
        except Refused as refused:
            self.refuse_join(refused, values)
        else:
            self._owner = request.owner
            self._start_joining(request, key, values, client)

    def _login_refused(self, failure: Failure, values: HeaderValues) -> None:
        self._login = None
        if not isinstance(failure.value, Refused):
            failure.raiseException()
        else:
            self.refuse_join(failure.value, values)

    def _login_broken(self, failure: Failure) -> None:
        # A transport does the same with what its protocol raises.
        self.factory.events.log.failure("an error after a login", failure)
        self.abort("an error after its login")

    def _log_out(self) -> None:
        logout, self._logout = self._logout, None
        if logout is not None:
            logout()

    def _start_joining(self, request: JoinRequest, key: bytes, values: HeaderValues, client: Client) -> None:
        self.subprotocol = request.subprotocol
        self._attempt = attempt = JoinAttempt(request, key, client, self, self.factory)
        try:
            attempt.start()
        except Refused as refused:
            self.refuse_join(refused, values)
        else:
            self.factory.gate.discard(self)

    # The join: what ``JoinAttempt`` asks of its connection

    @property
    def ended(self) -> bool:
        """Whether the connection closes or is lost."""
        return self.state not in (self.STATE_CONNECTING, self.STATE_OPEN)

    def hold(self) -> None:
        """Read nothing more until the handshake is answered, or until there is a peer."""
        if self.state == self.STATE_CONNECTING:
            self.pause_reading(ReadPause.HANDSHAKE)
            # The deadline of a request that twisted.web read is over.
            self.factory.handshake_timeouts.set_once(self)
        else:
            self.pause_reading(ReadPause.JOIN)

    def onOpen(self) -> None:
        """Start the timers of the grant and of the ICE servers, and go on with the join."""
        attempt, factory = self._attempt, self.factory
        if attempt is None:
            raise RuntimeError("a connection opens by join()")
        factory.ice_renewal.connection_opened(self)
        if attempt.request.grant is not None:
            self._apply_grant(attempt.request.grant)
        attempt.opened()

    def attach(self, peer: Peer) -> None:
        """Have a peer; what the client sent before the peer's welcome is read in a turn of its own."""
        self._peer = peer
        self._judges_messages = self.factory.judges_messages
        self._attempt = self._address = None
        if self._subject is not None:
            # Of the class again: most connections have no attribute for it.
            del self._subject
        self.transport.forget_address()
        self.resume_reading(ReadPause.JOIN)

    def rates_changed(self) -> None:
        """Let the rates of now hold for the peer's next messages, which may be a whole burst."""
        self._bucket = self._metadata_bucket = None

    def judges_changed(self) -> None:
        """Judge the peer's next messages as the factory says now."""
        self._judges_messages = self._peer is not None and self.factory.judges_messages

    # The peer's messages

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Relay one message of the peer, or answer it with an error."""
        peer, factory = self._peer, self.factory
        if peer is None:
            return
        if not (self._judges_messages or isBinary):
            peer.receive(payload)
            return
        tokens = self._take_tokens(1) if self._message_rate else 0.0
        outcome: messages.ClientMessage | OtherMessage | Rejected | None = None
        if tokens >= 0 and not isBinary:
            outcome = peer.receive(payload) if self._may_send else messages.presented_token(payload)
        if outcome is None:
            outcome = self._rejection(payload, isBinary, tokens)
            peer.reject(outcome)
        if isinstance(outcome, messages.PresentedToken):
            self._check_in_turn(outcome)
        elif factory.events.debug:
            factory.events.message(peer.id, outcome, peer.subject)
        if tokens < 0:
            self._close_if_flooding(tokens)

    def _rejection(self, payload: bytes, is_binary: bool, tokens: float) -> Rejected:
        """Return the error of a message that is not read any further."""
        msg_id = None if is_binary else messages.msg_id_of(payload)
        if tokens < 0:
            text = f"at most {self._message_rate:g} messages a second; this one was not delivered"
            return Rejected(ErrorCode.RATE_LIMITED, text, msg_id)
        if not self._may_send:
            return Rejected(ErrorCode.FORBIDDEN, "the token allows to receive only", msg_id)
        return Rejected(ErrorCode.INVALID_MESSAGE, "send text messages, not binary ones")

    def check_update(self) -> None:
        """Count an update of metadata, or raise ``Rejected``: the token decides the metadata, or there are too many."""
        if self._metadata_fixed:
            raise Rejected(ErrorCode.FORBIDDEN, "the token decides the metadata")
        limits, now = self.factory.limits, self.factory.reactor.seconds()
        if self._metadata_bucket is None:
            self._metadata_bucket = TokenBucket(limits.metadata_updates_per_second, limits.metadata_update_burst)
        if round(self._metadata_bucket.available(now), 6) < 1:
            text = f"updates of metadata: at most {limits.metadata_updates_per_second:g} a second; nothing has changed"
            raise Rejected(ErrorCode.RATE_LIMITED, text)
        self._metadata_bucket.take(now)

    def onOverhead(self) -> None:
        """Count a ping, an unexpected pong or a fragment against the rate of messages."""
        if self._message_rate:
            self._close_if_flooding(self._take_tokens(1 / FRAMES_PER_TOKEN))

    @property
    def _message_rate(self) -> float:
        """The most messages a second; 0 means no limit."""
        limit, of_token = self.factory.limits.max_messages_per_second, self._token_rate
        if of_token is None:
            return limit
        return min(limit, of_token) if limit else of_token

    def _take_tokens(self, tokens: float) -> float:
        now, rate = self.factory.reactor.seconds(), self._message_rate
        if self._bucket is None:
            self._bucket = TokenBucket(rate, self.factory.limits.message_burst)
        elif self._bucket.rate != rate:
            # A new token has another bound.
            self._bucket.change_rate(rate, now)
        return self._bucket.take(now, tokens)

    def _close_if_flooding(self, tokens: float) -> None:
        if tokens < -self.factory.limits.message_burst:
            self.close(CloseCode.POLICY_VIOLATION, f"at most {self._message_rate:g} messages a second")

    # A new token in place of the old one

    def _check_in_turn(self, presented: messages.PresentedToken) -> None:
        # A signature takes as long as many relays: it is all that this connection does in its turn.
        self._presented = presented
        self.pause_reading(ReadPause.MESSAGE)
        self.factory.scheduler.add(self)

    def on_turn(self) -> None:
        """Check a new token, or continue what waited for this turn."""
        presented, self._presented = self._presented, None
        if presented is None or self.factory.access is None:
            super().on_turn()
            return
        longest = self.factory.limits.max_header_bytes
        try:
            if len(presented.token) > longest:
                # Nobody can have joined with it, and to read it would hold everybody up.
                raise Refused(400, f"token: at most {longest} bytes, as in a request")
            credential = bearer(presented.token.encode("ascii", "replace"), "token")
        except Refused as refused:
            self._end_check(Rejected(ErrorCode.INVALID_TOKEN, refused.reason, presented.msg_id))
            return
        self._login = login = self.factory.access.login(credential)
        login.addCallbacks(self._renewed, self._not_renewed, (credential, presented), {}, (presented,))
        login.addErrback(self._login_broken)
        if self._login is not None:
            self.factory.token_timers.checks.set(self)

    def token_timed_out(self) -> None:
        """Give up the check of a new token; the old one stays in use."""
        if self._login is not None:
            self._login.cancel()

    def _renewed(
        self, login: tuple[Any, Grant, Logout], credential: Bearer, presented: messages.PresentedToken
    ) -> None:
        _, grant, logout = login
        wrong = self._difference(credential, grant)
        if wrong is not None:
            logout()
            self._end_check(Rejected(ErrorCode.INVALID_TOKEN, wrong, presented.msg_id))
            return
        # In this order: if the old one's logout fails, the connection ends, and the new one is logged out with it.
        old_logout, self._logout = self._logout, logout
        if old_logout is not None:
            old_logout()
        self.factory.token_timers.expiries.clear(self)
        self._apply_grant(grant)
        self._end_check(messages.token_accepted(self.factory.expires_in(grant), presented.msg_id))

    def _difference(self, credential: Bearer, grant: Grant) -> str | None:
        """Return why a grant cannot take the place of this connection's; None if it can."""
        topic = self._peer.topic if self._peer is not None else None
        if topic is None or self.ended:
            return "the connection has ended"
        if not grant.covers(topic.name):
            return forbidden().reason
        if session_owner(credential, grant) == self._owner:
            return None
        return _OTHER_OWNER if grant.subject or grant.token_id else _NO_OWNER

    def _not_renewed(self, failure: Failure, presented: messages.PresentedToken) -> None:
        failure.trap(Refused)
        self._end_check(Rejected(ErrorCode.INVALID_TOKEN, str(failure.value), presented.msg_id))

    def _end_check(self, outcome: bytes | Rejected) -> None:
        """Answer a new token, unless the connection has ended, and read on."""
        self._login = None
        self.factory.token_timers.checks.clear(self)
        peer = self._peer
        if peer is None or self.ended:
            return
        if isinstance(outcome, Rejected):
            peer.reject(outcome)
            self.factory.events.message(peer.id, outcome, peer.subject)
        else:
            peer.send_once(outcome)
            self.factory.events.token_renewed(peer.id, peer.subject)
        self.resume_reading(ReadPause.MESSAGE)

    # The grant and the ICE servers expire

    def _apply_grant(self, grant: Grant) -> None:
        self._may_send = grant.may_send
        if grant.message_rate != self._token_rate:
            self._token_rate = grant.message_rate
        if grant.metadata is not None:
            self._metadata_fixed = True
        if grant.expires is not None:
            self.factory.token_timers.expiries.set(self, grant.expires)

    def expire(self) -> None:
        """Close the connection because its token expired; with another token, the client may resume."""
        if self.state != self.STATE_OPEN:
            return
        self._expired = True
        self.close(CloseCode.TOKEN_EXPIRED, "the token has expired")
        if self._peer is not None and self._peer.resumable and self._may_resume:
            # Now, and not when the client has answered the close frame: it may come back before that.
            self._lose_peer()

    def remove_peer(self, code: int, reason: str, ending: LeaveReason) -> None:
        """Close the connection because an operator removed its peer, which leaves at once."""
        self.close(code, reason)
        self.ending, self.end_reason = ending, REMOVAL_TEXTS[ending]
        # Not when the client has answered the close frame, which may be never.
        self._lose_peer()

    def renewIceServers(self) -> None:
        """Send the peer new ICE servers before the credentials of the last ones expire."""
        peer = self._peer
        text = self.factory.ice_servers.text(peer.id) if peer is not None else None
        if peer is not None and text is not None:
            peer.send_once(messages.ice_servers(text))
            self.factory.ice_renewal.sent(self)

    # What became of frames to the peer

    def onWritten(self, receipt: Receipt) -> None:
        """Report a relay that had to wait to its sender."""
        sender, msg_id = receipt
        sender.relay_written(msg_id)

    def onUndelivered(self, receipts: list[Receipt]) -> None:
        """Answer relays that will not be written with ``dropped``, unless the client may resume and receive them."""
        if self._peer is None or not (self._peer.resumable and self._may_resume):
            drop_undelivered(receipts, self.factory.counters)

    def onQueueFull(self, depth: int) -> None:
        """Count how full the queue was when it refused a frame."""
        self.factory.counters.queue_depths_at_drop.add(depth)

    def onRoundTrip(self, seconds: float) -> None:
        """Count how long a ping and its pong took."""
        self.factory.counters.ping_round_trips.add(seconds)

    # Acknowledgments: the pongs of a session say which messages arrived

    def ping_payload(self) -> bytes:
        """Return what a ping carries."""
        return self._peer.ping_payload if self._peer is not None else b""

    def request_ack(self, payload: bytes) -> None:
        """Send a ping, unless messages wait: it would take their room in the queue."""
        if self._queue is None:
            self.sendPing(payload)

    def onPong(self, payload: bytes) -> None:
        """Stop the ping timeout, and pass on what the pong acknowledges."""
        super().onPong(payload)
        if self._peer is not None:
            self._peer.acknowledge(payload)

    # The end

    def give_up_session(self) -> None:
        """End the connection; its session continues on another one, or at another node."""
        self.take_undelivered()
        self._peer = None
        self.abort("its session continues on another connection")

    def abort(self, reason: str) -> None:
        """End the connection at once, without a close frame."""
        super().abort(reason)
        self._lose_peer()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Clean up; ``onClose``, in the middle of it, removes or detaches the peer."""
        self.factory.ice_renewal.clear(self)
        self.factory.token_timers.clear(self)
        super().connectionLost(reason)
        if self._login is not None:
            self._login.cancel()
        if self._attempt is not None:
            self._attempt.connection_lost()
            self._attempt = None
        if self.slot is not None:
            self.slot.release()
        # The last: it is the realm's, and may fail.
        self._log_out()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Remove or detach the peer."""
        self._lose_peer()

    @property
    def _may_resume(self) -> bool:
        return (self._expired or not self.close_frame_seen) and not self.factory.draining

    def _lose_peer(self) -> None:
        """Detach the peer if its client may resume; otherwise the peer leaves."""
        peer, self._peer = self._peer, None
        topic = peer.topic if peer is not None else None
        if peer is None or topic is None:
            return
        factory = self.factory
        if self._may_resume and peer.detach(self.slot):
            self.slot = None
            if factory.events.info:
                line = partial(factory.events.detached, peer.id, topic.name, self.end_reason, peer.subject)
                factory.paced_log.write(line)
            return
        if factory.events.info:
            end = self.end_reason, peer.joined_at, peer.subject
            factory.paced_log.write(partial(factory.events.left, peer.id, topic.name, *end))
        factory.counters.leaves[self.ending] += 1
        peer.leave(self.ending)
