"""Reading a client's whole frames, and writing the server's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from signaling.websocket import frames
from signaling.websocket.frames import INCOMPLETE, close_frame, frame, masked_frame_at, text_frame

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
)
def test_everything_else_is_left_alone(data: bytes) -> None:
    assert masked_frame_at(data, 0, LONGEST) is None


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmasking_without_the_extension_does_the_same(data: bytes, mask: bytes) -> None:
    assert frames.unmask(data, mask) == frames.unmask_slowly(data, mask)


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_text_frame_has_the_shortest_header(size: int, header: bytes) -> None:
    assert text_frame(b"x" * size) == header + b"x" * size


def test_a_control_frame_has_its_opcode() -> None:
    assert frame(0x9, b"hi") == b"\x89\x02hi"


def test_a_close_reason_is_cut_between_characters() -> None:
    data = close_frame(1001, "é" * 100)
    assert data[:4] == b"\x88\x7c\x03\xe9"
    assert data[4:].decode() == "é" * 61
