"""Reading a client's whole frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from signaling.websocket import frames
from signaling.websocket.frames import INCOMPLETE, masked_frame_at

LONGEST = 1000


def masked(opcode: Opcode, payload: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin=fin).serialize(mask=True)


@given(st.text(max_size=400), st.binary(max_size=20), st.binary(max_size=20))
def test_a_whole_text_is_found_between_other_bytes(text: str, before: bytes, behind: bytes) -> None:
    data = masked(Opcode.TEXT, text.encode())
    if len(text.encode()) <= LONGEST:
        found = masked_frame_at(before + data + behind, len(before), LONGEST)
        assert found == (frames.TEXT, text.encode(), len(before + data))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, LONGEST])
def test_every_cut_of_a_frame_is_incomplete(size: int) -> None:
    data = masked(Opcode.TEXT, b"x" * size)
    assert masked_frame_at(data, 0, LONGEST) == (frames.TEXT, b"x" * size, len(data))
    for end in range(len(data)):
        assert masked_frame_at(data[:end], 0, LONGEST) is INCOMPLETE


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.CLOSE])
def test_whole_control_frames_are_found(opcode: Opcode) -> None:
    data = masked(opcode, b"\x03\xe8bye")
    assert masked_frame_at(data, 0, LONGEST) == (opcode, b"\x03\xe8bye", len(data))


@pytest.mark.parametrize(
    "data",
    [
        masked(Opcode.BINARY, b"x"),
        masked(Opcode.TEXT, b"x", fin=False),
        masked(Opcode.CONT, b"x"),
        masked(Opcode.TEXT, b"\xff"),
        masked(Opcode.TEXT, b"x" * (LONGEST + 1)),
        masked(Opcode.CLOSE, b"\x03"),
        Frame(Opcode.TEXT, b"x").serialize(mask=False),
        bytes([0xC1, 0x80, 0, 0, 0, 0]),
        bytes([0x83, 0x80, 0, 0, 0, 0]),
        bytes([0x81, 0xFE, 0, 125, 0, 0, 0, 0]) + b"x" * 125,
        bytes([0x81, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + b"x" * 65_536,
        bytes([0x89, 0xFE, 0, 126, 0, 0, 0, 0]) + b"x" * 126,
    ],
    # Not from the data, whose masks are random: each run would have names of its own.
    ids=[
        "binary",
        "first fragment",
        "continuation",
        "not UTF-8",
        "too long",
        "close with half a code",
        "not masked",
        "reserved bit",
        "reserved opcode",
        "16-bit length below 126",
        "64-bit length of 65,536",
        "long ping",
    ],
)
def test_everything_else_is_left_alone(data: bytes) -> None:
    assert masked_frame_at(data, 0, LONGEST) is None


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmasking_without_the_extension_does_the_same(data: bytes, mask: bytes) -> None:
    assert frames.unmask(data, mask) == frames.unmask_slowly(data, mask)
