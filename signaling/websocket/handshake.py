"""The server's side of a WebSocket opening handshake (RFC 6455, section 4.2.1).

Our own ports and the twisted.web resource both use it, so they refuse the same requests for the same reasons.
"""

from __future__ import annotations

import base64
import binascii
import re

from signaling.errors import Refused
from signaling.websocket.request_head import HeaderValues, listing

_WEBSOCKET = listing(b"websocket", re.IGNORECASE)
_CONNECTION_UPGRADE = listing(b"upgrade", re.IGNORECASE)
# Connection must name Upgrade (RFC 9110, section 7.8), and a refused upgrade ends its connection.
_UPGRADE = {b"Upgrade": b"websocket", b"Connection": b"upgrade, close"}


def asks_for_websocket(values: HeaderValues) -> bool:
    """Return whether the request asks for a WebSocket connection."""
    return any(map(_WEBSOCKET.search, values(b"upgrade")))


def check_upgrade(values: HeaderValues) -> bytes:
    """Check the headers that a WebSocket client must send.

    Returns:
        The ``Sec-WebSocket-Key``.

    Raises:
        Refused: with the header that is missing or wrong.
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
        # twisted.web keeps bytes that it read together with the end of a body, and the first frames would be lost.
        raise Refused(400, "a request that opens a WebSocket connection has no body")
    return keys[0]


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == 24 and len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False
