"""The asyncio client: one peer in one topic, on the ``websockets`` package."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from signaling.client.backoff import Backoff, Loss, refusal
from signaling.client.errors import Lost, NotDelivered
from signaling.client.messages import AnyMessage, Error, IceServer, Metadata
from signaling.client.session import Session

_log = logging.getLogger("signaling.client")

OPENING_SECONDS = 15.0
PING_SECONDS = 10.0
PONG_SECONDS = 10.0
FLUSH_SECONDS = 5.0
# A peer list holds up to 1 MiB by default, and the operator may allow more.
_MAX_MESSAGE_BYTES = 16 * 1_048_576
# Messages that the application has not taken yet; then no more are read.
_MOST_UNREAD = 256


def join(
    url: str,
    *,
    metadata: Metadata | None = None,
    reconnect: bool = True,
    backoff: Backoff | None = None,
    **options: Any,
) -> Signaling:
    """Return a peer for one topic; entering it joins.

    Args:
        url: of the topic; its name percent-encoded.
        metadata: shown to the others; JSON of at most 4 KiB.
        reconnect: whether to connect again after a loss.
        backoff: when to; None means after about half a second, doubling up to 30.
        options: go to ``websockets.asyncio.client.connect``, for example ``ssl`` or ``additional_headers``.

    Raises:
        ValueError: where the URL is none of a WebSocket.
    """
    return Signaling(Session(url, metadata), backoff or Backoff(), reconnect=reconnect, options=options)


class Signaling:
    """One peer of a topic: an asynchronous iterator of messages, between entering and leaving it.

    Entering returns once this peer is in the topic, however many attempts that takes. Iteration ends when this peer
    left; it raises ``Refused`` where the server will never have it, and ``Lost`` where it must not connect again.
    """

    def __init__(self, session: Session, backoff: Backoff, *, reconnect: bool, options: dict[str, Any]) -> None:
        self._session = session
        self._backoff = backoff
        self._reconnect = reconnect
        self._options = options
        self._socket: ClientConnection | None = None
        self._writing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._unread: asyncio.Queue[AnyMessage | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._waiting = 0
        self._joined: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    @property
    def self_id(self) -> str:
        """This peer's id; another one after a loss that was not resumed."""
        return self._session.self_id

    @property
    def peers(self) -> dict[str, Metadata | None]:
        """The others and their metadata, in joining order: a copy."""
        return dict(self._session.peers)

    @property
    def ice_servers(self) -> list[IceServer]:
        """The ICE servers to use now; empty where the server names none."""
        return self._session.ice_servers

    async def send(self, kind: str, to: str, payload: Any = None) -> str:
        """Send one message; where it does not arrive, iteration brings an ``Error``.

        While the connection is gone it is kept for the next one, and ``dropped`` where that is another peer's.

        Args:
            kind: ``offer``, ``answer`` or ``ice-candidate``.
            to: the target's id.
            payload: anything that JSON can say.

        Returns:
            its ``msgId``, which an ``Error`` about it repeats.
        """
        msg_id = self._session.send(kind, to, payload)
        self._publish()
        await self._flush()
        return msg_id

    async def deliver(self, kind: str, to: str, payload: Any = None) -> None:
        """Send one message and wait until the server took it: wrote it to its target, or lets it wait for it.

        Raises:
            NotDelivered: with the code of the error that answered it.
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

    async def leave(self) -> None:
        """Leave the topic for good, with close code 1000."""
        running = self._running
        if running is None or running.done():
            return
        if self._socket is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._flush(), FLUSH_SECONDS)
            await self._socket.close()
        running.cancel()
        await asyncio.wait([running])

    async def __aenter__(self) -> Self:
        self._joined = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run())
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
        message = await self._unread.get()
        self._make_room()
        if message is not None:
            return message
        self._unread.put_nowait(None)
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    async def _run(self) -> None:
        try:
            while True:
                loss = await self._connect()
                if not self._reconnect:
                    raise Lost(loss.reason)
                delay = self._backoff.delay(loss)
                _log.info("%s; connecting again in %.1f s", loss.reason, delay)
                await asyncio.sleep(delay)
        except Exception as failure:
            self._failure = failure
        finally:
            self._end()

    def _end(self) -> None:
        self._session.leave()
        self._publish()
        self._unread.put_nowait(None)
        if self._joined is not None and not self._joined.done():
            self._joined.set_exception(self._failure or Lost("left the topic"))

    async def _connect(self) -> Loss:
        try:
            async with asyncio.timeout(OPENING_SECONDS) as opening:
                socket = await self._open()
                try:
                    return await self._use(socket, opening)
                except BaseException:
                    # Without a close frame: the session may go on.
                    socket.transport.abort()
                    raise
        except InvalidStatus as refused:
            response = refused.response
            headers = {name.lower(): value for name, value in response.headers.raw_items()}
            return refusal(response.status_code, response.reason_phrase, headers)
        except (OSError, WebSocketException) as error:
            return Loss(f"no connection: {type(error).__name__}")

    async def _open(self) -> ClientConnection:
        # Our own pings end a dead connection without a close frame, which would end the session if it came through.
        options = {"compression": None, "ping_interval": None, "max_size": _MAX_MESSAGE_BYTES, **self._options}
        return await connect(self._session.url, open_timeout=None, **options)

    async def _use(self, socket: ClientConnection, opening: asyncio.Timeout) -> Loss:
        self._socket = socket
        helpers = [asyncio.create_task(self._write()), asyncio.create_task(_keep_alive(socket))]
        try:
            while True:
                self._session.receive(await socket.recv())
                if self._session.open and opening.when() is not None:
                    self._opened(opening)
                self._publish()
                self._wake.set()
                await self._room.wait()
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            return Loss(f"the connection was lost ({code or 'no close frame'})", code)
        finally:
            self._socket = None
            self._session.lost()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    def _opened(self, opening: asyncio.Timeout) -> None:
        opening.reschedule(None)
        self._backoff.opened()
        if self._joined is not None and not self._joined.done():
            self._joined.set_result(None)

    def _publish(self) -> None:
        for event in self._session.events():
            self._unread.put_nowait(event)
        self._make_room()

    def _make_room(self) -> None:
        # Who waits for an answer has to get it, even where nobody takes what comes before.
        if self._waiting or self._unread.qsize() < _MOST_UNREAD:
            self._room.set()
        else:
            self._room.clear()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            socket = self._socket
            if socket is None:
                return
            try:
                for text in self._session.writes():
                    await socket.send(text)
            except ConnectionClosed:
                pass  # What was not confirmed is kept.


async def _keep_alive(socket: ClientConnection) -> None:
    try:
        while True:
            await asyncio.sleep(PING_SECONDS)
            pong = await socket.ping()
            await asyncio.wait_for(pong, PONG_SECONDS)
    except TimeoutError:
        socket.transport.abort()
    except ConnectionClosed:
        pass
