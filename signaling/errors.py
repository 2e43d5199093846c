"""The errors that a client or an operator sees: codes, HTTP statuses, reasons to leave.

A message or a join is *rejected*, with an error code; an HTTP request is *refused*, with a status.
"""

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
    INVALID_TOKEN = "invalid_token"
    INVALID_METADATA = "invalid_metadata"


PEER_REMOVED = 4403
"""The close code of a peer that was removed; of the range for applications, after HTTP's 403."""
TOPIC_CLOSED = 4404
"""The close code of the peers of a topic that was closed, after HTTP's 404."""


class LeaveReason(StrEnum):
    """Why a peer left its topic; a label of ``signaling_leaves_total``."""

    CLOSED = "closed"
    """The client sent a close frame."""
    CONNECTION_LOST = "connection_lost"
    """The connection ended without a close frame."""
    PING_TIMEOUT = "ping_timeout"
    WRITE_TIMEOUT = "write_timeout"
    CLOSED_BY_SERVER = "closed_by_server"
    """For what the client sent, or because its token expired."""
    RESUME_TIMEOUT = "resume_timeout"
    """The connection was lost, and the client did not resume in time."""
    REMOVED = "removed"
    """An operator or the application removed the peer."""
    TOPIC_CLOSED = "topic_closed"
    """An operator or the application closed the topic."""
    SHUTDOWN = "shutdown"
    """The server stopped."""
    NODE_LOST = "node_lost"
    """Its node was evicted from the cluster; only observers are told so."""


REMOVAL_TEXTS = {
    LeaveReason.REMOVED: "it was removed",
    LeaveReason.TOPIC_CLOSED: "its topic was closed",
}
"""What a log says of a removal, in place of the operator's words, which are for the client."""


class Rejected(Exception):
    """A client's message that is not relayed, or a join that is not possible.

    Args:
        code: the ``code`` of the ``error`` that the client gets.
        text: what was wrong and what would be right, for a person. Never quotes the message.
        msg_id: the ``msgId`` of the message as JSON, or None if it is not a readable string.
    """

    def __init__(self, code: ErrorCode, text: str, msg_id: bytes | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.msg_id = msg_id


class Refused(Exception):
    """An HTTP request that does not become a WebSocket connection.

    Args:
        status: the HTTP status of the answer.
        reason: what was wrong and what would be right, for a person. Never quotes the request.
        headers: additional headers of the answer, for example the supported version.
    """

    def __init__(self, status: int, reason: str, headers: dict[bytes, bytes] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}


class StartError(Exception):
    """The server cannot start; the text is one line that names the cause and what to do."""
