"""Every limit of the server: its default, unit, option and documentation, each stated once, at its field.

``--help``, docs/options.md (by ``tools/options_page.py``) and the checks all follow from the fields of ``Limits``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

DAY_SECONDS = 86_400.0
MAX_PER_SECOND = 1_000_000.0
FRAMES_PER_TOKEN = 16
"""How many pings, unsolicited pongs or fragments count as one message against ``max_messages_per_second``."""


class Unit(Enum):
    """What the value of an option counts."""

    TEXT = "text"
    FILE = "file"
    ENDPOINT = "endpoint"
    FLAG = "flag"
    TABLES = "tables"
    COUNT = "count"
    BYTES = "bytes"
    SECONDS = "seconds"
    PER_SECOND = "per second"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What ``--help`` and docs/options.md say about one option. Texts are Markdown; ``--help`` drops the backticks.

    Args:
        name: on the command line, without dashes; None if only Python code can set it.
        unit: what its value counts.
        help: what it does, in one or two short sentences.
        default: the default, for a reader.
        zero: what 0 means; None if 0 is not allowed.
        exceeded: what happens beyond the limit.
        details: more, for docs/options.md only.
        variable: an environment variable besides that of every option, for platforms that set it.
        short: the one-letter form.
        repeats: whether it may be given several times.
        reloads: whether SIGHUP changes it in a running server.
    """

    name: str | None
    unit: Unit = Unit.TEXT
    help: str
    default: str = ""
    zero: str | None = None
    exceeded: str = ""
    details: str = ""
    variable: str | None = None
    short: str | None = None
    repeats: bool = False
    reloads: bool = False

    @property
    def default_text(self) -> str:
        """The default with its unit."""
        counted = self.unit in (Unit.BYTES, Unit.SECONDS, Unit.PER_SECOND) and self.default != "0"
        return f"{self.default} {self.unit.value}" if counted else self.default


