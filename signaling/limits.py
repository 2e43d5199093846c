"""Every bound of the server, with its unit in its name and its default in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields

DAY_SECONDS = 86_400.0
FRAMES_PER_TOKEN = 16
"""How many frames besides whole messages count as much as one message against ``max_messages_per_second``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one server. Bytes are counted as they come off the wire, times are seconds.

    Args:
        max_connections: peers' connections in all, beyond them 503; None means as many as the process's limit on open
            files leaves room for, which is never exceeded.
        spare_connections: connections beyond those, of clients that are no peers yet; where they do not suffice, the
            oldest is cut. None means an eighth of the limit on open files, at most 1,024.
        max_connections_per_address: beyond it 429; an IPv6 /64 counts as one address. 0 means no bound.
        max_connections_per_address_per_second: new ones, beyond it 429; 0 means no bound.
        connection_burst: how many new connections of one address may come at once before that rate counts.
        max_peers_per_topic: beyond it ``topic_full`` and close 1013.
        max_peer_list_bytes: of a topic's ``peer-list``, ids and metadata; beyond it ``topic_full`` and close 1013.
        max_messages_per_second: from one connection, beyond it ``rate_limited``; 0 means no bound. 16 pings, pongs that
            nobody asked for, or fragments besides the last of a message count as one message.
        message_burst: how many messages may come at once before that rate counts; a client that is refused as many in
            a row is closed with 1008.
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
        resume_window_seconds: how long a peer whose connection was lost may take to come back; 0 means that it is gone
            at once.
        drain_delay_seconds: how long a stopping server still lets newcomers in, so that balancers can look away.
        drain_spread_seconds: within what time it then closes its peers, one by one; 0 means all at once.
        shutdown_timeout_seconds: how long a stopping server waits for its peers; 0 does not wait.

    Raises:
        ValueError: where a bound is out of its range or two of them contradict each other; the text says which.
    """

    max_connections: int | None = None
    spare_connections: int | None = None
    max_connections_per_address: int = 0
    max_connections_per_address_per_second: float = 0.0
    connection_burst: int = 20
    max_peers_per_topic: int = 5_000
    max_peer_list_bytes: int = 1_048_576
    max_messages_per_second: float = 0.0
    message_burst: int = 200
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
    resume_window_seconds: float = 0.0
    drain_delay_seconds: float = 0.0
    drain_spread_seconds: float = 0.0
    shutdown_timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check(field.name, value)
        if self.high_water_bytes < self.max_message_bytes:
            raise ValueError(
                f"high_water_bytes: {self.high_water_bytes} is less than one message of {self.max_message_bytes} bytes"
            )


MAY_BE_ZERO = frozenset(
    {
        "drain_delay_seconds",
        "drain_spread_seconds",
        "max_connections_per_address",
        "max_connections_per_address_per_second",
        "max_messages_per_second",
        "ping_interval_seconds",
        "resume_window_seconds",
        "shutdown_timeout_seconds",
    }
)
RATES = frozenset({"max_connections_per_address_per_second", "max_messages_per_second"})
MOST_PER_SECOND = 1_000_000.0


def check(name: str, value: float) -> None:
    """Refuse a value that no server could work with.

    Args:
        name: a field of ``Limits``.

    Raises:
        ValueError: with the range that would be right.
    """
    least = 0 if name in MAY_BE_ZERO else 1
    if name in RATES:
        if not 0 <= value <= MOST_PER_SECOND:
            raise ValueError(f"{name}: {value} is not from 0 to {MOST_PER_SECOND:.0f} a second")
    elif not name.endswith("_seconds"):
        if value < least:
            raise ValueError(f"{name}: {value} is not a whole number from {least} up")
    elif name in MAY_BE_ZERO:
        if not 0 <= value <= DAY_SECONDS:
            raise ValueError(f"{name}: {value} is not from 0 to {DAY_SECONDS:.0f} seconds")
    elif not 0 < value <= DAY_SECONDS:
        raise ValueError(f"{name}: {value} is not more than 0 and at most {DAY_SECONDS:.0f} seconds")
