"""An aiortc connection to each of the others in a topic.

aiortc takes no offer back, so who offers is settled beforehand: of two peers the one with the later id, which joined
later. An offer that comes all the same, or that is for another connection than the present one, gets a new connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from signaling.client.aiortc import deliver, from_payload, to_payload
from signaling.client.errors import NotDelivered
from signaling.client.messages import Answer, IceCandidate, Offer, PeerJoined, PeerLeft, PeerList, Welcome
from signaling.client.topic import Signaling

try:
    from aiortc import InvalidStateError, RTCConfiguration, RTCIceServer, RTCPeerConnection
except ImportError as missing:
    raise ImportError("this needs aiortc: pip install 'twisted-signaling[client]'") from missing

_log = logging.getLogger("signaling.client")
_IDENTITY = re.compile(r"^a=(?:ice-ufrag|fingerprint):.*$", re.MULTILINE)

Prepare = Callable[[Any, str, bool], None]
"""Takes a new ``RTCPeerConnection``, the other's id, and whether this side offers: it adds tracks and listeners to
every connection, and creates data channels where it offers."""


class Mesh:
    """Keeps one connection to each of the others.

    Args:
        signaling: a topic that was entered; from now on its messages are the mesh's.
        prepare: prepares each new connection, before its offer or answer is made.
        configuration: further arguments of each ``RTCConfiguration``, besides the server's ICE servers.

    Attributes:
        connections: by the others' ids.
    """

    def __init__(self, signaling: Signaling, prepare: Prepare, **configuration: Any) -> None:
        self._signaling = signaling
        self._prepare = prepare
        self._configuration = configuration
        self.connections: dict[str, Any] = {}
        self._links: dict[str, _Link] = {}

    async def run(self) -> None:
        """Keep the connections until this peer left; then they are closed."""
        try:
            async for message in self._signaling:
                await self._take(message)
        finally:
            await self._forget_all()

    def start(self, peer_id: str) -> Any:
        """Make a new connection in place of the present one; returns it."""
        servers = [RTCIceServer(**server) for server in self._signaling.ice_servers]
        made = RTCPeerConnection(RTCConfiguration(iceServers=servers, **self._configuration))
        self.connections[peer_id] = made

        def changed() -> None:
            current = self.connections.get(peer_id) is made
            if current and made.connectionState == "failed" and self._offers_to(peer_id):
                self._link(peer_id).put(None)

        made.on("connectionstatechange", changed)
        return made

    def prepare(self, connection: Any, peer_id: str, *, offers: bool) -> None:
        """Let the application prepare a connection."""
        self._prepare(connection, peer_id, offers)

    async def send(self, peer_id: str, description: Any) -> None:
        """Send the local description, which holds all candidates."""
        await deliver(self._signaling, *_addressed(peer_id, description))

    async def _take(self, message: object) -> None:
        match message:
            case Welcome(resumed=False) if self._links:
                # Another id: the others have closed their connections to the former one.
                await self._forget_all()
                self._meet(*self._signaling.peers)
            case PeerList(peers):
                self._meet(*(peer.id for peer in peers))
            case PeerJoined(peer_id):
                self._meet(peer_id)
            case PeerLeft(peer_id):
                await self._forget(peer_id)
            case Offer(sender) | Answer(sender) | IceCandidate(sender):
                self._link(sender).put(message)

    def _meet(self, *peer_ids: str) -> None:
        for peer_id in peer_ids:
            if self._offers_to(peer_id):
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
        connection = self.connections.pop(peer_id, None)
        if connection is not None:
            await connection.close()

    async def _forget_all(self) -> None:
        for peer_id in tuple(self._links):
            await self._forget(peer_id)


class _Link:
    """What is to do for one of the others, one after the other: to describe takes as long as to gather candidates."""

    def __init__(self, mesh: Mesh, peer_id: str) -> None:
        self._mesh = mesh
        self._peer_id = peer_id
        self._todo: asyncio.Queue[Offer | Answer | IceCandidate | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._work())

    def put(self, message: Offer | Answer | IceCandidate | None) -> None:
        """Take a message; None means to make an offer."""
        self._todo.put_nowait(message)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _work(self) -> None:
        while True:
            message = await self._todo.get()
            try:
                await self._handle(message)
            except (NotDelivered, InvalidStateError, ValueError, AssertionError) as error:
                # Never its text: it may quote a description.
                _log.warning("%s: %s", self._peer_id, type(error).__name__)

    async def _handle(self, message: Offer | Answer | IceCandidate | None) -> None:
        connection = self._mesh.connections.get(self._peer_id)
        described = from_payload(message) if message is not None else None
        if message is None:
            await self._offer(connection)
        elif described is None:
            return
        elif isinstance(message, Offer):
            await self._answer(connection, described)
        elif connection is not None and isinstance(message, Answer):
            await connection.setRemoteDescription(described)
        elif connection is not None and connection.remoteDescription is not None:
            await connection.addIceCandidate(described)

    async def _offer(self, former: Any) -> None:
        connection = self._mesh.start(self._peer_id)
        if former is not None:
            await former.close()
        self._mesh.prepare(connection, self._peer_id, offers=True)
        await connection.setLocalDescription(await connection.createOffer())
        await self._mesh.send(self._peer_id, connection.localDescription)

    async def _answer(self, connection: Any, offer: Any) -> None:
        if connection is None or not _continues(connection, offer):
            former, connection = connection, self._mesh.start(self._peer_id)
            if former is not None:
                await former.close()
            self._mesh.prepare(connection, self._peer_id, offers=False)
        await connection.setRemoteDescription(offer)
        await connection.setLocalDescription(await connection.createAnswer())
        await self._mesh.send(self._peer_id, connection.localDescription)


def _continues(connection: Any, offer: Any) -> bool:
    """Tell whether an offer changes what a connection carries, and does not begin another one."""
    remote = connection.remoteDescription
    if remote is None or connection.signalingState != "stable" or connection.connectionState in ("failed", "closed"):
        return False
    return set(_IDENTITY.findall(remote.sdp)) == set(_IDENTITY.findall(offer.sdp))


def _addressed(peer_id: str, description: Any) -> tuple[str, str, dict[str, Any]]:
    kind, payload = to_payload(description)
    return kind, peer_id, payload
