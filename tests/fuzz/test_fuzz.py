"""What ``make fuzz`` found before, and inputs made to be hard: frames, requests and JSON that are almost right."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger
from twisted.python.failure import Failure

from signaling.core import messages
from signaling.server.protocol import SignalingProtocol
from tests.fuzz import model
from tests.fuzz.harness import CLIENT_ID, OBSERVER_ID, UPGRADE, Finding
from tests.fuzz.mutate import mutate_frames, split_frames
from tests.fuzz.targets import CORPUS, TARGETS, decoder, frames, handshake, parser
from tests.harness.frames import masked

KEPT = sorted(path for target in TARGETS for path in (CORPUS / target).iterdir())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_is_not_found_again(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes(), True)


# Almost JSON

json_scalars = st.sampled_from(
    [
        "null",
        "true",
        "0",
        "-0.5e+7",
        "1e400",
        "9" * 400,
        '""',
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\u0061"',
        '"é"',
        "NaN",
    ]
)
json_texts = st.recursive(
    json_scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: f"[{','.join(values)}]")
        | st.lists(st.tuples(json_scalars, inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f"{key} : {value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=6,
)
pairs = st.tuples(
    st.sampled_from(
        [
            *('"type"', '"to"', '"payload"', '"msgId"', '"t\\u0079pe"', '"from"', '"\\udc00"'),
            *('"token"', '"metadata"'),
        ]
    ),
    st.sampled_from(
        [
            *('"offer"', '"answer"', '"ice-candidate"', '"token"', '"metadata"'),
            *(f'"{OBSERVER_ID}"', f'"{CLIENT_ID}"'),
        ]
    )
    | json_texts,
)
whole_messages = st.tuples(st.lists(pairs, max_size=6), st.sampled_from([",", " ,\n", "\t, "])).map(
    lambda drawn: ("{" + drawn[1].join(f"{key}:{value}" for key, value in drawn[0]) + "}").encode()
)


def mutated(inputs: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Cut something out of an input and put something else there; mostly a byte or two."""
    return st.builds(
        lambda data, at, length, instead: (
            data[: at % (len(data) + 1)] + instead + data[at % (len(data) + 1) + length :]
        ),
        inputs,
        st.integers(0, 4000),
        st.integers(0, 3),
        st.binary(max_size=3),
    )


client_messages = whole_messages | mutated(whole_messages)


@given(client_messages)
def test_the_decoder_agrees_with_the_model(data: bytes) -> None:
    decoder(data)


@given(client_messages | st.text().map(str.encode))
def test_the_model_agrees_with_pythons_reader(data: bytes) -> None:
    text = data.decode(errors="replace")

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        parsed = json.loads(text, parse_constant=refuse)
    except ValueError:
        parsed = None
    members, _ = model.read_object(text)
    assert (members is None) == (not isinstance(parsed, dict))
    if members is not None:
        assert {key: json.loads(value) for key, value in members.items()} == parsed


# Almost frames


def framed(first: int, payload: bytes, mask: bytes, length: int | None) -> bytes:
    """Frame what a client says; ``length`` is a lie about it, in 64 bits."""
    size = len(payload)
    if length is not None:
        head = bytes([first, 0xFF]) + length.to_bytes(8, "big")
    elif size < 126:
        head = bytes([first, 0x80 | size])
    else:
        head = bytes([first, 0xFE]) + size.to_bytes(2, "big")
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


close_codes = st.sampled_from([0, 999, 1000, 1001, 1004, 1005, 1006, 1011, 1015, 2999, 3000, 4999, 5000, 65_535])
pieces_of_text = st.sampled_from(["é", "😀", "a", "\U0010ffff"]).map(str.encode)
payloads = (
    client_messages
    | st.binary(max_size=130)
    | st.builds(lambda code, reason: code.to_bytes(2, "big") + reason, close_codes, pieces_of_text)
)
masks = st.sampled_from([bytes(4), b"\x01\x02\x03\xff"])
any_frame = st.builds(
    framed,
    st.sampled_from([0x81, 0x82, 0x88, 0x89, 0x8A, 0x01, 0x02, 0x00, 0x80]) | st.integers(0, 255),
    payloads,
    masks,
    st.none() | st.sampled_from([1, 125, 65_535, 65_536, 65_537, 2**63 - 1, 2**63, 2**64 - 1]),
)


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """Cut a message anywhere, also within a code point, and put control frames between the fragments."""
    data = draw(client_messages | st.lists(pieces_of_text).map(b"".join))
    points = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    parts = [data[start:end] for start, end in zip([0, *points], [*points, len(data)], strict=True)]
    written = b""
    for at, part in enumerate(parts):
        first = (0x01 if at == 0 else 0x00) | (0x80 if at == len(parts) - 1 else 0)
        written += framed(first, part, draw(masks), None) + draw(st.sampled_from([b"", b"", masked(0x89, b"between")]))
    return written


