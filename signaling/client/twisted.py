"""The client as a Twisted service, on Autobahn."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from inspect import isawaitable, iscoroutine
from typing import Any
from urllib.parse import urlsplit

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.application.service import Service
from twisted.internet import endpoints
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from signaling.client.backoff import Backoff, Loss, closing, one_line, refusal
from signaling.client.credential import TOKEN_SECONDS, NoToken, TokenSource, checked, raised, timed_out
from signaling.client.errors import Lost, NotDelivered, NotUpdated, Refused
from signaling.client.messages import AnyMessage, Error, IceServer, Metadata
from signaling.client.metadata import UPDATE_SECONDS, unanswered
from signaling.client.session import MAX_FRAGMENTS, MAX_MESSAGE_BYTES, MAX_RECEIVED_BYTES, Session

__all__ = ["SignalingClient"]

_log = Logger()

OPENING_SECONDS = 15.0
PING_SECONDS = 10.0
PONG_SECONDS = 10.0
_MAX_HEAD_BYTES = 65_536
MAX_UNFINISHED = 1_024
"""Calls of a coroutine function ``on_message`` that have not ended; further messages are left out."""
_STATUS_LINE = re.compile(r"HTTP/\S+ +([0-9]{3})(?: (.*))?")
_SWITCHING_PROTOCOLS = 101


class SignalingClient(Service):
    """One peer of a topic, from ``startService`` to ``stopService``.

    Args:
        url: of the topic, for example ``wss://example.com/ws/my-room``.
        on_message: called with each message, in order. It may be a coroutine function: each call begins at once, also
            if the one before has not ended, and is cancelled by ``stopService``.
        metadata: shown to the other peers.
        token: for a server with access control: a string, or a function that returns one, or a Deferred or an awaitable
            of one. The function is asked before every attempt to connect, and for a token that replaces the one of an
            open connection before it expires.
        secret: shared by the peers of the topic, of at least 16 bytes, as for ``signaling.client.join``.
        backoff: when to connect again; None means after about half a second, doubling up to 30.
        endpoint: connects to the server; None means the host of the URL, with TLS if the scheme says so.
        clock: None means the global reactor.
        max_message_bytes: the server's ``--max-message-bytes``.

    Attributes:
        on_failure: called with ``Refused`` if the server would refuse this peer again; may be a coroutine function.

    Raises:
        TypeError: if the token is neither a string nor a function.
        ValueError: if the URL is not that of a WebSocket, the token malformed or given twice, or the secret too short.
        ImportError: if there is a secret, and no ``cryptography``.
    """

    def __init__(  # noqa: PLR0913 - as for join
        self,
        url: str,
        on_message: Callable[[AnyMessage], object],
        *,
        metadata: Metadata | None = None,
        token: TokenSource | None = None,
        secret: str | None = None,
        backoff: Backoff | None = None,
        endpoint: IStreamClientEndpoint | None = None,
        clock: Any = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        if clock is None:
            from twisted.internet import reactor as clock  # noqa: PLC0415 - importing it installs one
        self._session = Session(
            url, metadata, token=token, secret=secret, max_message_bytes=max_message_bytes, clock=clock.seconds
        )
        self._on_message = on_message
        self._backoff = backoff or Backoff(clock=clock.seconds)
        self._clock = clock
        self._endpoint = endpoint or _endpoint(clock, self._session.url)
        self._connection: _Connection | None = None
        self._handshaking: _Connection | None = None
        self._connecting: Deferred[Any] | None = None
        self._question: _Question | None = None
        self._retry: Any = None
        self._renewal: Any = None
        self._joining: list[Deferred[SignalingClient]] = []
        self._unfinished: set[Deferred[Any]] = set()
        self._has_warned = False
        self.on_failure: Callable[[Exception], object] = lambda failure: _log.error("{failure}", failure=failure)

    @property
    def self_id(self) -> str:
        """This peer's id; a new one after a loss that was not resumed."""
        return self._session.self_id

    @property
    def peers(self) -> dict[str, Metadata | None]:
        """The other peers and their metadata, in joining order: a copy."""
        return dict(self._session.peers)

    @property
    def metadata(self) -> Metadata | None:
        """This peer's own metadata, as given, or as the server last said; a token may have replaced the former."""
        return self._session.metadata

    @property
    def ice_servers(self) -> list[IceServer]:
        """The ICE servers to use now; empty if the server names none."""
        return self._session.ice_servers

    @property
    def features(self) -> frozenset[str]:
        """The names of the optional features that the server has on; empty before the first ``Welcome``."""
        return self._session.features

    def startService(self) -> None:
        """Join the topic."""
        super().startService()
        self._connect()

    def stopService(self) -> Deferred[None] | None:
        """Leave the topic, with close code 1000; fires when the connection has ended."""
        super().stopService()
        self._end(Lost("left the topic"))
        for unfinished in tuple(self._unfinished):
            unfinished.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._handshaking is not None:
            self._handshaking.transport.abortConnection()
            self._handshaking = None
        # The service may be started again before this connection has ended.
        connection, self._connection = self._connection, None
        if connection is None:
            return None
        connection.gone = Deferred()
        connection.sendClose(1000)
        return connection.gone

    def when_joined(self) -> Deferred[SignalingClient]:
        """Return a Deferred that fires with this client once it is in the topic."""
        joined: Deferred[SignalingClient] = Deferred()
        if self._session.open:
            joined.callback(self)
        else:
            self._joining.append(joined)
        return joined

    def send(self, kind: str, to: str, payload: Any = None) -> str:
        """Send a message, and return its ``msgId``; if it does not arrive, an ``Error`` has the same one.

        Raises:
            ValueError: if it is not JSON, or longer than the server accepts.
        """
        msg_id = self._session.send(kind, to, payload)
        self._flush()
        return msg_id

    def deliver(self, kind: str, to: str, payload: Any = None) -> Deferred[None]:
        """Send a message; fires once the server accepted it, or fails with ``NotDelivered``.

        Raises:
            ValueError: if it is not JSON, or longer than the server accepts.
        """
        delivered: Deferred[None] = Deferred()

        def on_outcome(error: Error | None) -> None:
            if error is None:
                delivered.callback(None)
            else:
                delivered.errback(Failure(NotDelivered(error.code, error.message)))

        self._session.send(kind, to, payload, on_outcome)
        self._flush()
        return delivered

    def update_metadata(self, metadata: Mapping[str, Any]) -> Deferred[None]:
        """Replace this peer's metadata; fires once the server has told all peers in the topic, this one as well.

        It fails with ``NotUpdated``. The key ``instance`` stays, unless there is another one. If the update is
        cancelled, or ends as ``unconfirmed``, the client asks for the metadata again when it next connects.

        Raises:
            TypeError: if the metadata is no mapping.
            ValueError: if it is not JSON, or longer than the server accepts.
        """

        def forget(_: object) -> None:
            self._session.forget_update(on_outcome)
            # Another update may have waited for this one.
            self._flush()

        updated: Deferred[None] = Deferred(forget)

        def on_outcome(error: Error | None) -> None:
            if error is None:
                updated.callback(None)
            else:
                updated.errback(Failure(NotUpdated(error.code, error.message)))

        def late(*_: object) -> None:
            error = unanswered()
            raise NotUpdated(error.code, error.message)

        updated.addTimeout(UPDATE_SECONDS, self._clock, late)
        self._session.update_metadata(metadata, on_outcome)
        self._flush()
        return updated

    # Called by the connection

    def handshake_started(self, connection: _Connection) -> None:
        """Use a connection whose handshake begins."""
        self._handshaking = connection

    def connected(self, connection: _Connection) -> None:
        """Use a connection whose handshake is done."""
        if connection is self._handshaking:
            self._connection, self._handshaking = connection, None

    def received(self, connection: _Connection, text: bytes) -> None:
        """Process a message."""
        if connection is not self._connection or not self.running:
            return
        was_open = self._session.open
        self._session.receive(text)
        if self._session.open and not was_open:
            connection.opened()
            self._backoff.opened()
            joining, self._joining = self._joining, []
            for joined in joining:
                joined.callback(self)
        self._plan_renewal()
        self._flush()

    def uses(self, connection: _Connection) -> bool:
        """Return whether a connection is the current one."""
        return connection in (self._connection, self._handshaking)

    def disconnected(self, loss: Loss) -> None:
        """Note the end of the current connection, and connect again later."""
        self._forget_connection(loss)
        if self.running:
            delay = self._backoff.delay(loss)
            _log.info("{reason}; connecting again in {delay:.1f} s", reason=loss.reason, delay=delay)
            self._retry = self._clock.callLater(delay, self._connect)

    def refused(self, refused: Refused) -> None:
        """Give up, unless a new token may help."""
        try:
            loss = self._session.refused(refused)
        except Refused:
            self._forget_connection(Loss(refused.reason))
            if self.running:
                self._end(refused)
                self._call("on_failure", self.on_failure, refused)
        else:
            self.disconnected(loss)

    def _forget_connection(self, loss: Loss) -> None:
        self._connection = self._handshaking = None
        self._stop_asking()
        self._session.lost(loss.code, loss.reason)
        self._flush()

    def _connect(self) -> None:
        self._retry = None
        source = self._session.token_source
        if callable(source):
            self._question = _Question(source, self._clock, self._connect_with)
        else:
            self._open(source)

    def _connect_with(self, answer: str | NoToken) -> None:
        if isinstance(answer, NoToken):
            self.disconnected(Loss(f"no connection: {answer}"))
        else:
            self._open(answer)

    def _plan_renewal(self) -> None:
        step = self._session.renewal()
        if step is None:
            return
        if step.warning:
            _log.warn("{warning}", warning=step.warning)
        if step.seconds is not None:
            self._renewal = self._clock.callLater(step.seconds, self._ask_for_renewal)

    def _ask_for_renewal(self) -> None:
        self._renewal = None
        self._question = _Question(self._session.token_source, self._clock, self._renew_with)

    def _renew_with(self, answer: str | NoToken) -> None:
        if isinstance(answer, NoToken):
            self._session.renewal_failed(str(answer))
            self._plan_renewal()
        else:
            self._session.renew(answer)
            self._flush()

    def _stop_asking(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if self._question is not None:
            self._question.stop()
            self._question = None

    def _open(self, token: str | None) -> None:
        factory = _Factory(self, self._session.url, self._clock, token)
        self._connecting = self._endpoint.connect(factory)
        self._connecting.addCallbacks(self._connection_made, self._connection_failed)

    def _connection_made(self, connection: Any) -> None:
        self._connecting = None
        if not self.running:
            connection.transport.abortConnection()

    def _connection_failed(self, failure: Failure) -> None:
        self._connecting = None
        words = one_line(failure.getErrorMessage())
        self.disconnected(Loss(f"no connection: {type(failure.value).__name__}: {words}"))

    def _end(self, reason: Exception) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._stop_asking()
        self._flush()
        self._session.leave()
        joining, self._joining = self._joining, []
        for joined in joining:
            joined.errback(Failure(reason))
        self._flush()

    def _flush(self) -> None:
        if self._connection is not None:
            for text in self._session.writes():
                self._connection.sendMessage(text.encode())
        for event in self._session.events():
            if len(self._unfinished) < MAX_UNFINISHED:
                self._call("on_message", self._on_message, event)
            elif not self._has_warned:
                self._has_warned = True
                _log.warn("messages are left out: {count} calls of on_message have not ended", count=MAX_UNFINISHED)

    def _call(self, name: str, function: Callable[[Any], object], argument: object) -> None:
        def failed(failure: Failure) -> None:
            # The message is not logged: it may be a description.
            if self.running or not failure.check(CancelledError):
                _log.failure("{name} failed on {kind}", failure, name=name, kind=type(argument).__name__)

        try:
            outcome = function(argument)
        except Exception:
            failed(Failure())
        else:
            if iscoroutine(outcome):
                self._finish(outcome, failed)

    def _finish(self, call: Coroutine[Any, Any, object], failed: Callable[[Failure], None]) -> None:
        unfinished = Deferred.fromCoroutine(call)
        self._unfinished.add(unfinished)
        unfinished.addErrback(failed)
        unfinished.addBoth(lambda _: self._unfinished.discard(unfinished))


class _Question:
    """One call of the token function.

    Args:
        on_answer: called once, with the token or with why there is none; never after ``stop``.
    """

    def __init__(self, function: Any, clock: Any, on_answer: Callable[[str | NoToken], None]) -> None:
        self._on_answer: Callable[[str | NoToken], None] | None = on_answer
        self._late = clock.callLater(TOKEN_SECONDS, self._end, timed_out())
        self._asking = Deferred.fromCoroutine(_call(function))
        self._asking.addCallbacks(self._answered, lambda failure: self._end(raised(failure.value)))

    def stop(self) -> None:
        """Cancel the call."""
        self._on_answer = None
        self._end(None)

    def _answered(self, answer: object) -> None:
        try:
            self._end(checked(answer))
        except NoToken as missing:
            self._end(missing)

    def _end(self, answer: str | NoToken | None) -> None:
        on_answer, self._on_answer = self._on_answer, None
        if self._late.active():
            self._late.cancel()
        self._asking.cancel()
        if on_answer is not None and answer is not None:
            on_answer(answer)


async def _call(function: Callable[[], Any]) -> Any:
    answer = function()
    return await answer if isawaitable(answer) else answer


class _Connection(WebSocketClientProtocol):
    """One connection of a client."""

    factory: _Factory
    gone: Deferred[None] | None = None
    _client: SignalingClient
    _opening: Any = None
    _body = b""
    _fragments = 0
    data: bytes
    _ended_by: BaseException | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self._client = self.factory.client
        self._client.handshake_started(self)
        # From the first byte to the peer list.
        self._opening = self.factory.clock.callLater(OPENING_SECONDS, self.transport.abortConnection)

    def opened(self) -> None:
        """Cancel the timeout: the peer list arrived."""
        if self._opening is not None and self._opening.active():
            self._opening.cancel()

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self.state == self.STATE_CONNECTING and len(self.data) > _MAX_HEAD_BYTES:
            self.data = b""
            self.transport.abortConnection()

    def onMessageBegin(self, isBinary: bool) -> None:
        self._fragments = 0
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        super().onMessageFrameBegin(length)
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS:
            self.transport.abortConnection()

    def onOpen(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._client.connected(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self._client.received(self, payload)

    def connectionLost(self, reason: Failure) -> None:
        self._ended_by = reason.value
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.opened()
        if self.gone is not None:
            self.gone.callback(None)
        if not self._client.uses(self):
            return
        try:
            loss = self._loss(code, reason or "")
        except Refused as refused:
            self._client.refused(refused)
        else:
            self._client.disconnected(loss)

    def failHandshake(self, reason: str) -> None:
        # The part of the body that came with the headers; it says more than the reason phrase.
        self._body = self.data.partition(b"\r\n\r\n")[2]
        super().failHandshake(reason)

    def _loss(self, code: int | None, reason: str) -> Loss:
        answer = _STATUS_LINE.fullmatch(str(getattr(self, "http_status_line", "")))
        if answer is not None and int(answer[1]) != _SWITCHING_PROTOCOLS:
            return refusal(int(answer[1]), answer[2] or "", self._body, self.http_headers)
        if type(self._ended_by).__name__ == "Untrusted":
            # The class is not imported: a client without TLS does not need the extra "tls".
            return Loss(f"no connection: {self._ended_by}")
        return closing(code, reason)


class _Factory(WebSocketClientFactory):
    """Makes one connection of a client."""

    protocol = _Connection
    noisy = False

    def __init__(self, client: SignalingClient, url: str, clock: Any, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else None
        super().__init__(url, headers=headers, reactor=clock)
        self.client = client
        self.clock = clock
        # A ping without a pong ends the connection without a close frame, which would end the session.
        self.setProtocolOptions(
            autoPingInterval=PING_SECONDS,
            autoPingTimeout=PONG_SECONDS,
            maxMessagePayloadSize=MAX_RECEIVED_BYTES,
            maxFramePayloadSize=MAX_RECEIVED_BYTES,
            openHandshakeTimeout=OPENING_SECONDS,
        )


def _endpoint(clock: Any, url: str) -> Any:
    parts = urlsplit(url)
    secure = parts.scheme == "wss"
    tcp = endpoints.HostnameEndpoint(clock, parts.hostname or "", parts.port or (443 if secure else 80))
    if not secure:
        return tcp
    from signaling.server_identity import strict_options  # noqa: PLC0415 - needs the extra "tls"

    return endpoints.wrapClientTLS(strict_options(parts.hostname or ""), tcp)
