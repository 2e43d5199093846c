"""The asyncio client: one peer in one topic, on the ``websockets`` package."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from inspect import isawaitable
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidProxy, InvalidStatus, WebSocketException
from websockets.protocol import State

from signaling.client.backoff import Backoff, Loss, closing, one_line, refusal
from signaling.client.credential import TOKEN_SECONDS, NoToken, TokenSource, checked, raised, timed_out
from signaling.client.errors import Lost, NotDelivered, NotUpdated, Refused
from signaling.client.messages import AnyMessage, Error, IceServer, Metadata, Notice, PeerList, Relayed, Tampered
from signaling.client.metadata import UPDATE_SECONDS, unanswered
from signaling.client.session import MAX_FRAGMENTS, MAX_MESSAGE_BYTES, MAX_RECEIVED_BYTES, Session

_log = logging.getLogger("signaling.client")
# At level DEBUG, websockets logs tokens and whole messages. Only who sets the level of this logger gets that.
_wire_log = logging.getLogger("signaling.client.wire")
_wire_log.setLevel(logging.INFO)

OPENING_SECONDS = 15.0
PING_SECONDS = 10.0
PONG_SECONDS = 10.0
FLUSH_SECONDS = 5.0
CLOSE_SECONDS = 2.0
"""How long leaving waits for the server's close frame, also in a program that is interrupted."""

MAX_UNREAD = 256
MAX_UNREAD_BYTES = 1_048_576
"""Messages that wait for the application, and the bytes of their JSON; beyond that the socket is not read."""
_FLOOD_FACTOR = 8
MAX_NEVER_READ = 16_384
MAX_NEVER_READ_BYTES = 16 * 1_048_576
"""Messages of any kind that wait for an application while the socket has to be read, and the bytes of their JSON."""


def join(  # noqa: PLR0913 - as for SignalingClient
    url: str,
    *,
    metadata: Metadata | None = None,
    token: TokenSource | None = None,
    secret: str | None = None,
    reconnect: bool = True,
    backoff: Backoff | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    **options: Any,
) -> Signaling:
    """Return a peer for one topic; entering it joins.

    For a mesh, use ``signaling.client.mesh.join`` instead: it returns the same, with the metadata that a mesh needs.

    Args:
        url: of the topic, with its name percent-encoded.
        metadata: shown to the other peers; JSON of at most 4 KiB.
        token: for a server with access control: a string, or a function that returns one or an awaitable of one. The
            function is asked before every attempt to connect, and for a token that replaces the one of an open
            connection before it expires.
        secret: shared by the peers of the topic, of at least 16 bytes: payloads are sealed with it, so that the server
            can neither read nor change them (docs/sealing.md). Needs the extra ``sealed``.
        reconnect: whether to connect again after a loss, or after the token has expired. In either case, a function is
            asked for another token, once, if the server refuses the first one with 401 or 403.
        backoff: when to; None means after about half a second, doubling up to 30.
        max_message_bytes: the server's ``--max-message-bytes``.
        options: arguments of ``websockets.asyncio.client.connect``, for example ``ssl`` or ``additional_headers``.

    Raises:
        TypeError: if the token is neither a string nor a function.
        ValueError: if the URL is not that of a WebSocket, the token malformed or given twice, or the secret too short.
        ImportError: if there is a secret, and no ``cryptography``.
    """
    session = Session(url, metadata, token=token, secret=secret, max_message_bytes=max_message_bytes)
    if token is not None and "Authorization" in Headers(options.get("additional_headers") or {}):
        raise ValueError("a token is given twice, in additional_headers and as token=")
    return Signaling(session, backoff or Backoff(), reconnect=reconnect, options=options)


