"""Who may open a WebSocket connection: the checks of RFC 6455, section 4.2.1, and the parts of a join request.

The port's own reader and the twisted.web resource ask here, so both refuse the same requests for the same reasons.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from signaling.access import Credential, Grant
from signaling.errors import Refused
from signaling.heads import HeaderValues, listing
from signaling.limits import Limits
from signaling.wire import check_metadata

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
MAX_PARAMETERS = 100
ENCODED = 3
"""How many bytes one takes that is percent-encoded."""
_MOST_DIGITS = 15
_WEBSOCKET = listing(b"websocket", re.IGNORECASE)
_CONNECTION_UPGRADE = listing(b"upgrade", re.IGNORECASE)
# Upgrade has to be named in Connection (RFC 9110, section 7.8), and a refused upgrade ends its connection.
_UPGRADE = {b"Upgrade": b"websocket", b"Connection": b"upgrade, close"}


@dataclass(frozen=True, slots=True)
class Claim:
    """A request to be the peer again that one was.

    Args:
        token: from that peer's latest ``welcome``, as far as the client says.
        seen: how many messages it has received.
    """

    token: bytes
    seen: int


@dataclass(frozen=True, slots=True)
class Join:
    """A request to join a topic.

    Args:
        metadata: the JSON text of an object, or None.
        claim: None where the client is a new peer.
        credential: what was presented, until it is checked.
        grant: what the client may do; None where everybody may do everything.
        owner: whose session it is, or would be; None where everybody may do everything.
        subprotocol: that is answered; empty for none.
    """

    topic: str
    metadata: bytes | None
    claim: Claim | None = None
    credential: Credential | None = None
    grant: Grant | None = None
    owner: bytes | None = None
    subprotocol: bytes = b""

    @property
    def expires(self) -> float | None:
        """When the token ends, in seconds since 1970; None means never."""
        return self.grant.expires if self.grant is not None else None


def asks_for_websocket(values: HeaderValues) -> bool:
    """Tell whether the request wants to become a WebSocket connection."""
    return any(map(_WEBSOCKET.search, values(b"upgrade")))


def check_upgrade(values: HeaderValues) -> bytes:
    """Check what a WebSocket client has to send.

    Returns:
        Its ``Sec-WebSocket-Key``.

    Raises:
        Refused: naming the header that is missing or wrong.
    """
    if not asks_for_websocket(values):
        raise Refused(426, "this is a WebSocket endpoint: connect with a WebSocket client", {**_UPGRADE})
    if not any(map(_CONNECTION_UPGRADE.search, values(b"connection"))):
        raise Refused(400, "the Connection header must contain Upgrade")
    if len(values(b"host")) != 1:
        raise Refused(400, "exactly one Host header is needed")
    if list(values(b"sec-websocket-version")) != [b"13"]:
        supported = {**_UPGRADE, b"Sec-WebSocket-Version": b"13"}
        raise Refused(426, "exactly one Sec-WebSocket-Version header with the value 13 is needed", supported)
    keys = values(b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise Refused(400, "exactly one Sec-WebSocket-Key header with 16 bytes in base64 is needed")
    if values(b"transfer-encoding") or list(values(b"content-length")) not in ([], [b"0"]):
        # twisted.web keeps what it read together with the end of a body, and the first frames would be lost.
        raise Refused(400, "a request that opens a WebSocket connection has no body")
    return keys[0]


def check_join(segment: bytes, query: bytes, limits: Limits) -> Join:
    """Read a topic and its metadata.

    Args:
        segment: the path's last segment, still percent-encoded.
        query: what follows the question mark, still encoded; empty where there is none.

    Raises:
        Refused: 400, naming what is wrong with which of them.
    """
    claim = _claim(query) if limits.resume_window_seconds else None
    return Join(read_topic(segment, limits.max_topic_bytes), _metadata(query, limits.max_metadata_bytes), claim)


def read_topic(segment: bytes, max_bytes: int) -> str:
    """Read a topic.

    Args:
        segment: the path's last segment, still percent-encoded.
        max_bytes: of the topic, decoded.

    Raises:
        Refused: 400.
    """
    # Counted before it is decoded, which takes longer.
    size = len(segment) - (ENCODED - 1) * segment.count(b"%")
    if size > max_bytes:
        raise Refused(400, f"topic: at most {max_bytes} bytes, not {size}")
    try:
        return unquote(segment, "topic").decode()
    except UnicodeDecodeError:
        raise Refused(400, "topic: not UTF-8 after percent-decoding") from None


def query_values(query: bytes, key: str) -> list[bytes]:
    """Return the values of a key, percent-decoded, in the order received.

    Args:
        query: what follows the question mark, still encoded.

    Raises:
        Refused: 400.
    """
    if query.count(b"&") >= MAX_PARAMETERS:
        raise Refused(400, f"the query: at most {MAX_PARAMETERS} parameters")
    pairs = [pair.partition(b"=") for pair in query.split(b"&")]
    longest = ENCODED * len(key)
    values = [value for name, _, value in pairs if len(name) <= longest and unquote_to_bytes(name) == key.encode()]
    return [unquote(value.replace(b"+", b" "), key) for value in values]


def _query_value(query: bytes, key: str) -> bytes | None:
    values = query_values(query, key)
    if len(values) > 1:
        raise Refused(400, f"{key}: given more than once")
    return values[0] if values else None


def _claim(query: bytes) -> Claim | None:
    token = _query_value(query, "resume")
    if token is None:
        return None
    seen = _query_value(query, "seen") or b""
    if not (seen.isdigit() and len(seen) <= _MOST_DIGITS):
        raise Refused(400, "seen: has to be the number of messages received so far, beside resume")
    return Claim(token, int(seen))


def _metadata(query: bytes, max_bytes: int) -> bytes | None:
    text = _query_value(query, "metadata")
    if text is None:
        return None
    if len(text) > max_bytes:
        raise Refused(400, f"metadata: at most {max_bytes} bytes, not {len(text)}")
    try:
        check_metadata(text)
    except ValueError as error:
        raise Refused(400, f"metadata: {error}") from None
    return text.strip(b" \t\r\n")


def unquote(text: bytes, what: str) -> bytes:
    """Decode what is percent-encoded.

    Args:
        what: it is, for the reason.

    Raises:
        Refused: 400; to pass over what is no escape would take Python twenty times as long.
    """
    if _BAD_ESCAPE.search(text):
        raise Refused(400, f"{what}: a % that is not followed by two hexadecimal digits")
    return unquote_to_bytes(text)


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == 24 and len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False
