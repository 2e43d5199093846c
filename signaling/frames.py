"""The frames that a server writes: final and unmasked (RFC 6455, section 5.2)."""

from __future__ import annotations

from struct import Struct

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA

_FINAL = 0x80
_SHORT = Struct("!BB").pack
_MEDIUM = Struct("!BBH").pack
_LONG = Struct("!BBQ").pack
_CODE = Struct("!H").pack

MAX_REASON_BYTES = 123


def frame(opcode: int, payload: bytes) -> bytes:
    """Frame ``payload``, however long."""
    size = len(payload)
    if size < 126:
        return _SHORT(_FINAL | opcode, size) + payload
    if size < 65_536:
        return _MEDIUM(_FINAL | opcode, 126, size) + payload
    return _LONG(_FINAL | opcode, 127, size) + payload


def text_frame(message: bytes) -> bytes:
    """Frame one text message.

    Args:
        message: UTF-8.
    """
    return frame(TEXT, message)


def close_frame(code: int, reason: str) -> bytes:
    """Frame a close with its code and as much of ``reason`` as a control frame holds (section 5.5)."""
    kept = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
    return frame(CLOSE, _CODE(code) + kept)