conversations = st.lists(st.builds(framed, st.just(0x81), client_messages, masks, st.none()) | fragmented() | any_frame)


@given(st.builds(bytes.__add__, st.binary(min_size=2, max_size=2), any_frame | mutated(any_frame)))
def test_a_frame_is_read_as_the_model_reads_it(data: bytes) -> None:
    parser(data)


@given(conversations.map(b"".join) | mutated(conversations.map(b"".join)))
def test_a_connection_takes_any_frames(data: bytes) -> None:
    frames(data)


@given(st.lists(st.builds(framed, st.just(0x81), st.binary(max_size=200), masks, st.none())), st.integers(0, 99))
def test_a_mutated_conversation_keeps_its_frames_whole(conversation: list[bytes], seed: int) -> None:
    data = b"".join(conversation)
    written = mutate_frames(data, 100_000, seed, lambda payload, max_size: payload + b"x")
    frames_written, rest = split_frames(written)
    assert rest == (b"x" if written == data + b"x" else b"")
    assert len(frames_written) >= len(conversation)


# Almost requests

targets = st.sampled_from(
    [
        "/ws/room",
        "/ws/other",
        "/ws/%C3%A9",
        "/ws/%ff",
        "/ws/",
        "/ws/a/b",
        "/healthz",
        "*",
        "http://server/ws/room",
        "/ws/room?metadata=%7B%22a%22%3A1e400%7D",
        "/ws/room?metadata=[]",
        "/ws/room?metadata={}&m%65tadata={}",
    ]
)
headers = st.lists(
    st.sampled_from(
        [
            "Host: server",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Connection: close",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Version: 8",
            f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
            "Sec-WebSocket-Key: short",
            "Content-Length: 3",
            "Content-Length: 0",
            f"Content-Length: {'1' * 4301}",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            "Origin: https://example.org",
            " folded",
            "no colon",
        ]
    ),
    max_size=6,
)
heads = st.builds(
    lambda method, target, version, lines: "\r\n".join([f"{method} {target} {version}", *lines, "", ""]).encode(),
    st.sampled_from(["GET", "GET", "GET", "HEAD", "OPTIONS", "POST", "get", ""]),
    targets,
    st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2", ""]),
    headers,
)
upgrades = targets.map(lambda target: UPGRADE.replace(b"/ws/room", target.encode()))
upgrades_with_more = st.builds(
    lambda request, lines: request[:-2] + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n", upgrades, headers
)
requests = st.lists(
    heads | upgrades | upgrades_with_more | st.sampled_from([b"abc", b"3\r\nabc\r\n0\r\n\r\n"]) | any_frame, max_size=4
)


@given(requests.map(b"".join) | mutated(requests.map(b"".join)))
def test_the_handshake_takes_anything(data: bytes) -> None:
    handshake(data)


# The targets see what they look for


def test_a_decoder_that_judges_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "RELAYED_TYPES", frozenset({"offer"}))
    with pytest.raises(Finding, match="another verdict"):
        decoder(rb'{"type":"answer","to":"a","payload":"\ud800"}')


def raises(connection: Any, data: bytes) -> None:
    raise RuntimeError("not caught")


def logs_a_failure(connection: Any, data: bytes) -> None:
    Logger(namespace="signaling").failure("caught", Failure(RuntimeError()))


def answers_each_segment(connection: Any, data: bytes) -> None:
    connection.transport.write(b"\x81\x02{}")


def tells_everyone(connection: Any, data: bytes) -> None:
    for other in connection.factory.connections - {connection}:
        other.transport.write(b"\x81\x02{}")


def stops_reading(connection: Any, data: bytes) -> None:
    connection.transport.pauseProducing()


def leaves_a_timer(connection: Any, data: bytes) -> None:
    connection.factory.reactor.callLater(1, print)


@pytest.mark.parametrize(
    ("misdeed", "find"),
    [
        (raises, "not caught"),
        (logs_a_failure, "logged"),
        (answers_each_segment, "depends on the cut"),
        (tells_everyone, "not for a peer"),
        (stops_reading, "not read any more"),
        (leaves_a_timer, "a timer is left"),
    ],
)
def test_a_server_that_misbehaves_is_seen(monkeypatch: pytest.MonkeyPatch, misdeed: Any, find: str) -> None:
    received = SignalingProtocol.dataReceived

    def misbehaves(connection: Any, data: bytes) -> None:
        received(connection, data)
        if len(connection.factory.connections) > 1:
            misdeed(connection, data)

    monkeypatch.setattr(SignalingProtocol, "dataReceived", misbehaves)
    with pytest.raises(Exception, match=find):
        frames(masked(0x89, b"ping"))
    monkeypatch.undo()
    frames(masked(0x89, b"ping"))
