"""The wire against arbitrary input, with Python's own JSON as the second opinion."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling.core import messages
from signaling.core.server_messages import Feature
from signaling.errors import ErrorCode, Rejected

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
client_messages = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["offer", "answer", "ice-candidate", "nope", "", None, 5]),
        "to": st.sampled_from(["01JFABC", "", None, 5, ["x"]]) | st.text(),
        "msgId": st.none() | st.text() | st.integers(),
        "payload": values,
        "from": st.text(),
    },
)


def expected(message: dict[str, Any]) -> ErrorCode | None:
    """Say what the protocol's table says."""
    if any(not isinstance(message.get(key), str | None) for key in ("type", "to", "msgId")):
        return ErrorCode.INVALID_MESSAGE
    if message.get("type") not in messages.RELAYED_TYPES:
        return ErrorCode.INVALID_TYPE
    return None if message.get("to") else ErrorCode.MISSING_TARGET


def outcome(data: bytes) -> messages.ClientMessage | Rejected:
    try:
        return messages.decode(data)
    except Rejected as rejected:
        return rejected


def is_metadata(data: bytes) -> bool:
    try:
        messages.check_metadata(data, len(data))
    except ValueError:
        return False
    return True


@given(client_messages, st.booleans())
def test_every_message_has_the_outcome_of_the_table(message: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(message, ensure_ascii=ascii_only)
    data = text.encode(errors="surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    result = outcome(data)
    code = expected(message)
    msg_id = message.get("msgId")
    if isinstance(result, Rejected):
        assert result.code is code
    else:
        assert code is None
        assert (result.payload is None) == ("payload" not in message)
    if isinstance(msg_id, str) and msg_id:
        assert json.loads(result.msg_id or b"null") == msg_id
    else:
        assert result.msg_id is None


@given(client_messages, st.booleans())
def test_the_msg_id_of_a_rejected_message_is_read(message: dict[str, Any], ascii_only: bool) -> None:
    data = json.dumps(message, ensure_ascii=ascii_only).encode(errors="replace")
    judged = outcome(data)
    assert messages.msg_id_of(data) == judged.msg_id


@pytest.mark.parametrize(
    "msg_id", [r'"\ud800"', r'"\\\ud800\\ud800"', r'"\ud83d\ude00\n\\"', '"é\\\\"', r'"\ud800\u00e9"']
)
def test_a_msg_id_with_lone_surrogates_stays_as_it_is(msg_id: str) -> None:
    data = f'{{"type":"offer","to":"x","payload":[{msg_id}],"msgId":{msg_id}}}'.encode()
    decoded = outcome(data)
    assert isinstance(decoded, messages.ClientMessage)
    assert (decoded.msg_id, bytes(decoded.payload)) == (msg_id.encode(), f"[{msg_id}]".encode())
    assert messages.msg_id_of(data) == msg_id.encode()


@given(client_messages)
def test_a_relay_is_json_with_the_payload_verbatim(message: dict[str, Any]) -> None:
    result = outcome(json.dumps(message).encode())
    if isinstance(result, Rejected):
        return
    relayed = json.loads(messages.relayed(result, "01SENDER"))
    assert relayed.pop("from") == "01SENDER"
    assert relayed == {
        key: message[key]
        for key in ("type", "payload", "msgId")
        if key in message and (key == "payload" or message[key])
    }


@given(st.text() | st.text(alphabet='{}[]",:\\/utfnal0123456789.eE+- \t\r\n"typeomsgId'))
def test_any_text_has_an_outcome_and_both_decoders_agree(text: str) -> None:
    data = text.encode(errors="replace")
    result = outcome(data)
    try:
        parsed = json.loads(data, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        assert isinstance(result, Rejected)
        assert result.code is ErrorCode.INVALID_MESSAGE
    assert is_metadata(data) == isinstance(parsed, dict)


class ListedPeer(NamedTuple):
    id: str
    metadata: bytes | None


def test_server_messages_are_json_without_null_keys() -> None:
    encoded = [
        messages.welcome("ID"),
        messages.welcome("ID", expires_in=5, features=[Feature.RESUME, Feature.TOKEN]),
        messages.welcome("ID", features=[]),
        messages.peer_list([]),
        messages.peer_list([ListedPeer("A", None), ListedPeer("B", b'{"n":1}')]),
        messages.peer_joined("A", None),
        messages.peer_joined("A", b"{}"),
        messages.peer_left("A"),
        messages.error(ErrorCode.DROPPED, "text", None),
        messages.error(ErrorCode.DROPPED, "text", b'"m"'),
    ]
    assert [json.loads(message) for message in encoded] == [
        {"type": "welcome", "selfId": "ID"},
        {"type": "welcome", "selfId": "ID", "expiresIn": 5, "features": ["resume", "token"]},
        {"type": "welcome", "selfId": "ID"},
        {"type": "peer-list", "peers": []},
        {"type": "peer-list", "peers": [{"id": "A"}, {"id": "B", "metadata": {"n": 1}}]},
        {"type": "peer-joined", "peerId": "A"},
        {"type": "peer-joined", "peerId": "A", "metadata": {}},
        {"type": "peer-left", "peerId": "A"},
        {"type": "error", "code": "dropped", "message": "text"},
        {"type": "error", "code": "dropped", "message": "text", "msgId": "m"},
    ]
