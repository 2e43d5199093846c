"""The errors that the clients raise."""

from __future__ import annotations

TOO_LARGE = "too_large"
"""The code of ``NotDelivered`` and ``NotUpdated``, and of an ``Error``, for a message that is longer than the server
accepts. It comes from the client: the server closes the connection with close code 1009."""


class SignalingError(Exception):
    """The base of all errors of the clients."""


class Refused(SignalingError):
    """The server refused this peer, and would refuse it again.

    Args:
        status: the HTTP status, or a close code: 4401 if the access token has expired, 4403 if an operator removed this
            peer, 4404 if an operator closed the topic.
        reason: what the server wrote for a person, as one line.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{'HTTP' if status < 1000 else 'close code'} {status}: {reason}")
        self.status = status
        self.reason = reason


class Lost(SignalingError):
    """The connection was lost, and the client is not to connect again."""


class NotUpdated(SignalingError):
    """The metadata of this peer was not updated, or nobody knows whether it was.

    Args:
        code: that of the server's ``error``, for example ``invalid_metadata``, ``forbidden`` or ``rate_limited``; or
            ``unsupported`` if the server takes no updates, ``replaced`` if a later update took the place of this one,
            ``too_large`` if the server closed the connection because the update is longer than it accepts,
            ``dropped`` after leaving, and ``unconfirmed`` without a connection or an answer: then the client asks for
            the metadata again when it next connects.
        text: for a person.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class NotDelivered(SignalingError):
    """A message did not reach its target.

    Args:
        code: the ``code`` of the ``error`` message, or ``too_large`` if the server closed the connection because the
            message is longer than it accepts.
        text: the ``message`` of the ``error`` message.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
