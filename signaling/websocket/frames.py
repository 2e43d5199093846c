"""WebSocket frames (RFC 6455, section 5.2): all that a server writes, and the most frequent ones of a client."""

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

Frame = tuple[int, bytes, int]
"""A frame's opcode, its payload, and where the next frame starts."""

INCOMPLETE: Frame = (-1, b"", -1)
"""``masked_frame_at`` returns it if more bytes are needed."""

MAX_REASON_BYTES = 123


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a final, unmasked frame."""
    size = len(payload)
    if size < 126:
        return _SHORT(_FINAL | opcode, size) + payload
    if size < 65_536:
        return _MEDIUM(_FINAL | opcode, 126, size) + payload
    return _LONG(_FINAL | opcode, 127, size) + payload


def text_frame(message: bytes) -> bytes:
    """Return the frame of a text message, which is UTF-8."""
    return frame(TEXT, message)


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame, with as much of ``reason`` as a control frame holds (section 5.5)."""
    kept = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
    return frame(CLOSE, _CODE(code) + kept)


_TEXT_HEAD = Struct("!HH").unpack_from
_EMPTY_TEXT = (_FINAL | TEXT) << 8 | _MASKED


def text_at(data: bytes, at: int, longest: int) -> tuple[bytes, int] | None:
    """Read a whole text message of a client, of up to 65,535 bytes, as nearly all that is read is.

    Args:
        at: where its frame starts.
        longest: how many bytes a message may have.

    Returns:
        The message, which is valid UTF-8, and where the next frame starts; None for anything else, which
        ``masked_frame_at`` or Autobahn has to judge.
    """
    if len(data) < at + 8:
        return None
    head, extended = _TEXT_HEAD(data, at)
    length, start = head - _EMPTY_TEXT, at + 6
    if length == 126:
        if extended < 126:
            return None
        length, start = extended, at + 8
    elif not 0 <= length < 126:
        return None
    end = start + length
    if end > len(data) or length > longest:
        return None
    message = unmask(data[start:end], data[start - 4 : start])
    return (message, end) if message.isascii() or _is_utf8(message) else None


# Normal closure, and a page that is left: the whole payload of nearly every close frame (RFC 6455, section 7.4.1).
_GOODBYES = {b"\x03\xe8": 1000, b"\x03\xe9": 1001}


def whole_goodbye(data: bytes) -> int | None:
    """Return the code, if ``data`` is exactly one close frame of a client as browsers send it; else None."""
    if len(data) != 8 or not data.startswith(b"\x88\x82"):
        return None
    return _GOODBYES.get(unmask(data[6:], data[2:6]))


# The first byte of each kind of frame that is read here, and how long its payload may be.
_MOST_BYTES = {_FINAL | TEXT: 65_535, _FINAL | CLOSE: 125, _FINAL | PING: 125, _FINAL | PONG: 125}


def masked_frame_at(data: bytes, at: int, longest: int) -> Frame | None:  # noqa: PLR0911
    """Read a frame of a client that is a whole text message of up to 65,535 bytes, or a control frame.

    Args:
        at: where the frame starts.
        longest: how many bytes a message may have.

    Returns:
        The frame; ``INCOMPLETE``; None for any other frame, valid or not.
    """
    size = len(data)
    if size - at < 2:
        return INCOMPLETE
    first, length, start = data[at], data[at + 1] - _MASKED, at + 6
    most = _MOST_BYTES.get(first, -1)
    if not 0 <= length <= most or length == 127 or (length == 1 and first == _FINAL | CLOSE):
        return None
    if length == 126:
        start = at + 8
        if size < start:
            return INCOMPLETE
        length = data[at + 2] << 8 | data[at + 3]
        # A length that fits into seven bits must use them.
        longest = longest if length > 125 else -1
    end = start + length
    if length > longest:
        return None
    if end > size:
        return INCOMPLETE
    payload = unmask(data[start:end], data[start - 4 : start])
    if first == _FINAL | TEXT and not payload.isascii() and not _is_utf8(payload):
        return None
    return first ^ _FINAL, payload, end


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def unmask_slowly(data: bytes, mask: bytes) -> bytes:
    """Mask or unmask a payload (RFC 6455, section 5.3) without an extension module."""
    whole = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(whole)).to_bytes(len(data))


unmask: Callable[[bytes, bytes], bytes] = unmask_slowly
# Wheels exist for every common platform; without it unmasking takes ten times as long.
with suppress(ImportError):
    from websockets.speedups import apply_mask

    unmask = apply_mask