def _limit(
    value: float | None, name: str | None, unit: Unit, text: str, /, *, reloads: bool = True, **more: Any
) -> Any:
    if value is not None:
        more["default"] = str(int(value) if value == int(value) else value)
    return field(default=value, metadata={"option": Option(name=name, unit=unit, help=text, reloads=reloads, **more)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one server. Bytes are counted as received, times are in seconds.

    The fields carry their documentation; docs/options.md lists it.

    Raises:
        ValueError: a limit is out of its range, or two limits contradict each other; the text says which.
    """

    max_connections: int | None = _limit(
        None,
        "max-connections",
        Unit.COUNT,
        "Connections of peers.",
        default="as many as the limit on open files allows",
        exceeded="503 with `Retry-After`",
        details="Never exceeds the limit on open files.",
    )
    spare_connections: int | None = _limit(
        None,
        None,
        Unit.COUNT,
        "Additional connections that have not joined.",
        default="an eighth of the limit on open files, at most 1024",
        exceeded="the oldest of them is closed",
    )
    max_connections_per_address: int = _limit(
        0,
        "max-connections-per-address",
        Unit.COUNT,
        "Connections of peers from one address or IPv6 /64, and as many unjoined ones.",
        zero="no limit",
        exceeded="429 with `Retry-After`",
        details="An unjoined connection beyond it closes the oldest unjoined one of the address.",
    )
    max_connections_per_address_per_second: float = _limit(
        0.0,
        "max-connection-rate",
        Unit.PER_SECOND,
        "New connections from one address or IPv6 /64 in a second.",
        zero="no limit",
        exceeded="429 with `Retry-After`",
    )
    connection_burst: int = _limit(
        20,
        "connection-burst",
        Unit.COUNT,
        "New connections from one address at once, before `--max-connection-rate` applies.",
    )
    max_peers_per_topic: int = _limit(
        5_000, "max-peers-per-topic", Unit.COUNT, "Peers in one topic.", exceeded="`topic_full`, close 1013"
    )
    max_peer_list_bytes: int = _limit(
        1_048_576,
        None,
        Unit.BYTES,
        "Size of a topic's `peer-list`: ids and metadata.",
        exceeded="`topic_full`, close 1013",
    )
    max_messages_per_second: float = _limit(
        0.0,
        "max-message-rate",
        Unit.PER_SECOND,
        "Messages from one connection in a second.",
        zero="no limit",
        exceeded="`rate_limited`",
        details=f"{FRAMES_PER_TOKEN} pings, unsolicited pongs or fragments (except a message's last) count as one.",
    )
    message_burst: int = _limit(
        200,
        "message-burst",
        Unit.COUNT,
        "Messages from one connection at once, before `--max-message-rate` applies.",
        exceeded="`rate_limited`; after as many in a row, close 1008",
        details="Rejected messages count as well.",
    )
    metadata_updates_per_second: float = _limit(
        1.0,
        "metadata-rate",
        Unit.PER_SECOND,
        "Metadata updates from one connection in a second, if they are on.",
        exceeded="`rate_limited`",
    )
    metadata_update_burst: int = _limit(
        5,
        "metadata-burst",
        Unit.COUNT,
        "Metadata updates from one connection at once, before `--metadata-rate` applies.",
        exceeded="`rate_limited`",
        details="Invalid metadata does not count.",
    )
    max_message_bytes: int = _limit(
        65_536,
        "max-message-bytes",
        Unit.BYTES,
        "Size of one message, all its fragments together.",
        exceeded="close 1009",
    )
    high_water_messages: int = _limit(
        16,
        "high-water-mark",
        Unit.COUNT,
        "Messages queued for a connection that is not writable.",
        exceeded="`dropped`",
    )
    high_water_bytes: int = _limit(
        131_072,
        None,
        Unit.BYTES,
        "The same in bytes of frames; at least `max_message_bytes`.",
        exceeded="`dropped`",
        details="`--max-message-bytes` raises it to two messages of that size.",
    )
    max_topic_bytes: int = _limit(
        256, "max-topic-bytes", Unit.BYTES, "Size of a topic's name, decoded.", exceeded="400"
    )
    max_metadata_bytes: int = _limit(
        4_096,
        "max-metadata-bytes",
        Unit.BYTES,
        "Size of a peer's metadata, decoded.",
        exceeded="400; `invalid_metadata`",
    )
    max_header_bytes: int = _limit(
        16_384, "max-header-bytes", Unit.BYTES, "Size of a request line and its headers.", exceeded="431"
    )
    max_body_bytes: int = _limit(
        16_384, "max-body-bytes", Unit.BYTES, "Size of the body of an HTTP request.", exceeded="413"
    )
    handshake_timeout_seconds: float = _limit(
        10.0,
        "handshake-timeout",
        Unit.SECONDS,
        "Time from a connection's first byte to its complete request.",
        exceeded="closed",
        details="Also the idle timeout of HTTP connections, and how long a token or password may take to be checked.",
    )
    ping_interval_seconds: float = _limit(
        20.0, "ping-interval", Unit.SECONDS, "Time between two pings of one connection.", zero="no pings"
    )
    ping_timeout_seconds: float = _limit(
        15.0, "ping-timeout", Unit.SECONDS, "Time from a ping to its pong.", exceeded="aborted, `peer-left`"
    )
    write_timeout_seconds: float = _limit(
        10.0,
        "write-timeout",
        Unit.SECONDS,
        "How long a connection may accept no data while frames are queued for it.",
        exceeded="aborted, `peer-left`",
    )
    close_timeout_seconds: float = _limit(
        5.0, None, Unit.SECONDS, "Time from the server's close frame to the end of the connection.", exceeded="aborted"
    )
    resume_window_seconds: float = _limit(
        0.0,
        "resume-window",
        Unit.SECONDS,
        "How long a peer may take to resume after it lost its connection, or its token expired.",
        zero="it leaves at once",
        exceeded="`peer-left`",
        reloads=False,
    )
    drain_delay_seconds: float = _limit(
        0.0,
        "drain-delay",
        Unit.SECONDS,
        "How long a stopping server still accepts connections, while `/readyz` answers 503.",
        zero="it stops listening at once",
    )
    drain_spread_seconds: float = _limit(
        0.0,
        "drain-spread",
        Unit.SECONDS,
        "How long a stopping server takes to close its peers at random moments with 1012, after `--drain-delay`.",
        zero="all at once with 1001",
    )
    shutdown_timeout_seconds: float = _limit(
        10.0,
        "shutdown-timeout",
        Unit.SECONDS,
        "How long a stopping server waits for its peers' connections to end, after the last close frame.",
        zero="no waiting",
        exceeded="aborted",
    )

    def __post_init__(self) -> None:
        for name in LIMIT_OPTIONS:
            value = getattr(self, name)
            if value is not None:
                check(name, value)
        if self.high_water_bytes < self.max_message_bytes:
            raise ValueError(
                f"high_water_bytes: {self.high_water_bytes} is less than one message of {self.max_message_bytes} bytes"
            )

    def update(self, other: Limits) -> None:
        """Take the values of ``other``, for everybody who has this object: only its owner, a factory, calls this."""
        for name in LIMIT_OPTIONS:
            object.__setattr__(self, name, getattr(other, name))


LIMIT_OPTIONS: dict[str, Option] = {limit.name: limit.metadata["option"] for limit in fields(Limits)}
"""The option of each field of ``Limits``."""


def check(name: str, value: float) -> None:
    """Check that a limit is in its range.

    Args:
        name: a field of ``Limits``.
        value: its value.

    Raises:
        ValueError: it is not; the text has the range.
    """
    option = LIMIT_OPTIONS[name]
    may_be_zero = option.zero is not None
    if option.unit is Unit.PER_SECOND:
        if not (0 <= value <= MAX_PER_SECOND and (may_be_zero or value)):
            within = "from 0 to" if may_be_zero else "more than 0 and at most"
            raise ValueError(f"{name}: {_written(value)} is not {within} {MAX_PER_SECOND:.0f} a second")
    elif option.unit is not Unit.SECONDS:
        least = 0 if may_be_zero else 1
        if value < least:
            raise ValueError(f"{name}: {value} is not a whole number from {least} up")
    elif may_be_zero:
        if not 0 <= value <= DAY_SECONDS:
            raise ValueError(f"{name}: {_written(value)} is not from 0 to {DAY_SECONDS:.0f} seconds")
    elif not 0 < value <= DAY_SECONDS:
        raise ValueError(f"{name}: {_written(value)} is not more than 0 and at most {DAY_SECONDS:.0f} seconds")


def _written(value: float) -> str:
    # As an operator writes it: -1 was read as -1.0.
    return str(value).removesuffix(".0")
