"""The errors that a client or an operator sees: codes, HTTP statuses, reasons to leave.

A message or a join is *rejected*, with an error code; an HTTP request is *refused*, with a status.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Self


class ErrorCode(StrEnum):
    """The ``code`` of an ``error`` message.

    Attributes:
        meaning: for authors of clients, in the schemas of the wire.
    """

    meaning: str

    def __new__(cls, code: str, meaning: str) -> Self:
        """Keep the meaning beside the value."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    INVALID_MESSAGE = (
        "invalid_message",
        "Not JSON, not an object, nested too deeply, a key of a wrong type, or a binary message.",
    )
    INVALID_TYPE = "invalid_type", "`type` is missing, null, unknown, or of a feature that is off."
    MISSING_TARGET = "missing_target", "`to` is absent, null or empty."
    TARGET_NOT_FOUND = "target_not_found", "No such peer in this topic."
    DROPPED = "dropped", "The target's queue is full, or it is closing: not delivered."
    RATE_LIMITED = "rate_limited", "Too many messages, or too many updates of metadata: nothing was done."
    TOPIC_FULL = "topic_full", "The topic has too many peers or too much metadata."
    FORBIDDEN = "forbidden", "The token permits to receive only, or decides the metadata."
    INVALID_TOKEN = "invalid_token", "The new token was not accepted; the old one stays in use."
    INVALID_METADATA = "invalid_metadata", "The metadata is too long, nested too deeply, or has too long a number."


class CloseCode(IntEnum):
    """The codes of the server's close frames; from 4000 on after HTTP's statuses.

    Attributes:
        meaning: for authors of clients, in the schemas of the wire.
    """

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        """Keep the meaning beside the value."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    GOING_AWAY = 1001, "The server is stopping."
    PROTOCOL_ERROR = 1002, "The client broke RFC 6455."
    INVALID_PAYLOAD = 1007, "A text message is not UTF-8."
    POLICY_VIOLATION = 1008, "Too many messages after `rate_limited`, or far too many pings, pongs and fragments."
    MESSAGE_TOO_BIG = 1009, "A message is longer than the server's limit, by default 65,536 bytes."
    SERVICE_RESTART = 1012, "The server is stopping, and spreads the end of its connections over some time."
    TRY_AGAIN_LATER = 1013, "The topic is full; the `error` `topic_full` came before."
    TOKEN_EXPIRED = 4401, "The token of the connection has expired. Connect with a new one."
    PEER_REMOVED = 4403, "An operator or the application removed this peer. The reason is for the user; stay away."
    TOPIC_CLOSED = 4404, "An operator or the application closed the topic. The reason is for the user; stay away."


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
