"""WebSocket frames (RFC 6455, section 5.2), written and read byte by byte and by none of the libraries under test."""

from __future__ import annotations

TEXT = 0x1


def masked(first: int, payload: bytes) -> bytes:
    """Frame what a client says, under a mask of zeros.

    Args:
        first: the frame's first byte.
    """
    size = len(payload)
    if size < 126:
        return bytes([first, 0x80 | size, 0, 0, 0, 0]) + payload
    if size < 65_536:
        return bytes([first, 0xFE]) + size.to_bytes(2, "big") + bytes(4) + payload
    return bytes([first, 0xFF]) + size.to_bytes(8, "big") + bytes(4) + payload


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Split what a server wrote into unmasked frames: the first byte and the payload of each.

    Raises:
        AssertionError: a length is not in its shortest form, or the last frame is incomplete.
    """
    frames = []
    at = 0
    while at < len(data):
        size, head = data[at + 1], 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
            assert size > 125, f"a length that is not in its shortest form: {size}"
        elif size == 127:
            size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
            assert size > 65_535, f"a length that is not in its shortest form: {size}"
        frames.append((data[at], data[at + head : at + head + size]))
        at += head + size
    assert at == len(data), f"half a frame at the end: {data!r}"
    return frames
