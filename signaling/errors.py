"""What can go wrong, in the words of the wire and of the operator."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """The ``code`` of an ``error`` message."""

    INVALID_MESSAGE = "invalid_message"
    INVALID_TYPE = "invalid_type"
    MISSING_TARGET = "missing_target"
    TARGET_NOT_FOUND = "target_not_found"
    DROPPED = "dropped"
    RATE_LIMITED = "rate_limited"
    TOPIC_FULL = "topic_full"
    FORBIDDEN = "forbidden"


class Ending(StrEnum):
    """Why a peer left."""

    CLOSED = "closed"
    """It sent a close frame."""
    LOST = "lost"
    """Its connection ended without one."""
    NO_PONG = "no_pong"
    STALLED = "stalled"
    """Its connection took nothing for the write timeout."""
    FAILED = "failed"
    """It was closed for what it sent, or may not do any longer."""
    NOT_BACK = "not_back"
    """Its connection was lost, and it did not come back in time."""
    STOPPING = "stopping"
    """The server stops."""


class Rejected(Exception):
    """A client's message that cannot be relayed.

    Args:
        code: the ``code`` that answers it.
        text: for a person: what was wrong and what would be right. Never quotes the message.
        msg_id: the JSON text of its ``msgId`` where that was a readable string, else None.
    """

    def __init__(self, code: ErrorCode, text: str, msg_id: bytes | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.msg_id = msg_id


class Refused(Exception):
    """An HTTP request that does not become a WebSocket connection.

    Args:
        status: the HTTP status that answers it.
        reason: for a person: what was wrong and what would be right. Never quotes the request.
        headers: what the answer carries besides, for example the version that would be accepted.
    """

    def __init__(self, status: int, reason: str, headers: dict[bytes, bytes] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}


class StartError(Exception):
    """The server cannot start; the text is one line that names the cause and the way out."""
