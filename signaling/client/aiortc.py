"""Takes the place of ``aiortc.contrib.signaling``: two aiortc programs find each other in a topic.

A session description, a candidate and ``BYE`` go to the one other peer of the topic and come from it. Descriptions and
candidates have the form that browsers give them, so the other one may be a page.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from typing import Any

from signaling.client.errors import Lost, NotDelivered
from signaling.client.messages import Answer, Error, IceCandidate, Offer, PeerJoined, PeerLeft, PeerList
from signaling.client.topic import Signaling, join
from signaling.errors import ErrorCode

try:
    from aiortc import RTCIceCandidate, RTCSessionDescription
    from aiortc.contrib.signaling import BYE
    from aiortc.sdp import candidate_from_sdp, candidate_to_sdp
except ImportError as missing:
    raise ImportError("this needs aiortc: pip install 'twisted-signaling[client]'") from missing

__all__ = ["BYE", "TopicSignaling", "add_signaling_arguments", "create_signaling"]

_log = logging.getLogger("signaling.client")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


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

    The other peer is the one that is there, or else the first that joins, or speaks; anybody else is not heard. When it
    leaves, that is its ``BYE``, and the next one takes its place.

    Args:
        url: of the topic.
        options: as for ``signaling.client.join``.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = options
        self._signaling: Signaling | None = None
        self._reading: asyncio.Task[None] | None = None
        self._closed = self._ended = False
        self._other: str | None = None
        self._gone: set[str] = set()
        self._changed = asyncio.Event()
        self._received: asyncio.Queue[Any] = asyncio.Queue()

    async def connect(self) -> None:
        """Join the topic; does nothing where that is done.

        Raises:
            SignalingError: ``Refused``, or ``Lost`` after ``close``.
        """
        if self._closed:
            raise Lost("closed")
        if self._signaling is None:
            self._signaling = join(self._url, **self._options)
            await self._signaling.__aenter__()
            self._reading = asyncio.create_task(self._read(self._signaling))

    async def close(self) -> None:
        """Leave the topic, which the other one receives as ``BYE``."""
        self._closed = True
        if self._signaling is not None and self._reading is not None:
            await self._signaling.leave()
            await asyncio.wait([self._reading])

    async def send(self, descr: Any) -> None:
        """Send to the other peer, and wait for it where nobody is there yet.

        Args:
            descr: an ``RTCSessionDescription``, an ``RTCIceCandidate`` or ``BYE``.
        """
        await self.connect()
        kind, payload = to_payload(descr)
        while True:
            signaling, other = await self._find_other()
            try:
                await deliver(signaling, kind, other, payload)
            except NotDelivered as error:
                if error.code != ErrorCode.TARGET_NOT_FOUND:
                    raise
                self._part_from(other)
            else:
                return

    async def receive(self) -> Any:
        """Return what the other peer sent next; None once this peer left."""
        if not self._closed:
            await self.connect()
        received = await self._received.get()
        if received is None:
            self._received.put_nowait(None)
            if self._reading is not None:
                await self._reading
        return received

    async def _find_other(self) -> tuple[Signaling, str]:
        while True:
            if self._signaling is None or self._ended:
                raise Lost("the signaling ended")
            if self._other is None:
                self._other = next((peer for peer in self._signaling.peers if peer not in self._gone), None)
            if self._other is not None:
                return self._signaling, self._other
            self._changed.clear()
            await self._changed.wait()

    def _part_from(self, peer_id: str) -> None:
        self._gone.add(peer_id)
        if self._other == peer_id:
            self._other = None

    async def _read(self, signaling: Signaling) -> None:
        try:
            async for message in signaling:
                match message:
                    case PeerList() | PeerJoined():
                        self._changed.set()
                    case PeerLeft(peer_id):
                        self._hear_leave(peer_id)
                    case Offer() | Answer() | IceCandidate():
                        self._hear(message)
                    case Error():
                        _log.warning("not delivered: %s", message.code)
        finally:
            self._ended = True
            self._received.put_nowait(None)
            self._changed.set()

    def _hear(self, message: Offer | Answer | IceCandidate) -> None:
        if self._other is None and message.sender not in self._gone:
            self._other = message.sender
        if message.sender == self._other:
            received = from_payload(message)
            if received is BYE:
                self._part_from(message.sender)
            if received is not None:
                self._received.put_nowait(received)

    def _hear_leave(self, peer_id: str) -> None:
        if peer_id == self._other:
            self._received.put_nowait(BYE)
        self._part_from(peer_id)


async def deliver(signaling: Signaling, kind: str, to: str, payload: Any) -> None:
    """Deliver a message, again and again while it is ``dropped``.

    Raises:
        NotDelivered: for any other reason.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await signaling.deliver(kind, to, payload)
        except NotDelivered as error:
            if error.code != ErrorCode.DROPPED or to not in signaling.peers:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def to_payload(descr: Any) -> tuple[str, dict[str, Any]]:
    """Return the type of message and the payload that carry an object of aiortc's."""
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
    """Return the object of aiortc's that a message carries; None for the end of candidates, and for what is none."""
    payload = message.payload
    try:
        if not isinstance(message, IceCandidate):
            return RTCSessionDescription(sdp=payload["sdp"], type=payload["type"])
        if payload is None or payload.get("type") == "bye":
            return BYE if payload else None
        return _candidate(payload) if payload["candidate"] else None
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        _log.warning("a peer sent a %s that aiortc cannot read", type(message).__name__)
        return None


def _candidate(payload: dict[str, Any]) -> Any:
    candidate = candidate_from_sdp(payload["candidate"].split(":", 1)[1])
    candidate.sdpMid = payload["sdpMid"]
    candidate.sdpMLineIndex = payload["sdpMLineIndex"]
    return candidate
