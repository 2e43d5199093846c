"""What is fuzzed, and which properties hold for any bytes: a target raises, or returns (docs/fuzzing.md).

A target that is not ``careful`` looks only at what is quick to see, and takes a tenth of the time.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from signaling.core import messages
from signaling.errors import ErrorCode, Rejected
from signaling.websocket.frames import INCOMPLETE, masked_frame_at, text_at, whole_goodbye
from tests.fuzz import model
from tests.fuzz.harness import UPGRADE, FuzzHarness, Seen, expect
from tests.harness.frames import server_frames

CORPUS = Path(__file__).parent / "corpus"

_DIGITS = re.compile(f"[0-9]{{{messages.MAX_DIGITS + 1}}}")
_SENDER = "01SENDER"


def decoder(data: bytes, careful: bool = True) -> None:
    """Decode ``data`` as a client's message: the model's verdict and token, and the value's own text as payload."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        expect(not _is_metadata(data), "no UTF-8, but metadata")
        return
    members, depth = model.read_object(text)
    verdict, right = _decoded(data), model.judge(members)
    if members is not None and depth > messages.MAX_DEPTH:
        # Whether the text was read at all, and so its msgId, depends on how deep Python's own stack is.
        expect(isinstance(verdict, model.Rejection) and verdict.code == ErrorCode.INVALID_MESSAGE, "too deep", verdict)
        expect(messages.presented_token(data) is None, "a token, too deep")
        return
    expect(verdict == right, "another verdict", (verdict, right))
    presented = messages.presented_token(data)
    token = None if presented is None else (presented.token, presented.msg_id)
    expect(token == model.presented(members), "another token", token)
    expect(_update(data) == _expected_update(members), "another update", _update(data))
    expect(bool(_DIGITS.search(text)) or _is_metadata(data) == (members is not None), "metadata", members)


def _update(data: bytes) -> tuple[str, bytes | None] | ErrorCode | None:
    try:
        messages.decode(data)
    except messages.NotRelayed as other:
        try:
            found = other.message.metadata_update(len(data))
        except Rejected as rejected:
            return rejected.code
    except Rejected:
        return None
    else:
        return None
    return None if found is None else (found.metadata.decode(), found.msg_id)


def _expected_update(members: dict[str, str] | None) -> tuple[str, bytes | None] | ErrorCode | None:
    found = model.update(members)
    if found is None:
        return None
    if not found[0].startswith("{"):
        return ErrorCode.INVALID_MESSAGE
    return found if _is_metadata(found[0].encode()) else ErrorCode.INVALID_METADATA


def _is_metadata(data: bytes) -> bool:
    try:
        messages.check_metadata(data, len(data))
    except ValueError:
        return False
    return True


def _decoded(data: bytes) -> model.Relay | model.Rejection:
    try:
        message = messages.decode(data)
    except Rejected as rejected:
        return model.Rejection(rejected.code, rejected.msg_id)
    relay = model.Relay(message.type, message.to, bytes(message.payload), message.msg_id)
    _check_relay(relay, messages.relayed(message, _SENDER))
    return relay


def _check_relay(message: model.Relay, written: bytes) -> None:
    relayed, _ = model.read_object(written.decode())
    expected = {"type": f'"{message.type}"', "from": f'"{_SENDER}"'}
    if message.payload:
        expected["payload"] = message.payload.decode()
    if message.msg_id is not None:
        expected["msgId"] = message.msg_id.decode()
    expect(relayed == expected, "another relay", relayed)


def handshake(data: bytes, careful: bool = True) -> None:
    """Send ``data`` on a fresh connection."""
    seen = _exchange([data], data, careful)
    expect(not seen.answer or seen.answer.startswith(b"HTTP/1."), "no HTTP", seen.answer)


def frames(data: bytes, careful: bool = True) -> None:
    """Send ``data`` on an open connection."""
    seen = _exchange([UPGRADE, data], data, careful)
    answer = seen.answer.partition(b"\r\n\r\n")[2]
    opcodes = [first for first, _ in server_frames(answer)]
    expect(opcodes[:2] == [0x81, 0x81], "no welcome", answer)
    expect(set(opcodes) <= {0x81, 0x88, 0x8A}, "neither text, nor pong, nor close", answer)
    closes = opcodes.count(0x88)
    expect(closes == (1 if seen.ending else 0), "not one close frame at the end", seen)
    expect(closes == 0 or opcodes[-1] == 0x88, "something behind the close frame", answer)


_LONGEST = (65_536, 200, 125, 10)


def parser(data: bytes, careful: bool = True) -> None:
    """Read one frame; the first two bytes say from where, and how long a message may be."""
    if len(data) < 2:
        return
    at, longest, data = data[0] % 4, _LONGEST[data[1] % 4], data[2:]
    right = model.read_frame(data, at, longest)
    found = masked_frame_at(data, at, longest)
    expected = {model.OTHER: None, model.INCOMPLETE: INCOMPLETE}.get(right, right) if isinstance(right, str) else right
    expect(found == expected, "another frame", (found, right))
    whole = right if isinstance(right, tuple) else (None, b"", 0)
    text = whole[1:] if whole[0] == 0x1 and len(data) >= at + 8 else None
    expect(text_at(data, at, longest) == text, "another text", right)
    goodbyes = {(0x8, code.to_bytes(2), len(data)): code for code in (1000, 1001)}
    goodbye = model.read_frame(data, 0, longest)
    expect(whole_goodbye(data) == goodbyes.get(goodbye), "another goodbye", goodbye)


Target = Callable[[bytes, bool], None]
TARGETS: dict[str, Target] = {"decoder": decoder, "handshake": handshake, "parser": parser, "frames": frames}

_harnesses: list[FuzzHarness] = []


def _exchange(pieces: list[bytes], data: bytes, careful: bool) -> Seen:
    """Send ``pieces`` in the harness; where ``careful``, also cut, to a reader that stalls, and past the fast path."""
    if not _harnesses:
        _harnesses.extend((FuzzHarness(verbose=False), FuzzHarness(), FuzzHarness(fast=False)))
    quick, harness, plain = _harnesses
    try:
        whole = quick.exchange(pieces, careful=False)
        if careful:
            *before, last = pieces
            expect(harness.exchange(pieces) == whole, "depends on the log")
            for cut in (_bytewise(last), _cut(last)):
                seen = harness.exchange([*before, *cut])
                expect(seen == whole, "depends on the cut", (len(cut), whole, seen))
            harness.exchange([*before, *_cut(last)], stalls=True)
            seen = plain.exchange([*before, *_cut(last)])
            expect(seen == whole, "depends on the fast path", (whole, seen))
    except BaseException:
        # What broke it must not be found again by the next input.
        while _harnesses:
            _harnesses.pop().close()
        raise
    return whole


def _bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def _cut(data: bytes) -> list[bytes]:
    """Cut ``data`` at up to eight points that follow from it."""
    chance = random.Random(zlib.crc32(data))
    points = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 9)))
    return [data[start:end] for start, end in zip([0, *points], [*points, len(data)], strict=True) if end > start]
