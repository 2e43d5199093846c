"""The schemas of the wire are what the code does, and what they were made from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling.core import messages, server_messages
from signaling.core.ice import check_ice_servers
from signaling.errors import CLOSE_MEANINGS, CloseCode, ErrorCode, Refused, Rejected
from signaling.limits import Limits
from signaling.web.credentials import presented
from signaling.web.join_parsing import check_join
from tests.harness.wire_schema import check_from_server, disagreement, from_client, from_server, read

TREE = Path(__file__).parents[2]
NAMES = [path.name.removesuffix(".json") for path in (files("signaling") / "schemas").iterdir()]
PEER = "01M84W4JC063ZB8W6276707TN2"
ASYNCAPI = read("asyncapi")
VECTORS = json.loads((TREE / "tests" / "vectors" / "sealing.json").read_text())


def test_the_files_are_those_that_the_types_make() -> None:
    command = [sys.executable, str(TREE / "tools" / "wire_schema.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", ["client-message", "server-message", "sealed-payload"])
def test_each_schema_is_one_of_its_dialect(name: str) -> None:
    schema = read(name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].endswith(f"/schemas/{name}.json")
    jsonschema.Draft202012Validator.check_schema(schema)


# What a client may send

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
client_messages = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["offer", "answer", "ice-candidate", "token", "metadata", "nope", "", None, 5]),
        "to": st.sampled_from([PEER, "", None, 5, ["x"]]) | st.text(),
        "msgId": st.none() | st.text() | st.integers(),
        "payload": values,
        "token": st.sampled_from(["abc", "a.b-c_d~e+f/g==", "a b", "=", "", "ä", None, 5]),
        "metadata": values | st.dictionaries(st.text(), values),
        "from": st.text(),
    },
)


def outcome(data: bytes) -> object:
    """Judge a message as a server does that has all features on."""
    try:
        return messages.decode(data)
    except messages.NotRelayed as other:
        try:
            return other.message.metadata_update(4_096) or other.message.presented_token() or other
        except Rejected as wrong:
            return wrong
    except Rejected as rejected:
        return rejected


@given(client_messages)
def test_what_the_server_takes_is_what_the_schema_of_a_client_allows(message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    assert disagreement(data, outcome(data)) is None


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ('{"type":"offer","to":"x"}', True),
        ('{"type":"offer","to":"x","msgId":null,"payload":null,"more":1}', True),
        ('{"type":"offer","to":"x","msgId":""}', True),
        ('{"type":"offer","to":"x","msgId":1}', False),
        ('{"type":"offer","to":""}', False),
        ('{"type":"offer","to":null}', False),
        ('{"type":"offer"}', False),
        ('{"to":"x"}', False),
        ('{"type":"nope","to":"x"}', False),
        ('{"type":"token","token":"abc.d-e=="}', True),
        ('{"type":"token","token":"abc","to":null}', True),
        ('{"type":"token","token":"abc","to":1}', False),
        ('{"type":"token","token":""}', False),
        ('{"type":"token","token":"a b"}', False),
        ('{"type":"token"}', False),
        ('{"type":"metadata","metadata":{}}', True),
        ('{"type":"metadata","metadata":[]}', False),
        ('{"type":"metadata","metadata":null}', False),
        ('{"type":"metadata"}', False),
        ("[]", False),
        ('"offer"', False),
        ("", False),
        ('{"type":"offer","to":"x","payload":NaN}', False),
        ('{"type":"offer","to":"x","payload":"\ud83d\ude00 \\ud800"}', True),
    ],
)
def test_what_a_client_may_send(text: str, is_valid: bool) -> None:
    data = text.encode("utf-16", "surrogatepass").decode("utf-16").encode()
    assert (not list(from_client.problems(data))) == is_valid
    assert disagreement(data, outcome(data)) is None


# What a server sends


def test_a_relay_is_written_as_its_type_is() -> None:
    for kind in messages.RELAYED_TYPES:
        for payload in (b"", b"null", b'{"sdp":"v=0"}'):
            for msg_id in (b"", b'"1"'):
                written = messages.relayed(
                    messages.ClientMessage(kind, "x", msgspec.Raw(payload), msgspec.Raw(msg_id)), PEER
                )
                relay = server_messages.Relayed(
                    kind,
                    PEER,
                    msgspec.Raw(payload) if payload else msgspec.UNSET,
                    msgspec.Raw(msg_id) if msg_id else msgspec.UNSET,
                )
                assert written == msgspec.json.encode(relay)
                check_from_server(written)


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_of_each_code_is_valid(code: ErrorCode) -> None:
    check_from_server(messages.error(code, "why \ud800", None))
    check_from_server(messages.error(code, "why", b'"1"'))


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"welcome"}',
        '{"type":"welcome","selfId":"someone"}',
        f'{{"type":"welcome","selfId":"{PEER}","resumed":false}}',
        f'{{"type":"welcome","selfId":"{PEER}","features":[]}}',
        f'{{"type":"welcome","selfId":"{PEER}","expiresIn":-1}}',
        f'{{"type":"welcome","selfId":"{PEER}","expiresIn":1.5}}',
        f'{{"type":"welcome","selfId":"{PEER}","resume":{{"token":"x"}}}}',
        f'{{"type":"welcome","selfId":"{PEER}","iceServers":[{{"urls":"http://example.com"}}]}}',
        f'{{"type":"welcome","selfId":"{PEER}","secret":1}}',
        '{"type":"peer-list"}',
        '{"type":"peer-list","peers":[{}]}',
        f'{{"type":"peer-joined","peerId":"{PEER}","metadata":null}}',
        f'{{"type":"peer-updated","peerId":"{PEER}"}}',
        '{"type":"peer-left"}',
        '{"type":"offer","payload":1}',
        f'{{"type":"offer","from":"{PEER}","msgId":""}}',
        '{"type":"error","code":"unknown","message":"x"}',
        '{"type":"error","code":"dropped"}',
        '{"type":"ice-servers"}',
        '{"type":"notice"}',
        '{"type":"token","expiresIn":null}',
    ],
)
def test_what_no_server_sends(text: str) -> None:
    with pytest.raises(AssertionError):
        check_from_server(text)


def test_what_the_recorded_servers_sent_is_valid() -> None:
    recorded = (TREE / "tests" / "system" / "wire_transcript.txt").read_text()
    texts = re.findall(r'^\w+ < .*?({"type":.*})$', recorded, re.MULTILINE)
    assert len(texts) > 400
    # Names stand for what differs each time.
    texts = [re.sub("<peer-[0-9]+>", PEER, text).replace("<seconds>", "60") for text in texts]
    texts = [re.sub("<([0-9]+) times (.)>", lambda found: found[2] * int(found[1]), text) for text in texts]
    for text in set(texts):
        # What is not ASCII is escaped, byte by byte.
        check_from_server(text.encode().decode("unicode_escape").encode("latin-1"))


def _is_ice_server(value: Any) -> bool:
    try:
        check_ice_servers([value])
    except ValueError:
        return False
    return True


ice_values = st.sampled_from(
    [
        "stun:stun.example.com",
        "turn:turn.example.com",
        ["turns:a.example:5349?transport=tcp"],
        [],
        ["stun:a.example", "b"],
        "http://a.example",
        "",
        None,
        5,
    ]
)


@given(st.dictionaries(st.sampled_from(["urls", "username", "credential", "other"]), ice_values))
def test_the_schema_takes_every_ice_server_that_the_server_takes(server: dict[str, Any]) -> None:
    if _is_ice_server(server):
        check_from_server(json.dumps({"type": "ice-servers", "iceServers": [server]}))


# The opening of a connection

QUERY = jsonschema.Draft202012Validator(ASYNCAPI["channels"]["topic"]["bindings"]["ws"]["query"])


@given(
    st.dictionaries(
        st.sampled_from(["resume", "seen", "other"]),
        st.sampled_from(["", "0", "17", "9" * 15, "9" * 16, "-1", "1.5", "x", "\u0661", "7 "]),
    )
)
def test_the_query_of_a_resumed_session_is_checked_as_the_schema_says(query: dict[str, str]) -> None:
    if "resume" not in query:
        # Without it, ``seen`` is not read.
        query.pop("seen", None)
    try:
        check_join(
            b"room",
            "&".join(f"{key}={quote(value)}" for key, value in query.items()).encode(),
            Limits(resume_window_seconds=5),
        )
    except Refused:
        assert not QUERY.is_valid(query)
    else:
        assert QUERY.is_valid(query)


@given(st.from_regex(r"[a-z.~=+/ \u00e4-]{0,6}", fullmatch=True))
def test_the_query_of_a_token_is_checked_as_the_schema_says(token: str) -> None:
    try:
        presented(lambda name: (), f"token={quote(token)}".encode(), passwords=False)
    except Refused:
        assert not QUERY.is_valid({"token": token})
    else:
        assert QUERY.is_valid({"token": token})


# The document


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    used = set(references(ASYNCAPI))
    for reference in used:
        found: Any = ASYNCAPI
        for key in reference.removeprefix("#/").split("/"):
            found = found[key]
    schemas = {f"#/components/schemas/{name}" for name in ASYNCAPI["components"]["schemas"]}
    # What is sealed is a payload, which the server does not look into.
    assert schemas - used == {"#/components/schemas/SealedPayload"}
    in_operations = set(references(ASYNCAPI["operations"]))
    assert in_operations >= {f"#/channels/topic/messages/{key}" for key in ASYNCAPI["channels"]["topic"]["messages"]}


def test_every_schema_has_a_title_of_its_own() -> None:
    # Generators of code name types by it.
    components = ASYNCAPI["components"]["schemas"].values()
    titles = [schema["title"] for schema in components]
    assert len(set(titles)) == len(titles)
    assert all(re.fullmatch("[A-Z][A-Za-z]+", title) for title in titles)


@pytest.mark.parametrize("key", ASYNCAPI["components"]["messages"])
def test_every_example_is_valid(key: str) -> None:
    [example] = ASYNCAPI["components"]["messages"][key]["examples"]
    side = {"client": from_client, "server": from_server}[key.partition("-")[0]]
    assert not list(side.problems(json.dumps(example["payload"])))
    schema = {"$ref": f"#/components/schemas/{key}", "components": ASYNCAPI["components"]}
    jsonschema.validate(example["payload"], schema)
    whole = read(f"{key.partition('-')[0]}-message")
    jsonschema.validate(example["payload"], whole)


def test_the_document_names_every_close_code_and_every_error_code() -> None:
    channel = ASYNCAPI["channels"]["topic"]
    assert channel["x-close-codes"] == {str(int(code)): CLOSE_MEANINGS[code] for code in CloseCode}
    assert all(f"| {int(code)} |" in channel["description"] for code in CloseCode)
    assert ASYNCAPI["components"]["schemas"]["ErrorCode"]["enum"] == [code.value for code in ErrorCode]
    page = (TREE / "docs" / "protocol.md").read_text() + (TREE / "docs" / "protocol-features.md").read_text()
    assert all(f"| `{code}` |" in page for code in ErrorCode)
    assert all(f"| {int(code)} |" in page for code in CloseCode)


def test_the_document_says_what_no_schema_can() -> None:
    for kind in ("offer", "answer", "ice-candidate", "token", "metadata"):
        summary = ASYNCAPI["components"]["messages"][f"client-{kind}"]["description"]
        assert "65,536 bytes" in summary
        assert "64 deep" in summary


def test_the_pages_name_no_other_codes() -> None:
    errors, closes = set(), set()
    for name in ("protocol.md", "protocol-features.md"):
        for table in re.findall(r"^\| code \|.*\n(?:\|.*\n)+", (TREE / "docs" / name).read_text(), re.MULTILINE):
            errors |= set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
            closes |= set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE))
    assert errors == {code.value for code in ErrorCode}
    assert closes == {str(int(code)) for code in CloseCode}


# Sealed payloads

SEALED = jsonschema.Draft202012Validator(read("sealed-payload"))


@pytest.mark.parametrize("vector", VECTORS["sealed"], ids=lambda vector: vector["name"])
def test_every_sealed_payload_is_valid(vector: dict[str, Any]) -> None:
    SEALED.validate(vector["payload"])


def test_the_payloads_that_a_client_finds_unsealed_are_not_valid() -> None:
    messages = [message for history in VECTORS["histories"] for message in history["messages"]]
    received = [(each["message"].get("payload"), each.get("reason")) for each in messages]
    unsealed = [payload for payload, reason in received if reason == "it is not sealed"]
    opened = [payload for payload, reason in received if reason is None]
    assert len(unsealed) > 5
    assert len(opened) > 5
    assert not [payload for payload in unsealed if SEALED.is_valid(payload)]
    assert all(SEALED.is_valid(payload) for payload in opened)
