"""The errors that a client or an operator sees: codes, HTTP statuses, reasons to leave.

A message or a join is *rejected*, with an error code; an HTTP request is *refused*, with a status.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


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


ERROR_MEANINGS: dict[ErrorCode, str] = {
    ErrorCode.INVALID_MESSAGE: "Not JSON, not an object, nested too deeply, a key of a wrong type, or binary.",
    ErrorCode.INVALID_TYPE: "`type` is missing, null, unknown, or of a feature that is off.",
    ErrorCode.MISSING_TARGET: "`to` is absent, null or empty.",
    ErrorCode.TARGET_NOT_FOUND: "No such peer in this topic.",
    ErrorCode.DROPPED: "The target's queue is full, or it is closing: not delivered.",
    ErrorCode.RATE_LIMITED: "Too many messages, or too many updates of metadata: nothing was done.",
    ErrorCode.TOPIC_FULL: "The topic has too many peers or too much metadata.",
    ErrorCode.FORBIDDEN: "The token permits to receive only, or decides the metadata.",
    ErrorCode.INVALID_TOKEN: "The new token was not accepted; the old one stays in use.",
    ErrorCode.INVALID_METADATA: "The metadata is too long, nested too deeply, or has too long a number.",
}
"""For authors of clients."""


class CloseCode(IntEnum):
    """The codes of the server's close frames; from 4000 on after HTTP's statuses."""

    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    TOKEN_EXPIRED = 4401
    PEER_REMOVED = 4403
    TOPIC_CLOSED = 4404


CLOSE_MEANINGS: dict[CloseCode, str] = {
    CloseCode.GOING_AWAY: "The server is stopping.",
    CloseCode.PROTOCOL_ERROR: "The client broke RFC 6455.",
    CloseCode.INVALID_PAYLOAD: "A text message is not UTF-8.",
    CloseCode.POLICY_VIOLATION: "Too many messages after `rate_limited`, or far too many pings, pongs and fragments.",
    CloseCode.MESSAGE_TOO_BIG: "A message is longer than the server's limit, by default 65,536 bytes.",
    CloseCode.SERVICE_RESTART: "The server is stopping, and spreads the end of its connections over some time.",
    CloseCode.TRY_AGAIN_LATER: "The topic is full; the `error` `topic_full` came before.",
    CloseCode.TOKEN_EXPIRED: "The token of the connection has expired. Connect with a new one.",
    CloseCode.PEER_REMOVED: "An operator or the application removed this peer. The reason is for the user; stay away.",
    CloseCode.TOPIC_CLOSED: "An operator or the application closed the topic. The reason is for the user; stay away.",
}
"""For authors of clients."""


class LeaveReason(StrEnum):
    """Why a peer left its topic; a label of ``signaling_leaves_total``."""

    CLOSED = "closed"
    """The client sent a close frame."""
    CONNECTION_LOST = "connection_lost"
    """The connection ended without a close frame."""
    PING_TIMEOUT = "ping_timeout"
    """The client did not answer a ping in time."""
    WRITE_TIMEOUT = "write_timeout"
    """The connection accepted no data for too long."""
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
    """Its node was evicted from the cluster; only observers learn so."""


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
