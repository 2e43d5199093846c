"""Replaces ``aiortc.contrib.signaling``: two aiortc programs find each other in a topic.

Session descriptions, candidates and ``BYE`` go to the one other peer of the topic and come from it. Descriptions and
candidates have the form that browsers use, so the other peer may be a page.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from typing import Any

from signaling.client.connection import MAX_UNREAD, Signaling, join, start
from signaling.client.errors import Lost, NotDelivered, SignalingError
from signaling.client.messages import Answer, Error, IceCandidate, Offer, PeerJoined, PeerLeft, PeerList, Tampered
from signaling.errors import ErrorCode

try:
    from aiortc import RTCIceCandidate, RTCSessionDescription
    from aiortc.contrib.signaling import BYE
    from aiortc.sdp import SessionDescription, candidate_from_sdp, candidate_to_sdp
except ImportError as missing:
    raise ImportError("this needs aiortc: pip install 'twisted-signaling[client]'") from missing

__all__ = ["BYE", "TopicSignaling", "add_signaling_arguments", "create_signaling"]

_log = logging.getLogger("signaling.client")

CLOSE_SECONDS = 0.5
"""How long ``close`` waits for the server's close frame: Ctrl-C has to end a program soon, also if the server hangs."""

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0

MAX_SDP_LINES = 2_000
MAX_SDP_SECTIONS = 32
MAX_SECTION_LINES = 500
"""Of one description. aiortc compares the lines of a section with each other, which takes quadratic time."""
# aiortc copies such a line to every codec of its section.
_LINES_OF_A_WILDCARD = 20
MAX_CANDIDATES = 100
"""In and after one description: each makes aiortc send packets to an address that the other peer chooses."""
_MAX_CANDIDATE_LENGTH = 1_024

# Marks the end of the queue for receive.
_END = object()


