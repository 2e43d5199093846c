"""The frames that a server writes: final and unmasked (RFC 6455, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from struct import Struct

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA

_FINAL = 0x80
_MASKED = 0x80
_SHORT = Struct("!BB").pack
_MEDIUM = Struct("!BBH").pack
_LONG = Struct("!BBQ").pack
_CODE = Struct("!H").pack

INCOMPLETE = (b"", -1)
"""What ``masked_text_at`` returns where more bytes are needed."""

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


def masked_text_at(data: bytes, at: int, longest: int) -> tuple[bytes, int] | None:  # noqa: PLR0911
    """Read a client's text message that is whole in one frame.

    Args:
        at: where the frame starts.
        longest: bytes that a message may have.

    Returns:
        The message and where the next frame starts; ``INCOMPLETE``; None where it is anything else, right or wrong.
    """
    size = len(data)
    if size - at < 2:
        return INCOMPLETE
    if data[at] != _FINAL | TEXT:
        return None
    length = data[at + 1] - _MASKED
    if length < 0 or length == 127:
        return None
    start = at + 6
    if length == 126:
        if size - at < 4:
            return INCOMPLETE
        length = data[at + 2] << 8 | data[at + 3]
        start = at + 8
        if length < 126:
            return None
    if length > longest:
        return None
    end = start + length
    if end > size:
        return INCOMPLETE
    message = unmask(data[start:end], data[start - 4 : start])
    return (message, end) if message.isascii() or _is_utf8(message) else None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unmask_slowly(data: bytes, mask: bytes) -> bytes:
    whole = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(whole)).to_bytes(len(data))


unmask: Callable[[bytes, bytes], bytes] = _unmask_slowly
# It is built for every common platform; elsewhere unmasking takes ten times as long.
with suppress(ImportError):
    from websockets.speedups import apply_mask

    unmask = apply_mask
