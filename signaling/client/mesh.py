"""An aiortc connection to each other peer of a topic.

aiortc cannot roll back an offer, so only one side offers: of two peers the one with the greater id, which joined later.
It makes one offer at a time, and repeats it if it is not answered, so an answer is always for the current connection.
If the other side offers all the same, or for another connection than the current one, a new connection is made.

Whatever a peer sends affects only the connection to it: each peer has its own task, a bound on what waits for it, and
a bound on how often its connection is made again.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any

from signaling.client.aiortc import MAX_CANDIDATES, TamperLog, deliver, from_payload, to_payload
from signaling.client.connection import Signaling, start
from signaling.client.messages import (
    Answer,
    IceCandidate,
    IceServer,
    Offer,
    PeerJoined,
    PeerLeft,
    PeerList,
    Tampered,
    Welcome,
)

try:
    from aiortc import RTCConfiguration, RTCIceGatherer, RTCIceServer, RTCPeerConnection
except ImportError as missing:
    raise ImportError("this needs aiortc: pip install 'twisted-signaling[client]'") from missing

_log = logging.getLogger("signaling.client")
_IDENTITY = re.compile(r"^a=(?:ice-ufrag|fingerprint):.*$", re.MULTILINE)

ANSWER_SECONDS = 10.0
"""How long to wait for an answer before the offer is repeated; doubles each time, up to two minutes."""
_LONGEST_ANSWER_SECONDS = 120.0
MAX_BEGINNINGS = 5
BEGINNINGS_SECONDS = 10.0
"""At most so many connections to one peer are made in so many seconds; the next one waits."""
_CLOSING_SECONDS = 5.0

Prepare = Callable[[Any, str, bool], None]
"""Called with a new ``RTCPeerConnection``, the other peer's id, and whether this side offers. It adds tracks and
listeners to every connection, and creates data channels if this side offers."""


class Mesh:
    """Keeps one connection to each other peer.

    Args:
        signaling: has joined; from now on the mesh reads its messages.
        prepare: prepares each new connection, before its offer or answer is made.
        configuration: further arguments of each ``RTCConfiguration``, besides the server's ICE servers.

    Attributes:
        connections: by peer id.
    """

    def __init__(self, signaling: Signaling, prepare: Prepare, **configuration: Any) -> None:
        self._signaling = signaling
        self._prepare = prepare
        self._configuration = configuration
        self.connections: dict[str, Any] = {}
        self._links: dict[str, _Link] = {}
        self._describing: dict[Any, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._tampering = TamperLog()

    async def run(self) -> None:
        """Keep the connections until this peer has left; then close them."""
        try:
            async for message in self._signaling:
                await self._take(message)
        finally:
            await self._forget_all()
            if self._closing:
                await asyncio.wait(self._closing, timeout=_CLOSING_SECONDS)

    def begin(self, peer_id: str, *, offers: bool) -> Any:
        """Replace the connection to a peer by a new one, let the application prepare it, and return it."""
        servers = _usable(self._signaling.ice_servers)
        made = RTCPeerConnection(RTCConfiguration(iceServers=servers, **self._configuration))
        self._close(peer_id)
        self.connections[peer_id] = made

        def changed() -> None:
            current = self.connections.get(peer_id) is made
            if current and made.connectionState == "failed" and self._offers_to(peer_id):
                self._link(peer_id).put(None)

        made.on("connectionstatechange", changed)
        try:
            self._prepare(made, peer_id, offers)
        except Exception:
            _log.exception("prepare failed")
            raise
        return made

    async def describe(self, peer_id: str, connection: Any, description: Any) -> None:
        """Set the local description, and send it with all candidates."""
        # In its own task: if aiortc is cancelled while it gathers candidates, sockets stay open.
        self._describing[connection] = start(connection.setLocalDescription(description))
        await asyncio.shield(self._describing[connection])
        await self.send(peer_id, connection)

    async def send(self, peer_id: str, connection: Any) -> None:
        """Send the local description of a connection, for the first time or again."""
        kind, payload = to_payload(connection.localDescription)
        await deliver(self._signaling, kind, peer_id, payload)

    async def _take(self, message: object) -> None:
        match message:
            case Welcome(self_id, resumed=False):
                # The others see a new peer, and close their connections to the old one. Those that stay in the topic
                # are not announced again.
                await self._forget_all()
                if self_id == self._signaling.self_id:
                    self._offer_to_new(*self._signaling.peers)
            case PeerList(peers):
                self._offer_to_new(*(peer.id for peer in peers))
            case PeerJoined(peer_id):
                self._offer_to_new(peer_id)
            case PeerLeft(peer_id):
                await self._forget(peer_id)
            case Tampered():
                self._tampering.log(message)
            case Offer(sender) | Answer(sender) | IceCandidate(sender) if sender in self._signaling.peers:
                self._link(sender).put(message)

    def _offer_to_new(self, *peer_ids: str) -> None:
        for peer_id in peer_ids:
            # If there is a link, it offers already: after a Welcome, some peers come twice.
            if peer_id not in self._links and self._offers_to(peer_id):
                self._link(peer_id).put(None)

    def _offers_to(self, peer_id: str) -> bool:
        return self._signaling.self_id > peer_id

    def _link(self, peer_id: str) -> _Link:
        if peer_id not in self._links:
            self._links[peer_id] = _Link(self, peer_id)
        return self._links[peer_id]

    async def _forget(self, peer_id: str) -> None:
        link = self._links.pop(peer_id, None)
        if link is not None:
            await link.stop()
        self._close(peer_id)

    async def _forget_all(self) -> None:
        for peer_id in tuple(self._links):
            await self._forget(peer_id)

    def _close(self, peer_id: str) -> None:
        connection = self.connections.pop(peer_id, None)
        if connection is not None:
            # In a task, so that the other peers do not wait until it is closed.
            closing = asyncio.create_task(self._end(connection))
            self._closing.add(closing)
            closing.add_done_callback(self._closed)

    async def _end(self, connection: Any) -> None:
        describing = self._describing.pop(connection, None)
        if describing is not None:
            await asyncio.wait([describing])
        await connection.close()

    def _closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            _log.warning("a connection did not close: %s", type(error).__name__)


class _Link:
    """What is to be done for one peer, in order: a description takes as long as gathering its candidates."""

    def __init__(self, mesh: Mesh, peer_id: str) -> None:
        self._mesh = mesh
        self._peer_id = peer_id
        self._todo: deque[Any] = deque()
        self._wake = asyncio.Event()
        self._unanswered = 0
        self._beginnings: deque[float] = deque(maxlen=MAX_BEGINNINGS)
        self._candidates = 0
        self._level = logging.WARNING
        self._task = asyncio.create_task(self._work())

    def put(self, message: Offer | Answer | IceCandidate | None) -> None:
        """Queue a message; None means to make an offer."""
        match message:
            case IceCandidate():
                candidate = from_payload(message)
                self._candidates += 1
                if candidate is None or self._candidates > MAX_CANDIDATES:
                    return
                self._todo.append(candidate)
            case None:
                if any(waiting is None or isinstance(waiting, Offer) for waiting in self._todo):
                    return
                self._todo.append(None)
            case Offer() | Answer():
                # Everything before belongs to a description that this one replaces.
                self._todo.clear()
                self._candidates = 0
                self._todo.append(message)
        self._wake.set()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _work(self) -> None:
        while True:
            message = await self._next()
            try:
                await self._handle(message)
            except Exception as error:
                # The other peer wrote the description, and aiortc raises any exception while it applies it. Its text
                # is not logged: it may quote the description. One warning is enough for one peer.
                level, self._level = self._level, logging.INFO
                _log.log(level, "%s: %s", self._peer_id, type(error).__name__)

    async def _next(self) -> Any:
        patience = None
        if self._awaits_answer():
            patience = min(_LONGEST_ANSWER_SECONDS, ANSWER_SECONDS * 2.0**self._unanswered)
        while not self._todo:
            self._wake.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._wake.wait()
            except TimeoutError:
                self._unanswered = min(self._unanswered + 1, 10)
                return None
        return self._todo.popleft()

    def _awaits_answer(self) -> bool:
        connection = self._mesh.connections.get(self._peer_id)
        return connection is not None and connection.signalingState == "have-local-offer"

    async def _handle(self, message: Any) -> None:
        connection = self._mesh.connections.get(self._peer_id)
        match message:
            case None:
                await self._offer(connection)
            case Offer():
                offer = from_payload(message)
                if offer is not None:
                    await self._answer(connection, offer)
            case Answer():
                answer = from_payload(message)
                # A second answer comes if the offer was made twice.
                if answer is not None and connection is not None and self._awaits_answer():
                    self._unanswered = 0
                    await connection.setRemoteDescription(answer)
            case candidate:
                if connection is not None and connection.remoteDescription is not None:
                    await connection.addIceCandidate(candidate)

    async def _offer(self, connection: Any) -> None:
        if not self._awaits_answer():
            connection = await self._begin(offers=True)
            await self._mesh.describe(self._peer_id, connection, await connection.createOffer())
        else:
            await self._mesh.send(self._peer_id, connection)

    async def _answer(self, connection: Any, offer: Any) -> None:
        if connection is None or not _continues(connection, offer):
            connection = await self._begin(offers=False)
        await connection.setRemoteDescription(offer)
        await self._mesh.describe(self._peer_id, connection, await connection.createAnswer())

    async def _begin(self, *, offers: bool) -> Any:
        loop = asyncio.get_running_loop()
        if len(self._beginnings) == MAX_BEGINNINGS:
            await asyncio.sleep(self._beginnings[0] + BEGINNINGS_SECONDS - loop.time())
        self._beginnings.append(loop.time())
        return self._mesh.begin(self._peer_id, offers=offers)


def _continues(connection: Any, offer: Any) -> bool:
    """Return whether an offer is for this connection; otherwise it begins another one."""
    remote = connection.remoteDescription
    if remote is None or connection.signalingState != "stable" or connection.connectionState in ("failed", "closed"):
        return False
    return set(_IDENTITY.findall(remote.sdp)) == set(_IDENTITY.findall(offer.sdp))


def _usable(servers: list[IceServer]) -> list[Any]:
    """Return the ICE servers that aiortc can use: if one of a list is unusable, it uses none."""
    usable = []
    for server in servers:
        try:
            made = RTCIceServer(**{key: server[key] for key in ("urls", "username", "credential") if key in server})
            RTCIceGatherer(iceServers=[made])
        except Exception as error:
            _log.warning("aiortc cannot use one of the ICE servers: %s", type(error).__name__)
        else:
            usable.append(made)
    return usable