class Signaling:
    """One peer of a topic: an asynchronous iterator of messages, between entering and leaving it.

    Entering returns once this peer is in the topic, however many attempts that takes. Iteration ends when this peer has
    left; it raises ``Refused`` if the server would refuse it again, and ``Lost`` if it is not to connect again.
    """

    def __init__(self, session: Session, backoff: Backoff, *, reconnect: bool, options: dict[str, Any]) -> None:
        self._session = session
        self._backoff = backoff
        self._reconnect = reconnect
        self._options = options
        self._socket: ClientConnection | None = None
        self._writing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._unread: asyncio.Queue[tuple[AnyMessage | None, int]] = asyncio.Queue()
        self._unread_bytes = 0
        self._discarding = False
        self._room = asyncio.Event()
        self._waiting = 0
        self._iterates = self._sends = False
        self._joined: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

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

    async def send(self, kind: str, to: str, payload: Any = None) -> str:
        """Send a message; if it does not arrive, iteration yields an ``Error``.

        Without a connection, it waits for the next one, and is ``dropped`` if that cannot resume.

        Args:
            kind: ``offer``, ``answer`` or ``ice-candidate``.
            to: the target's id.
            payload: anything that JSON can represent.

        Returns:
            Its ``msgId``, which an ``Error`` about it repeats.

        Raises:
            ValueError: if it is not JSON, or longer than the server accepts.
        """
        msg_id = self._session.send(kind, to, payload)
        self._sends = True
        self._publish()
        await self._flush()
        return msg_id

    async def deliver(self, kind: str, to: str, payload: Any = None) -> None:
        """Send a message, and wait until the server has written it to its target or queued it.

        Raises:
            NotDelivered: with the code of the error that answered it.
            ValueError: if it is not JSON, or longer than the server accepts.
        """
        ended: asyncio.Future[Error | None] = asyncio.get_running_loop().create_future()
        self._session.send(kind, to, payload, lambda error: None if ended.done() else ended.set_result(error))
        self._waiting += 1
        self._publish()
        try:
            await self._flush()
            error = await ended
        finally:
            self._waiting -= 1
        if error is not None:
            raise NotDelivered(error.code, error.message)

    async def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace this peer's metadata; returns once the server has told all peers in the topic, this one as well.

        The key ``instance`` stays, unless there is another one. If the update is cancelled, or ends as
        ``unconfirmed``, the client asks for the metadata again when it next connects.

        Raises:
            NotUpdated: with the code of the server's error, or of the client's own.
            TypeError: if the metadata is no mapping.
            ValueError: if it is not JSON, or longer than the server accepts.
        """
        ended: asyncio.Future[Error | None] = asyncio.get_running_loop().create_future()

        def on_outcome(error: Error | None) -> None:
            if not ended.done():
                ended.set_result(error)

        self._session.update_metadata(metadata, on_outcome)
        self._waiting += 1
        self._publish()
        try:
            async with asyncio.timeout(UPDATE_SECONDS):
                await self._flush()
                error = await ended
        except TimeoutError:
            error = unanswered()
        finally:
            self._waiting -= 1
            self._session.forget_update(on_outcome)
            # Another update may have waited for this one.
            self._wake.set()
        if error is not None:
            raise NotUpdated(error.code, error.message)

    async def leave(self) -> None:
        """Leave the topic for good, with close code 1000."""
        running = self._running
        if running is None or running.done():
            return
        # Read until the server's close frame, however much waits for the application.
        self._waiting += 1
        self._make_room()
        try:
            socket = self._socket
            if socket is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_SECONDS):
                        await self._flush()
                await socket.close()
        finally:
            # If this is cancelled, the connection is aborted: this peer must not join again.
            running.cancel()
        await asyncio.wait([running])

    async def __aenter__(self) -> Self:
        self._joined = asyncio.get_running_loop().create_future()
        self._running = start(self._run())
        try:
            await self._joined
        except BaseException:
            await self.leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyMessage:
        self._iterates = True
        message, size = await self._unread.get()
        self._unread_bytes -= size
        self._make_room()
        if message is not None:
            return message
        self._unread.put_nowait((None, 0))
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    @property
    def _is_joining(self) -> bool:
        """Whether there was no connection yet."""
        return self._joined is not None and not self._joined.done()

    async def _run(self) -> None:
        try:
            while True:
                try:
                    loss = await self._connect()
                    if not self._reconnect:
                        raise Lost(loss.reason)
                except Refused as refused:
                    # Without a connection so far, another token is no reconnect.
                    if not self._reconnect and not self._is_joining:
                        raise
                    loss = self._session.refused(refused)
                delay = self._backoff.delay(loss)
                # Until this peer has joined, the application waits for that and sees nothing else.
                waiting = self._is_joining
                level = logging.WARNING if waiting else logging.INFO
                if waiting:
                    self._forget_unread()
                _log.log(level, "%s; connecting again in %.1f s", loss.reason, delay)
                await asyncio.sleep(delay)
        except Exception as failure:
            self._failure = failure
        except (KeyboardInterrupt, SystemExit):
            # Ctrl-C while this task ran. The program ends; a task that waits to join is cancelled.
            if self._joined is not None:
                self._joined.cancel()
            raise
        finally:
            self._end()

    def _end(self) -> None:
        self._session.leave()
        self._publish()
        self._unread.put_nowait((None, 0))
        if self._joined is not None and not self._joined.done():
            self._joined.set_exception(self._failure or Lost("left the topic"))

    async def _connect(self) -> Loss:
        try:
            token = await self._ask()
        except NoToken as missing:
            return Loss(f"no connection: {missing}")
        try:
            async with asyncio.timeout(OPENING_SECONDS) as opening:
                socket = await self._open(token)
                try:
                    return await self._use(socket, opening)
                except BaseException:
                    # Without a close frame: the session may be resumed.
                    socket.transport.abort()
                    raise
        except InvalidStatus as refused:
            response = refused.response
            headers = {name.lower(): value for name, value in response.headers.raw_items()}
            return refusal(response.status_code, response.reason_phrase, response.body, headers)
        except InvalidProxy:
            # Its text quotes the proxy's URL, which may hold a password.
            return Loss("no connection: the proxy's URL is not valid (HTTP_PROXY, HTTPS_PROXY or proxy=)")
        except (OSError, WebSocketException) as error:
            # A TimeoutError has no text.
            words = one_line(str(error)) or f"no peer list within {OPENING_SECONDS:.0f} s"
            return Loss(f"no connection: {type(error).__name__}: {words}")

    async def _ask(self) -> str | None:
        """Return the token for the next connection, or for a renewal.

        Raises:
            NoToken: if there is a function, and it returns none.
        """
        source = self._session.token_source
        if not callable(source):
            return source
        try:
            answer = source()
        except (Exception, asyncio.CancelledError) as error:
            # Nothing cancels this task meanwhile: the function read a future that was cancelled.
            raise raised(error) from None
        try:
            if isawaitable(answer):
                answer = await _bounded(asyncio.ensure_future(answer))
        except NoToken:
            raise
        except Exception as error:
            raise raised(error) from None
        return checked(answer)

    async def _open(self, token: str | None) -> ClientConnection:
        # Our own pings end a dead connection without a close frame: one that arrived would end the session.
        options = {
            "compression": None,
            "ping_interval": None,
            "close_timeout": CLOSE_SECONDS,
            "max_size": MAX_RECEIVED_BYTES,
            # A proxy from the environment cannot reach this machine.
            "proxy": None if _is_loopback(self._session.url) else True,
            "logger": _wire_log,
            **self._options,
        }
        if options.get("ssl") is None and urlsplit(self._session.url).scheme == "wss":
            options["ssl"] = context = ssl.create_default_context()
            # Only a subjectAltName says what host a certificate is for (RFC 9525).
            context.hostname_checks_common_name = False
        if token is not None:
            given = Headers(self._options.get("additional_headers") or {})
            options["additional_headers"] = [*given.raw_items(), ("Authorization", f"Bearer {token}")]
        return await _Connect(self._session.url, open_timeout=None, **options)

    async def _use(self, socket: ClientConnection, opening: asyncio.Timeout) -> Loss:
        self._socket = socket
        work = (self._write(), _keep_alive(socket), self._notice_end(socket))
        helpers = [asyncio.create_task(helper) for helper in work]
        code, reason = None, ""
        try:
            while True:
                text = await _receive(socket)
                self._session.receive(text)
                if self._session.open and opening.when() is not None:
                    self._opened(opening)
                self._publish(len(text))
                self._plan_renewal()
                self._wake.set()
                await self._room.wait()
        except ConnectionClosed as closed:
            code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "")
            return closing(code, reason)
        finally:
            self._socket = None
            self._session.lost(code, reason)
            self._publish()
            if self._renewing is not None:
                helpers.append(self._renewing)
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    def _opened(self, opening: asyncio.Timeout) -> None:
        opening.reschedule(None)
        self._backoff.opened()
        if self._joined is not None and not self._joined.done():
            self._joined.set_result(None)

    def _plan_renewal(self) -> None:
        step = self._session.renewal()
        if step is None:
            return
        if step.warning:
            _log.warning("%s", step.warning)
        if step.seconds is not None:
            self._renewing = start(self._renew(step.seconds))

    async def _renew(self, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            token = await self._ask()
        except NoToken as missing:
            self._session.renewal_failed(str(missing))
            self._plan_renewal()
        else:
            self._session.renew(token or "")
            await self._flush()

    def _publish(self, size: int = 0) -> None:
        for event in self._session.events():
            if self._is_too_much(event):
                self._discard()
                continue
            # The list comes once, and its size depends on the topic.
            counted, size = 0 if isinstance(event, PeerList) else size, 0
            self._unread.put_nowait((event, counted))
            self._unread_bytes += counted
        self._make_room()

    def _forget_unread(self) -> None:
        """Forget the messages of an attempt that failed, for example ``topic_full``: the next one needs the room."""
        while not self._unread.empty():
            self._unread.get_nowait()
        self._unread_bytes = 0
        self._make_room()

    def _fits(self, factor: int = 1) -> bool:
        return self._unread.qsize() < factor * MAX_UNREAD and self._unread_bytes < factor * MAX_UNREAD_BYTES

    def _is_too_much(self, event: AnyMessage) -> bool:
        if isinstance(event, Relayed | Tampered | Notice):
            return not self._fits(_FLOOD_FACTOR)
        return self._unread.qsize() >= MAX_NEVER_READ or self._unread_bytes >= MAX_NEVER_READ_BYTES

    def _make_room(self) -> None:
        # A task that waits for an outcome has to get it, even if nobody reads the messages before it. An application
        # that sends and has never iterated may never do so. Once the connection has ended, little is left to read.
        only_sends = self._sends and not self._iterates
        has_ended = self._socket is not None and self._socket.state is State.CLOSED
        if self._waiting or only_sends or has_ended or self._fits():
            self._room.set()
        else:
            self._room.clear()

    def _discard(self) -> None:
        if not self._discarding:
            self._discarding = True
            _log.warning("messages are discarded: nobody iterates, while send and deliver have to read on")

    async def _notice_end(self, socket: ClientConnection) -> None:
        await socket.wait_closed()
        self._make_room()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._flush()

    async def _flush(self) -> None:
        # If the caller is cancelled, the rest is written all the same: the session counts it as written.
        await asyncio.shield(start(self._write_out()))

    async def _write_out(self) -> None:
        async with self._writing:
            socket = self._socket
            if socket is None:
                return
            try:
                for text in self._session.writes():
                    await socket.send(text)
            except ConnectionClosed:
                pass  # Unconfirmed messages are kept.


def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a task whose exception is not logged: Ctrl-C, which the program gets as well."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return task


class _Connect(connect):
    """Follows no redirect, as in browsers: other servers get neither the token nor the metadata."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def _receive(socket: ClientConnection) -> str | bytes:
    fragments: list[Any] = []
    async for fragment in socket.recv_streaming():
        fragments.append(fragment)
        if len(fragments) > MAX_FRAGMENTS:
            raise WebSocketException(f"a message of more than {MAX_FRAGMENTS:,} fragments")
    message: str | bytes = type(fragments[0])().join(fragments)
    return message


async def _bounded(answer: asyncio.Future[str]) -> str:
    """Wait for a function's answer, also if the function does not end when it is cancelled."""
    # Its exception is not logged if nobody waits any more.
    answer.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        await asyncio.wait([answer], timeout=TOKEN_SECONDS)
        if not answer.done():
            raise timed_out()
        if answer.cancelled():
            raise raised(asyncio.CancelledError())
        return answer.result()
    finally:
        answer.cancel()


async def _keep_alive(socket: ClientConnection) -> None:
    try:
        while True:
            await asyncio.sleep(PING_SECONDS)
            async with asyncio.timeout(PONG_SECONDS):
                # A server that reads nothing does not even take the ping.
                pong = await socket.ping()
                await pong
    except TimeoutError:
        socket.transport.abort()
    except ConnectionClosed:
        pass


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
