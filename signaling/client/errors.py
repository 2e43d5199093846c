"""What a client is told instead of an answer."""

from __future__ import annotations


class SignalingError(Exception):
    """The base of what the client raises."""


class Refused(SignalingError):
    """The server refused the request; the same one would be refused again.

    Args:
        status: the HTTP status.
        reason: the server's words for it.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status = status
        self.reason = reason


class Lost(SignalingError):
    """The connection is gone, and the client was told not to connect again."""


class NotDelivered(SignalingError):
    """A message did not reach its target.

    Args:
        code: the ``code`` of the ``error`` message.
        text: the server's words for it.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
