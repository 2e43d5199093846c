"""What nodes send each other about a session: the proof that it may be resumed, and the session itself.

Only the nodes' sessions read these texts; to the backplane they are bytes. A node of another version may write other
ones, so new fields come last, with a default.
"""

from __future__ import annotations

import msgspec

from signaling.core.interfaces import ResumeProof
from signaling.core.join_request import JoinRequest
from signaling.core.presence_reporter import Origin


class SessionText(msgspec.Struct, array_like=True):
    """A session, as the node that it moves to needs it.

    Args:
        metadata: of the peer.
        owner: as for ``PeerSession``.
        sent: how many messages it was sent.
        frames: the latest of them, as ``ReplayBuffer.frames``.
        waiting: the numbers of relays to it that are not written yet.
        pending: its own relays without an outcome: their numbers, and the ``msgId`` of each.
        origin: for observers; None from a node without one.
        seconds: since the peer joined.
    """

    metadata: bytes | None
    owner: bytes | None
    sent: int
    frames: list[bytes | None]
    waiting: list[int]
    pending: list[tuple[int, bytes | None]]
    origin: Origin | None = None
    seconds: float = 0.0


class ProofText(msgspec.Struct, array_like=True):
    """What a client says about the session that it wants to resume.

    Args:
        token: as in ``ResumeClaim``.
        seen: the same.
        owner: of the client's own token.
    """

    token: bytes
    seen: int
    owner: bytes | None


_encode = msgspec.msgpack.Encoder().encode
_decode_session = msgspec.msgpack.Decoder(SessionText).decode
_decode_proof = msgspec.msgpack.Decoder(ProofText).decode


def encode_session(session: SessionText) -> bytes:
    """Encode a session for another node."""
    return _encode(session)


def decode_session(text: bytes) -> SessionText | None:
    """Decode a session of another node; None if another version wrote it."""
    try:
        return _decode_session(text)
    except msgspec.MsgspecError:
        return None


def resume_proof(request: JoinRequest) -> ResumeProof | None:
    """Return the proof for the other nodes that a request may resume a session; None if it asks for none."""
    claim = request.claim
    if claim is None:
        return None
    return ResumeProof(claim.peer_id, _encode(ProofText(claim.token, claim.seen, request.owner)))


def decode_proof(text: bytes) -> ProofText | None:
    """Decode the ``text`` of a ``ResumeProof``; None if another version wrote it."""
    try:
        return _decode_proof(text)
    except msgspec.MsgspecError:
        return None


def session_origin(text: bytes) -> Origin | None:
    """Return what observers need to know of a session that another node handed off; None if it is unreadable."""
    session = decode_session(text)
    return session.origin if session is not None else None