def add_signaling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--signaling URL`` (``-s``), the URL of a topic."""
    parser.add_argument(
        "--signaling", "-s", required=True, metavar="URL", help="a topic, for example ws://localhost:8081/ws/my-room"
    )


def create_signaling(args: argparse.Namespace) -> TopicSignaling:
    """Create the signaling that the command line names."""
    return TopicSignaling(args.signaling)


class TopicSignaling:
    """The four methods of aiortc's own signaling classes, over a topic.

    The other peer is the one that is in the topic, or else the first that joins or sends a message; all others are
    ignored. When it leaves, this is received as ``BYE``, and the next peer becomes the other one.

    aiortc cannot roll back an offer. If both peers offer at once, the offer of the peer that joined first counts: this
    class ignores the other offer, and an answer without an offer.

    Args:
        url: of the topic.
        options: as for ``signaling.client.join``; ``close_timeout`` is ``CLOSE_SECONDS`` unless it is given.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = {"close_timeout": CLOSE_SECONDS, **options}
        self._signaling: Signaling | None = None
        self._joining = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._closed = self._ended = self._said_bye = False
        self._other: str | None = None
        self._gone: set[str] = set()
        # The peer that has an unanswered offer; "" while an offer waits for a peer.
        self._offered_to: str | None = None
        self._candidates = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._received: asyncio.Queue[Any] = asyncio.Queue()
        self._tampering = TamperLog()

    async def connect(self) -> None:
        """Join the topic; no-op if that is done, or after ``close``.

        Raises:
            SignalingError: ``Refused``, or ``Lost`` if it is not to connect again.
            CancelledError: if ``close`` is called meanwhile, so that the caller does not go on without a topic.
        """
        if not self._closed:
            await self._join()
            if self._closed:
                raise asyncio.CancelledError

    async def _join(self) -> None:
        # One call joins. If it is cancelled or fails, the next one that waits tries itself.
        async with self._joining:
            if self._closed or self._signaling is not None:
                return
            self._signaling = signaling = join(self._url, **self._options)
            try:
                await signaling.__aenter__()
            except BaseException as error:
                self._signaling = None
                if not (self._closed and isinstance(error, Lost)):
                    raise
            else:
                self._reading = start(self._read(signaling))

    async def close(self) -> None:
        """Leave the topic, which both programs receive as ``BYE``.

        Calls that still wait in another task end: ``connect`` is cancelled, ``send`` returns, and ``receive`` returns
        ``BYE``.
        """
        if not self._closed:
            self._closed = True
            self._end()
        if self._signaling is not None:
            await self._signaling.leave()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def send(self, descr: Any) -> None:
        """Send to the other peer, and wait for one if there is none yet; no-op after ``close``.

        Args:
            descr: an ``RTCSessionDescription``, an ``RTCIceCandidate`` or ``BYE``.

        Raises:
            NotDelivered: if the server does not deliver it, though the other peer is there; ``too_large`` if it is
                longer than the server accepts, and shorter than ``max_message_bytes``.
            ValueError: if it is longer than ``max_message_bytes``.
        """
        await self._join()
        kind, payload = to_payload(descr)
        while (signaling := self._signaling) is not None and not self._closed:
            if kind == "offer":
                self._offered_to = ""
            other = await self._find_other(signaling)
            if other is None:
                break
            if kind == "offer":
                self._offered_to = other
            try:
                await deliver(signaling, kind, other, payload)
                break
            except NotDelivered as error:
                if error.code != ErrorCode.TARGET_NOT_FOUND and not self._closed:
                    raise
            self._forget_peer(other)

    async def receive(self) -> Any:
        """Return the next object from the other peer.

        After ``close`` it returns ``BYE`` once, so that loops end that wait for it, and then None, as aiortc's own
        classes do after the last object.

        Raises:
            SignalingError: the error that ended the signaling.
        """
        await self._join()
        while (waiting := await self._received.get()) is not _END:
            self._room.set()
            received, sender = waiting
            if self._is_usable(received, sender):
                return received
        self._received.put_nowait(_END)
        if self._failure is not None and not self._closed:
            raise self._failure
        if not self._said_bye:
            self._said_bye = True
            return BYE
        # A loop that does not end with None lets the other tasks run.
        await asyncio.sleep(0)
        return None

    async def _find_other(self, signaling: Signaling) -> str | None:
        """Return the other peer's id, once there is one; None after ``close``."""
        while not self._closed:
            if self._ended:
                raise self._failure or Lost("the signaling ended")
            if self._other is None:
                self._other = next((peer for peer in signaling.peers if peer not in self._gone), None)
            if self._other is not None:
                return self._other
            self._changed.clear()
            await self._changed.wait()
        return None

    def _forget_peer(self, peer_id: str) -> None:
        if self._signaling is not None:
            self._gone &= self._signaling.peers.keys()
        self._gone.add(peer_id)
        if self._other == peer_id:
            self._other = None
            self._room.set()

    async def _read(self, signaling: Signaling) -> None:
        try:
            async for message in signaling:
                match message:
                    case PeerList() | PeerJoined():
                        self._changed.set()
                    case PeerLeft(peer_id):
                        self._peer_left(peer_id)
                    case Offer() | Answer() | IceCandidate():
                        await self._receive_relayed(message)
                    case Error():
                        _log.warning("not delivered: %s", message.code)
                    case Tampered():
                        self._tampering.log(message)
        except SignalingError as failure:
            self._failure = failure
        finally:
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            while self._closed and not self._received.empty():
                self._received.get_nowait()
            self._received.put_nowait(_END)
        self._changed.set()
        self._room.set()

    async def _receive_relayed(self, message: Offer | Answer | IceCandidate) -> None:
        if self._other is None and message.sender not in self._gone:
            self._other = message.sender
        # While too much waits for the application, nothing is read, and the other peer gets ``dropped``.
        while self._received.qsize() >= MAX_UNREAD and message.sender == self._other and not self._ended:
            self._room.clear()
            await self._room.wait()
        if message.sender != self._other or self._ended:
            return
        received = from_payload(message)
        if received is not None:
            self._received.put_nowait((received, message.sender))
        if received is BYE:
            self._forget_peer(message.sender)

    def _is_usable(self, received: Any, sender: str) -> bool:
        """Return whether aiortc can use this now, and note it."""
        if isinstance(received, RTCIceCandidate):
            # Before the answer they belong to an offer that was ignored.
            self._candidates += 1
            return self._offered_to is None and self._candidates <= MAX_CANDIDATES
        match received:
            case RTCSessionDescription(type="answer"):
                in_turn = ends_offer = self._offered_to is not None
            case RTCSessionDescription():
                # If both offer, the offer of the peer that joined later is ignored.
                earlier = self._signaling is not None and sender < self._signaling.self_id
                in_turn = ends_offer = self._offered_to is None or earlier
            case _:
                in_turn, ends_offer = True, self._offered_to == sender
        if ends_offer:
            self._offered_to = None
        if in_turn:
            self._candidates = 0
        return in_turn

    def _peer_left(self, peer_id: str) -> None:
        if peer_id == self._other:
            self._received.put_nowait((BYE, peer_id))
        self._forget_peer(peer_id)


