"""Every bound of the server, with its unit in its name and its default in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields

DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one server. Bytes are counted as they come off the wire, times are seconds.

    Args:
        max_message_bytes: a client's message, all its fragments together; beyond it, close 1009.
        high_water_messages: messages that wait for a connection which takes nothing; the next relay is ``dropped``.
        high_water_bytes: the same in bytes of frames; at least one message of ``max_message_bytes`` has to fit.
        max_topic_bytes: a topic's name, decoded.
        max_metadata_bytes: a peer's metadata, decoded.
        max_header_bytes: a request line and its headers.
        max_body_bytes: the body of an HTTP request.
        handshake_timeout_seconds: from a connection's first byte to its complete request; also how long an HTTP
            connection may stay idle.
        ping_interval_seconds: between two pings of one connection; 0 sends none.
        ping_timeout_seconds: from a ping to its pong; then the peer is cut off.
        write_timeout_seconds: how long a connection may take nothing of what waits for it; then the peer is cut off.
        close_timeout_seconds: from our close frame to the end of the connection; then it is aborted.
        shutdown_timeout_seconds: how long a stopping server waits for its peers; 0 does not wait.

    Raises:
        ValueError: where a bound is out of its range or two of them contradict each other; the text says which.
    """

    max_message_bytes: int = 65_536
    high_water_messages: int = 16
    high_water_bytes: int = 131_072
    max_topic_bytes: int = 256
    max_metadata_bytes: int = 4_096
    max_header_bytes: int = 16_384
    max_body_bytes: int = 16_384
    handshake_timeout_seconds: float = 10.0
    ping_interval_seconds: float = 20.0
    ping_timeout_seconds: float = 15.0
    write_timeout_seconds: float = 10.0
    close_timeout_seconds: float = 5.0
    shutdown_timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            check(field.name, getattr(self, field.name))
        if self.high_water_bytes < self.max_message_bytes:
            raise ValueError(
                f"high_water_bytes: {self.high_water_bytes} is less than one message of {self.max_message_bytes} bytes"
            )


MAY_BE_ZERO = frozenset({"ping_interval_seconds", "shutdown_timeout_seconds"})


def check(name: str, value: float) -> None:
    """Refuse a value that no server could work with.

    Args:
        name: a field of ``Limits``.

    Raises:
        ValueError: with the range that would be right.
    """
    if not name.endswith("_seconds"):
        if value < 1:
            raise ValueError(f"{name}: {value} is not a whole number from 1 up")
    elif name in MAY_BE_ZERO:
        if not 0 <= value <= DAY_SECONDS:
            raise ValueError(f"{name}: {value} is not from 0 to {DAY_SECONDS:.0f} seconds")
    elif not 0 < value <= DAY_SECONDS:
        raise ValueError(f"{name}: {value} is not more than 0 and at most {DAY_SECONDS:.0f} seconds")
