"""An aiortc connection to each other peer of a topic.

aiortc cannot roll back an offer, so only one side offers: of two peers the one with the greater id, which joined later.
It makes one offer at a time, and repeats it if it is not answered, so an answer is always for the current connection.
If the other side offers all the same, or for another connection than the current one, a new connection is made.

An answer cannot add tracks. If the offer has no room for those of this side, this side offers them once the connection
works, as browsers do.

Connections outlive the signaling: a peer that comes back with another id is recognised by ``instance`` in its metadata,
a random name, and keeps its connection, as in the mesh of the browsers' client. Anybody can copy the name, so it counts
only once the former id is gone and no other peer has it; the certificate in an offer is a better proof.

aiortc cannot restart ICE. If the path between two peers breaks, the side that offers makes new connections, with pauses
that grow, until one works.

Whatever a peer sends affects only the connection to it: each peer has its own task, a bound on what waits for it, and
a bound on how often its connection is made again.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from inspect import iscoroutine
from typing import Any

from signaling.client.aiortc import MAX_CANDIDATES, TamperLog, deliver, from_payload, to_payload
from signaling.client.backoff import Backoff, Loss, type_and_line
from signaling.client.callbacks import Calls, wait_for_call
from signaling.client.connection import Signaling, start
from signaling.client.connection import join as join_topic
from signaling.client.errors import TOO_LARGE, NotDelivered
from signaling.client.messages import (
    Answer,
    IceCandidate,
    IceServer,
    Metadata,
    Notice,
    Offer,
    PeerJoined,
    PeerLeft,
    PeerList,
    PeerUpdated,
    Tampered,
    Welcome,
)
from signaling.client.metadata import INSTANCE
from signaling.client.private_aiortc import end_consent, leave_out, was_shut_down
from signaling.errors import ErrorCode

try:
    from aiortc import RTCConfiguration, RTCDataChannel, RTCIceGatherer, RTCIceServer, RTCPeerConnection
except ImportError as missing:
    raise ImportError("this needs aiortc: pip install 'twisted-signaling[client]'") from missing

__all__ = ["Mesh", "MeshPeer", "join"]

_log = logging.getLogger("signaling.client")
_FINGERPRINT = re.compile(r"^a=fingerprint:.*$", re.MULTILINE)
_IDENTITY = re.compile(r"^a=(?:ice-ufrag|fingerprint):.*$", re.MULTILINE)

MAX_CONNECTIONS = 64
ANSWER_SECONDS = 10.0
"""How long to wait for an answer before the offer is repeated; doubles each time, up to two minutes."""
_LONGEST_ANSWER_SECONDS = 120.0
MAX_BEGINNINGS = 5
BEGINNINGS_SECONDS = 10.0
"""So many connections to one peer are made at once; then one in so many seconds."""
BEGIN_SECONDS = 1.0
"""Between two connections to new peers, once twice ``max_connections`` were made; also between two that replace one."""
REPAIR_SECONDS = 8.0
"""About the pause before the second connection that replaces one whose path broke; doubles each time, up to a minute.
The first one is made at once."""
_LONGEST_REPAIR_SECONDS = 60.0
GRACE_SECONDS = 60.0
"""For a peer whose connection works to come back to the signaling."""
MAX_BUFFERED_BYTES = 16 * 1_048_576
"""That wait in a data channel for a peer that reads slowly."""
_CLOSING_SECONDS = 5.0


@dataclass(eq=False)
class MeshPeer:
    """Another peer, and the connection to it.

    Attributes:
        id: changes if the peer comes back with another id after a loss, while the connection goes on.
        metadata: what the peer says of itself, which may be anything; empty if it says nothing. Changes if the peer
            updates it.
        connection: aiortc's.
        channel: the data channel ``mesh``; None if this mesh has none, or the other side's offer.
        offers: whether this side makes the offer.
    """

    id: str
    metadata: Metadata
    connection: RTCPeerConnection
    channel: RTCDataChannel | None
    offers: bool

    def send(self, data: str | bytes) -> bool:
        """Send on the data channel.

        Returns:
            False, and nothing is sent, if it is not open, or ``MAX_BUFFERED_BYTES`` wait there already.
        """
        channel = self.channel
        if channel is None or channel.readyState != "open" or channel.bufferedAmount > MAX_BUFFERED_BYTES:
            return False
        channel.send(data)
        return True


OnPeer = Callable[[MeshPeer], Awaitable[object] | None]
OnData = Callable[[MeshPeer, str | bytes], Awaitable[object] | None]
"""Called with what a peer sends on its data channel ``mesh``."""
OnNotice = Callable[[Any], Awaitable[object] | None]


def join(url: str, *, metadata: Metadata | None = None, **options: Any) -> Signaling:
    """Return a peer for one topic, as ``signaling.client.join`` does, that other meshes recognise if it comes back.

    ``Mesh`` takes what either of the two returns. Without the ``instance`` that this one adds, the connections of the
    other meshes to this peer end when it comes back with another id.

    Args:
        url: of the topic; the metadata may not be in it.
        metadata: shown to the other peers, with a random ``instance``.
        options: as for ``signaling.client.join``.
    """
    named = {**(metadata or {}), INSTANCE: secrets.token_urlsafe(16)}
    return join_topic(url, metadata=named, **options)


class Mesh:
    """Keeps one connection to each other peer, also while the signaling is lost.

    Each connection has the data channel ``mesh``, which both sides make: negotiated, with the id 0.

    The functions may be coroutine functions. The negotiation waits until ``prepare`` has ended. Of the others, one call
    for a peer waits until the one before has ended, and those that have not ended are cancelled at the end of ``run``.

    Args:
        signaling: has joined, by this module's ``join``; from now on the mesh reads its messages.
        prepare: called with each new peer before its connection is negotiated: adds tracks and listeners, and further
            data channels if this side offers. A peer whose connection is replaced by another one is a new peer.
        on_open: called with each peer whose data channel ``mesh`` is open.
        on_data: called with what a peer sends on its data channel.
        on_update: called with each peer that has other metadata.
        on_notice: called with the ``data`` of each notice of the server's operator.
        channel: whether each connection has the data channel.
        max_connections: further peers wait until there is room.
        configuration: further arguments of each ``RTCConfiguration``, besides the server's ICE servers.
    """

    def __init__(  # noqa: PLR0913 - as options
        self,
        signaling: Signaling,
        prepare: OnPeer | None = None,
        *,
        on_open: OnPeer | None = None,
        on_data: OnData | None = None,
        on_update: OnPeer | None = None,
        on_notice: OnNotice | None = None,
        channel: bool = True,
        max_connections: int = MAX_CONNECTIONS,
        **configuration: Any,
    ) -> None:
        self._signaling = signaling
        self._prepare = prepare
        self._on_open = on_open
        self._on_data = on_data
        self._on_update = on_update
        self._calling: set[asyncio.Task[None]] = set()
        self._notices = Calls(on_notice, self._calling)
        self._channel = channel
        self._max_connections = max_connections
        self._configuration = configuration
        self._self_id = ""
        self._topic = _Topic()
        self._links: dict[str, _Link] = {}
        self._new = _Allowance(2 * max_connections, BEGIN_SECONDS)
        self._replacements = _Allowance(2 * max_connections, BEGIN_SECONDS)
        self._allowances: dict[str, _Allowance] = {}
        # By peer id, since when a peer waits for a connection.
        self._postponed: dict[str, float] = {}
        self._is_crowded = False
        self._retry: asyncio.TimerHandle | None = None
        self._describing: dict[Any, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._tampering = TamperLog()

    @property
    def peers(self) -> dict[str, MeshPeer]:
        """The peers to which there is a connection, by id: a copy."""
        return {peer_id: link.peer for peer_id, link in self._links.items() if link.peer is not None}

    def broadcast(self, data: str | bytes) -> None:
        """Send ``data`` to all peers, as ``MeshPeer.send`` does."""
        for peer in self.peers.values():
            peer.send(data)

    async def run(self) -> None:
        """Keep the connections until this peer has left; then close them."""
        self._self_id = self._signaling.self_id
        for peer_id, metadata in self._signaling.peers.items():
            self._joined(peer_id, metadata)
        try:
            async for message in self._signaling:
                match message:
                    case Tampered():
                        self._tampering.log(message)
                    case Notice(data):
                        self._notices.call(data)
                    case Offer() | Answer() | IceCandidate():
                        self._relayed(message)
                    case _:
                        self._take(message)
        finally:
            if self._retry is not None:
                self._retry.cancel()
            links = tuple(self._links.values())
            for link in links:
                self.drop(link)
            for task in self._calling:
                task.cancel()
            # A link may be in a call of prepare.
            ending = {*self._closing, *self._calling, *(link.task for link in links)}
            if ending:
                await asyncio.wait(ending, timeout=_CLOSING_SECONDS)

    # -- The peers in the topic --

    def _take(self, message: object) -> None:
        match message:
            case Welcome(self_id, resumed=False) if self._self_id != self_id == self._signaling.self_id:
                self._self_id = self_id
                # Those peers that stay are not announced again. If they have left, that is reported next.
                for link in tuple(self._links.values()):
                    link.recover()
                # The others see a new peer, and those that stay wait for its offer.
                for peer_id in self._topic:
                    self._connect_to(peer_id)
            case PeerList(peers):
                for peer in peers:
                    self._joined(peer.id, peer.metadata)
            case PeerJoined(peer_id, metadata):
                self._joined(peer_id, metadata)
            case PeerUpdated(peer_id, metadata) if peer_id in self._topic:
                self._updated(peer_id, metadata or {})
            case PeerLeft(peer_id):
                self._left(peer_id)

    def _relayed(self, message: Offer | Answer | IceCandidate) -> None:
        match message:
            case Offer(sender) if sender in self._topic:
                known = self._returned(message) or self._links.get(sender) or self._add(sender, offers=False)
                if known is not None:
                    known.put(message)
            case Answer(sender) | IceCandidate(sender) if sender in self._links:
                self._links[sender].put(message)

    def _joined(self, peer_id: str, metadata: Metadata | None) -> None:
        self._topic.add(peer_id, metadata or {})
        link = self._links.get(peer_id)
        if link is not None and link.is_orphan:
            # A node of a cluster may list a peer late; for this peer, it left and came back with its id.
            link.bind(peer_id, self._topic.metadata(peer_id))
        self._connect_to(peer_id)

    def _connect_to(self, peer_id: str) -> None:
        if peer_id in self._links:
            return
        same = self._links_of(self._topic.instance(peer_id))
        returned = next((link for link in same if self._successor(link) == peer_id), None)
        waited = self._waited(peer_id)
        if returned is not None:
            self._bind(returned, peer_id)
        elif waited is None and not self.offers_to(peer_id):
            return
        elif same and (waited or 0.0) < GRACE_SECONDS:
            self._postpone(peer_id)
        else:
            self._add(peer_id, offers=True)

    def _left(self, peer_id: str) -> None:
        self._topic.remove(peer_id)
        self._allowances.pop(peer_id, None)
        self._postponed.pop(peer_id, None)
        link = self._links.get(peer_id)
        if link is None:
            return
        successor = self._successor(link)
        if successor is not None:
            self._bind(link, successor)
        elif link.is_connected and link.instance is not None:
            link.orphan()
        else:
            self.drop(link)

    def _updated(self, peer_id: str, metadata: Metadata) -> None:
        self._topic.add(peer_id, metadata)
        link = self._links.get(peer_id)
        if link is not None:
            link.update(metadata)
            if link.peer is not None:
                link.updates.call(link.peer)

    def offers_to(self, peer_id: str) -> bool:
        """Return whether of the two peers this one offers."""
        return self._signaling.self_id > peer_id

    # -- Peers that come back with another id --

    def _links_of(self, instance: str | None) -> list[_Link]:
        return [link for link in self._links.values() if link.instance == instance] if instance is not None else []

    def _successor(self, link: _Link) -> str | None:
        """Return the id with which a peer that left came back."""
        if link.peer_id in self._topic or len(self._links_of(link.instance)) != 1:
            return None
        return self._topic.only_holder(link.instance)

    def _returned(self, offer: Offer) -> _Link | None:
        """Return the connection of a peer that has another id now, and proves its identity by its certificate."""
        for link in self._links_of(self._topic.instance(offer.sender)):
            if link.peer_id != offer.sender and link.has_certificate_of(offer):
                self._bind(link, offer.sender)
                return link
        return None

    def _bind(self, link: _Link, peer_id: str) -> None:
        former = link.peer_id
        other = self._links.get(peer_id)
        if other is not None:
            self.drop(other)
        self._postponed.pop(peer_id, None)
        del self._links[former]
        self._links[peer_id] = link
        link.bind(peer_id, self._topic.metadata(peer_id))
        if former in self._topic and self.offers_to(former):
            self._postpone(former)  # It leaves soon, or is another peer.

    # -- The number of connections --

    def _add(self, peer_id: str, *, offers: bool) -> _Link | None:
        """Begin a connection to a peer; None if that has to wait."""
        is_full = len(self._links) >= self._max_connections
        # Peers that wait come before new ones.
        if is_full or (self._is_crowded and peer_id not in self._postponed):
            if not self._is_crowded:
                self._is_crowded = True
                _log.warning("a mesh has %d connections (max_connections): further peers wait", len(self._links))
            self._postpone(peer_id)
            return None
        self._postponed.pop(peer_id, None)
        link = self._links[peer_id] = _Link(self, peer_id, self._topic.metadata(peer_id))
        if offers:
            link.offer()
        return link

    def _postpone(self, peer_id: str) -> None:
        loop = asyncio.get_running_loop()
        self._postponed.setdefault(peer_id, loop.time())
        if self._retry is None:
            self._retry = loop.call_later(BEGIN_SECONDS, self._try_again)

    def _waited(self, peer_id: str) -> float | None:
        since = self._postponed.get(peer_id)
        return None if since is None else asyncio.get_running_loop().time() - since

    def _try_again(self) -> None:
        self._retry = None
        for peer_id in tuple(self._postponed):
            if len(self._links) >= self._max_connections:
                break
            self._connect_to(peer_id)
        else:
            self._is_crowded = False
        if self._postponed and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(BEGIN_SECONDS, self._try_again)

    def yields(self, link: _Link) -> bool:
        """Let a peer that cannot be reached wait if this mesh is full, and others wait for a connection."""
        if not self._postponed or len(self._links) < self._max_connections:
            return False
        self.drop(link)
        self._postpone(link.peer_id)
        return True

    async def await_turn(self, link: _Link) -> None:
        """Wait until another connection to a peer may be made."""
        while seconds := max(bound.seconds_to_wait() for bound in self._bounds(link)):
            await asyncio.sleep(seconds)

    def _bounds(self, link: _Link) -> list[_Allowance]:
        own = self._allowances.setdefault(link.peer_id, _Allowance(MAX_BEGINNINGS, BEGINNINGS_SECONDS))
        # A peer that begins anew all the time takes nothing from new peers.
        return [own, self._new if link.peer is None else self._replacements]

    # -- Connections --

    async def begin(self, link: _Link, *, offers: bool, channel: bool) -> MeshPeer | None:
        """Replace the connection to a peer by a new one, and let the application prepare it.

        Returns:
            None if it was closed meanwhile.
        """
        for bound in self._bounds(link):
            bound.take()
        servers = _usable(self._signaling.ice_servers)
        made = RTCPeerConnection(RTCConfiguration(iceServers=servers, **self._configuration))
        self.close(link)
        opened = made.createDataChannel("mesh", negotiated=True, id=0) if self._channel and channel else None
        peer = link.peer = MeshPeer(link.peer_id, link.metadata, made, opened, offers)
        made.on("connectionstatechange", lambda: link.changed(peer))
        # A listener may wait for what another one gets.
        opening, receiving, link.updates = link.calls = [
            Calls(listener, self._calling) for listener in (self._on_open, self._on_data, self._on_update)
        ]
        if opened is not None:
            opened.on("open", lambda: opening.call(peer))
            opened.on("message", lambda data: receiving.call(peer, data))
        if self._prepare is not None:
            try:
                preparing = self._prepare(peer)
                if iscoroutine(preparing):
                    await wait_for_call(preparing)
            except Exception:
                _log.exception("prepare failed")
                raise
        return peer if link.peer is peer else None

    async def describe(self, link: _Link, peer: MeshPeer, description: Any) -> None:
        """Set the local description, and send it with all candidates."""
        # In its own task: if aiortc is cancelled while it gathers candidates, sockets stay open.
        self._describing[peer.connection] = start(peer.connection.setLocalDescription(description))
        await asyncio.shield(self._describing[peer.connection])
        await self.send(link, peer)

    async def send(self, link: _Link, peer: MeshPeer) -> None:
        """Send the local description of a connection, for the first time or again.

        Raises:
            NotDelivered: for any reason but ``dropped``; ``too_large`` if it is longer than the server accepts.
        """
        kind, payload = to_payload(peer.connection.localDescription)
        try:
            await deliver(self._signaling, kind, link.peer_id, payload)
        except ValueError as error:
            raise NotDelivered(TOO_LARGE, str(error)) from None

    def close(self, link: _Link) -> None:
        """Close the current connection to a peer."""
        peer, link.peer = link.peer, None
        for calls in link.calls:
            calls.cancel_after(GRACE_SECONDS)
        if peer is not None:
            self._in_background(self._end(peer.connection))

    def drop(self, link: _Link) -> None:
        """Close the connection to a peer, and do no more for it."""
        del self._links[link.peer_id]
        link.stop()
        self.close(link)

    def _in_background(self, work: Any) -> None:
        # In a task, so that the other peers do not wait until a connection is closed.
        closing = asyncio.create_task(work)
        self._closing.add(closing)
        closing.add_done_callback(self._closed)

    async def _end(self, ended: Any) -> None:
        describing = self._describing.pop(ended, None)
        if describing is not None:
            await asyncio.wait([describing])
        for transport in _transports(ended):
            end_consent(transport)
        await ended.close()

    def _closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            _log.warning("a connection did not close: %s", type(error).__name__)


class _Link:
    """One other peer: its current connection, and what is to be done for it, in order.

    Attributes:
        peer_id: its current id.
        instance: its random name; None if its metadata has none.
        peer: None without a connection.
        calls: of the application's listeners, for the current connection.
        updates: those of the listener for updates.
        task: does what is to be done, until ``stop``.
    """

    def __init__(self, mesh: Mesh, peer_id: str, metadata: Metadata) -> None:
        self.peer_id = peer_id
        self.metadata = metadata
        self.instance = _instance(metadata)
        self.peer: MeshPeer | None = None
        self.calls: list[Calls] = []
        self.updates: Calls
        self._mesh = mesh
        self._offer_due = False
        self._tracks_due: MeshPeer | None = None
        self._description: Offer | Answer | None = None
        self._candidates: deque[Any] = deque()
        self._candidates_received = 0
        self._wake = asyncio.Event()
        self._unanswered = 0
        self._grace: asyncio.TimerHandle | None = None
        self._repair: asyncio.TimerHandle | None = None
        self._backoff = Backoff(REPAIR_SECONDS, _LONGEST_REPAIR_SECONDS, clock=asyncio.get_running_loop().time)
        # The peer to which a connection worked.
        self._reached: MeshPeer | None = None
        # Until then, the other side may close its connection to a former id of one of the two peers.
        self._uncertain_until = 0.0
        self._level = logging.WARNING
        self._stopped = False
        self.task = asyncio.create_task(self._work())

    @property
    def is_connected(self) -> bool:
        """Whether data flows."""
        return self.peer is not None and self.peer.connection.connectionState == "connected"

    @property
    def is_orphan(self) -> bool:
        """Whether the peer left, and its connection is kept for some time."""
        return self._grace is not None

    @property
    def _awaits_answer(self) -> bool:
        return self.peer is not None and self.peer.connection.signalingState == "have-local-offer"

    def _is_answered_first(self, offer: Any) -> bool:
        """Return whether this side has offered as well, and not for a connection that the other side has given up."""
        if self.peer is None or not self._awaits_answer:
            return False
        remote = self.peer.connection.remoteDescription
        return remote is None or _identity(remote) == _identity(offer)

    def has_certificate_of(self, offer: Offer) -> bool:
        """Return whether an offer has the certificate of the current connection."""
        remote = self.peer.connection.remoteDescription if self.peer is not None else None
        match offer.payload:
            case {"sdp": str(sdp)} if remote is not None:
                found = set(_FINGERPRINT.findall(sdp))
                return bool(found) and found == set(_FINGERPRINT.findall(remote.sdp))
        return False

    def put(self, message: Offer | Answer | IceCandidate) -> None:
        """Queue a message. A description replaces what waits, since that belongs to an earlier one."""
        if isinstance(message, IceCandidate):
            self._candidates_received += 1
            if self._candidates_received > MAX_CANDIDATES:
                return
            self._candidates.append(message)
        else:
            self._description = message
            self._candidates.clear()
            self._candidates_received = 0
        self._wake.set()

    def offer(self) -> None:
        """Make a new connection, and offer it."""
        self._cancel_repair()
        self._offer_due = True
        self._wake.set()

    def recover(self) -> None:
        """Begin again after one of the two peers got a new id: messages under the former one are lost."""
        self._uncertain_until = asyncio.get_running_loop().time() + GRACE_SECONDS
        if self.is_connected:
            return
        if self._mesh.offers_to(self.peer_id):
            self.offer()
        elif self._awaits_answer or self._repair:
            # From now on the other side offers.
            self._cancel_repair()
            self._mesh.close(self)

    def bind(self, peer_id: str, metadata: Metadata) -> None:
        """Continue with a new id of the same peer."""
        self.peer_id, self.metadata = peer_id, metadata
        if self.peer is not None:
            self.peer.id, self.peer.metadata = peer_id, metadata
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self.recover()

    def update(self, metadata: Metadata) -> None:
        """Show other metadata of the peer."""
        self.metadata = metadata
        self.instance = _instance(metadata)
        if self.peer is not None:
            self.peer.metadata = metadata

    def orphan(self) -> None:
        """Keep the connection of a peer that left for some time: it may come back with another id."""
        self._grace = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._mesh.drop, self)

    def stop(self) -> None:
        """Do no more."""
        self._stopped = True
        self._cancel_repair()
        if self._grace is not None:
            self._grace.cancel()
        if asyncio.current_task() is not self.task:
            self.task.cancel()

    def changed(self, peer: MeshPeer) -> None:
        """Follow a change of a connection's state."""
        state = peer.connection.connectionState
        if peer is not self.peer:
            return
        if state == "connected":
            self._backoff.opened()
            self._reached = peer
        if state not in ("failed", "closed") or self._offer_due or self._repair or isinstance(self._description, Offer):
            return
        # aiortc closes a connection whose path is broken. One that the other side closes is only made again if that did
        # not know that this is the same peer.
        is_uncertain = asyncio.get_running_loop().time() < self._uncertain_until
        is_cut_off = peer is self._reached and not any(map(was_shut_down, _transports(peer.connection)))
        is_lost = state == "failed" or is_cut_off or is_uncertain
        if self._grace is None and is_lost and self._mesh.offers_to(self.peer_id):
            self._repair_later()
        elif state == "closed" or self._grace is not None:
            self._mesh.drop(self)

    def _repair_later(self) -> None:
        delay = self._backoff.delay(Loss("the path is broken", at_once=True))
        if not delay:
            self.offer()
        elif not self._mesh.yields(self):
            self._repair = asyncio.get_running_loop().call_later(delay, self.offer)

    def _cancel_repair(self) -> None:
        if self._repair is not None:
            self._repair.cancel()
            self._repair = None

    async def _work(self) -> None:
        while not self._stopped:
            is_late = await self._wait()
            try:
                await self._step(is_late=is_late)
            except NotDelivered as error:
                # A peer that left is reported as well. Anything else would be refused again.
                if error.code not in (ErrorCode.TARGET_NOT_FOUND, ErrorCode.DROPPED):
                    _log.warning("no connection to %s: %s", self.peer_id, error)
                    self._give_up()
            except Exception as error:
                # The other peer wrote the description, and aiortc raises any exception while it applies it. Its text
                # is not logged: it may quote the description. One warning is enough for one peer.
                level, self._level = self._level, logging.INFO
                _log.log(level, "the negotiation with %s failed: %s", self.peer_id, type_and_line(error))
                if not (self.is_connected or self._offer_due or self._repair or self._description):
                    self._give_up()

    def _give_up(self) -> None:
        # Without a connection, the peer is connected again once it offers. There is no other attempt: it would fail
        # in the same way.
        if not self._stopped:
            self._mesh.drop(self)

    async def _wait(self) -> bool:
        """Wait for something to do; returns whether an offer was not answered in time."""
        patience = None
        if self._awaits_answer:
            patience = min(_LONGEST_ANSWER_SECONDS, ANSWER_SECONDS * 2.0**self._unanswered)
        while not (self._offer_due or self._tracks_due or self._description or self._candidates):
            self._wake.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._wake.wait()
            except TimeoutError:
                self._unanswered = min(self._unanswered + 1, 10)
                return True
        return False

    async def _step(self, *, is_late: bool) -> None:
        match self._description:
            case Offer() as message:
                await self._answer(message)
            case Answer() as message:
                self._description = None
                answer = from_payload(message)
                # A second answer comes if the offer was made twice.
                if answer is not None and self.peer is not None and self._awaits_answer:
                    self._unanswered = 0
                    await self.peer.connection.setRemoteDescription(answer)
            case None if self._candidates:
                await self._add_candidate(self._candidates.popleft())
            case None if self._offer_due:
                await self._offer()
            case None if self._tracks_due is not None:
                await self._offer_tracks()
            case None if is_late and self.peer is not None and self._awaits_answer:
                await self._mesh.send(self, self.peer)

    async def _offer(self) -> None:
        await self._mesh.await_turn(self)
        if self._description is not None:
            return  # The other side offers meanwhile.
        self._offer_due = False
        peer = await self._mesh.begin(self, offers=True, channel=True)
        if peer is not None:
            await self._mesh.describe(self, peer, await peer.connection.createOffer())

    async def _answer(self, message: Offer) -> None:
        offer = from_payload(message)
        # Of two offers that meet, that of the peer with the smaller id counts, as in perfect negotiation.
        if offer is None or (self._is_answered_first(offer) and not self._mesh.offers_to(self.peer_id)):
            self._description = None
            if self.peer is None and not self._offer_due:
                self._give_up()
            return
        peer = self.peer
        if peer is not None and not _continues(peer.connection, offer):
            peer = None
        if peer is None:
            await self._mesh.await_turn(self)
            if self._description is not message:
                return  # A newer one counts.
        self._description = None
        self._offer_due = False
        self._cancel_repair()
        if peer is None:
            peer = await self._mesh.begin(self, offers=False, channel="\nm=application " in offer.sdp)
            if peer is None or isinstance(self._description, Offer):
                return
        await peer.connection.setRemoteDescription(offer)
        for transceiver in _left_out(peer.connection):
            leave_out(transceiver)
        await self._mesh.describe(self, peer, await peer.connection.createAnswer())
        if _left_out(peer.connection):
            self._await_transports(peer)

    def _await_transports(self, peer: MeshPeer) -> None:
        # aiortc on either side sends no media if it is negotiated again before the connection works.
        transports = _transports(peer.connection)

        def changed() -> None:
            if peer is self.peer and all(each.state == "connected" for each in transports):
                self._tracks_due = peer
                self._wake.set()

        for transport in transports:
            transport.on("statechange", changed)
        changed()

    async def _offer_tracks(self) -> None:
        peer, self._tracks_due = self._tracks_due, None
        if peer is None or peer is not self.peer or peer.connection.signalingState != "stable":
            return
        if _left_out(peer.connection):
            await self._mesh.describe(self, peer, await peer.connection.createOffer())

    async def _add_candidate(self, message: IceCandidate) -> None:
        candidate = from_payload(message)
        if candidate is None or self.peer is None or self.peer.connection.remoteDescription is None:
            return
        try:
            await self.peer.connection.addIceCandidate(candidate)
        except Exception as error:
            # One candidate less is no reason to give up the connection.
            _log.info("%s: %s", self.peer_id, type(error).__name__)


