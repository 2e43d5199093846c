"""Signatures after Standard Webhooks, version 1: HMAC with SHA-256."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64


def parse_secrets(text: str) -> list[bytes]:
    """Return the keys of the secrets in a text, one a line; empty lines do not count.

    Raises:
        ValueError: a line is not a secret, or there is none; the text says what would be right, and quotes nothing.
    """
    keys = [_key(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not keys:
        raise ValueError(f"there is no secret ({_PREFIX} and the base64 of {_LEAST_BYTES} to {_MOST_BYTES} bytes)")
    return keys


def _key(number: int, line: str) -> bytes:
    encoded = line.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if encoded == line or not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise ValueError(
            f"line {number} is not {_PREFIX} and the base64 of {_LEAST_BYTES} to {_MOST_BYTES} bytes"
            f" (for example: echo {_PREFIX}$(openssl rand -base64 32))"
        )
    return key


def signed_headers(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> dict[bytes, bytes]:
    """Return the headers of a delivery.

    Args:
        keys: of the secrets: there is a signature by each, so that secrets can be changed while deliveries go on.
        message_id: the same for each attempt to deliver the same body.
        timestamp: of the attempt, in seconds since 1970.
    """
    head = f"{message_id}.{timestamp}.".encode()
    signatures = [b"v1," + base64.b64encode(hmac.digest(key, head + body, hashlib.sha256)) for key in keys]
    return {
        b"webhook-id": message_id.encode(),
        b"webhook-timestamp": b"%d" % timestamp,
        b"webhook-signature": b" ".join(signatures),
    }