class TamperLog:
    """Logs messages that were tampered with: one warning, and the others at level INFO, however many a server sends."""

    def __init__(self) -> None:
        self._level = logging.WARNING

    def log(self, tampered: Tampered) -> None:
        """Log one message, without the id that the server chose."""
        level, self._level = self._level, logging.INFO
        _log.log(level, "a peer's %s was not passed on: %s", tampered.kind, tampered.reason)


async def deliver(signaling: Signaling, kind: str, to: str, payload: Any) -> None:
    """Deliver a message, again and again while it is ``dropped`` or ``rate_limited``.

    Raises:
        NotDelivered: for any other reason.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await signaling.deliver(kind, to, payload)
        except NotDelivered as error:
            if error.code not in (ErrorCode.DROPPED, ErrorCode.RATE_LIMITED) or to not in signaling.peers:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def to_payload(descr: Any) -> tuple[str, dict[str, Any]]:
    """Return the message type and the payload for an object of aiortc."""
    if isinstance(descr, RTCSessionDescription):
        return descr.type, {"type": descr.type, "sdp": descr.sdp}
    if isinstance(descr, RTCIceCandidate):
        text = "candidate:" + candidate_to_sdp(descr)
        return "ice-candidate", {
            "candidate": text,
            "sdpMid": descr.sdpMid,
            "sdpMLineIndex": descr.sdpMLineIndex,
        }
    if descr is BYE:
        return "ice-candidate", {"type": "bye"}
    raise TypeError(f"{type(descr).__name__} is neither a description nor a candidate nor BYE")


def from_payload(message: Offer | Answer | IceCandidate) -> Any:
    """Return the aiortc object in a message; None for the end of candidates, and if there is none."""
    payload = message.payload
    try:
        match message:
            case Offer():
                return _description("offer", payload)
            case Answer():
                return _description("answer", payload)
        if payload is None or payload.get("type") == "bye":
            return BYE if payload else None
        return _candidate(payload) if payload["candidate"] else None
    except Exception as error:
        # Another peer wrote it, and aiortc's parser raises any exception. Its text is not logged: it has addresses.
        _log.info("a peer sent a %s that aiortc cannot read: %s", type(message).__name__, type(error).__name__)
        return None


def _description(kind: str, payload: dict[str, Any]) -> Any:
    sdp = payload["sdp"]
    if payload.get("type", kind) != kind:
        raise ValueError("an offer is no answer")
    sections = [0]
    for line in sdp.splitlines():
        if line.startswith("m="):
            sections.append(0)
        sections[-1] += _LINES_OF_A_WILDCARD if line.startswith("a=rtcp-fb:*") else 1
    if len(sections) > MAX_SDP_SECTIONS or sum(sections) > MAX_SDP_LINES or max(sections) > MAX_SECTION_LINES:
        raise ValueError("too long")
    if sum(len(media.ice_candidates) for media in SessionDescription.parse(sdp).media) > MAX_CANDIDATES:
        raise ValueError("too many candidates")
    return RTCSessionDescription(sdp=sdp, type=kind)


def _candidate(payload: dict[str, Any]) -> Any:
    text, mid, index = payload["candidate"], payload.get("sdpMid"), payload.get("sdpMLineIndex")
    if len(text) > _MAX_CANDIDATE_LENGTH or not isinstance(mid or "", str) or not isinstance(index or 0, int):
        raise ValueError("no candidate")
    if mid is None and index is None:
        raise ValueError("of no section")
    candidate = candidate_from_sdp(text.split(":", 1)[1])
    if not 0 <= candidate.port <= 65_535:
        raise ValueError("no port")
    candidate.sdpMid = mid
    candidate.sdpMLineIndex = index
    return candidate