class _Topic:
    """The other peers in the topic and their metadata."""

    def __init__(self) -> None:
        self._metadata: dict[str, Metadata] = {}
        self._holders: dict[str, set[str]] = {}

    def __contains__(self, peer_id: str) -> bool:
        return peer_id in self._metadata

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._metadata))

    def add(self, peer_id: str, metadata: Metadata) -> None:
        self.remove(peer_id)
        self._metadata[peer_id] = metadata
        instance = _instance(metadata)
        if instance is not None:
            self._holders.setdefault(instance, set()).add(peer_id)

    def remove(self, peer_id: str) -> None:
        instance = _instance(self._metadata.pop(peer_id, {}))
        if instance is not None:
            self._holders[instance].discard(peer_id)
            if not self._holders[instance]:
                del self._holders[instance]

    def metadata(self, peer_id: str) -> Metadata:
        return self._metadata[peer_id]

    def instance(self, peer_id: str) -> str | None:
        return _instance(self._metadata[peer_id])

    def only_holder(self, instance: str | None) -> str | None:
        """Return the id of the one peer with an instance; None if there are none or several."""
        holders = self._holders.get(instance or "", set())
        return next(iter(holders)) if len(holders) == 1 else None


class _Allowance:
    """Allows ``most`` actions at once, and one more every ``seconds``."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._left = float(most)
        self._at = 0.0

    def seconds_to_wait(self) -> float:
        """Return the time to the next action; 0 if it is allowed now."""
        now = asyncio.get_running_loop().time()
        self._left = min(self._most, self._left + (now - self._at) / self._seconds)
        self._at = now
        return max(0.0, (1.0 - self._left) * self._seconds)

    def take(self) -> None:
        self._left -= 1.0


def _instance(metadata: Metadata) -> str | None:
    instance = metadata.get(INSTANCE)
    return instance if isinstance(instance, str) and instance else None


def _continues(current: Any, offer: Any) -> bool:
    """Return whether an offer is for this connection; otherwise it begins another one."""
    remote = current.remoteDescription
    if remote is None or current.signalingState != "stable" or current.connectionState in ("failed", "closed"):
        return False
    return _identity(remote) == _identity(offer)


def _identity(description: Any) -> set[str]:
    return set(_IDENTITY.findall(description.sdp))


def _left_out(connection: Any) -> list[Any]:
    """Return what is not negotiated yet."""
    return [each for each in connection.getTransceivers() if each.mid is None]


def _transports(connection: Any) -> set[Any]:
    """Return what carries that which is negotiated."""
    carried = [each.receiver for each in connection.getTransceivers() if each.mid is not None]
    if connection.sctp is not None and connection.sctp.mid is not None:
        carried.append(connection.sctp)
    return {each.transport for each in carried}


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
