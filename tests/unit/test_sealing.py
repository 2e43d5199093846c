"""Sealed payloads in Python: the vectors that the JavaScript client is tested with as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signaling.client import sealing
from signaling.client.sealing import Duplicate, Rejected, Sealing

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sealing.json").read_text())
SECRET = VECTORS["secret"]


def named(vectors: list[dict[str, Any]]) -> Any:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


@pytest.mark.parametrize("vector", VECTORS["keys"])
def test_the_key_follows_from_the_secret_and_the_topic(vector: dict[str, str]) -> None:
    key = sealing.derive_key(vector["secret"], vector["topic"].encode())
    assert key.hex() == vector["key"]


@pytest.mark.parametrize("vector", named(VECTORS["sealed"]))
def test_a_payload_is_sealed_as_the_vectors_say(vector: dict[str, Any]) -> None:
    made = Sealing(vector["secret"], vector["topic"].encode())
    text, nonce = vector["text"].encode(), bytes.fromhex(vector["nonce"])
    sealed = made.seal(vector["type"], vector["from"], vector["to"], vector["number"], text, nonce=nonce)
    assert sealed == vector["payload"]
    assert len(sealed["data"]) == -(-(len(text) + 12 + 16) * 4 // 3)  # nonce and tag, in base64 without padding


@pytest.mark.parametrize("history", named(VECTORS["histories"]))
def test_a_client_opens_what_the_vectors_say(history: dict[str, Any]) -> None:
    opener = Sealing(SECRET, VECTORS["topic"].encode())
    outcomes = [outcome(opener, history["to"], step["message"]) for step in history["messages"]]
    expected = [{key: value for key, value in step.items() if key != "message"} for step in history["messages"]]
    assert outcomes == expected


def outcome(opener: Sealing, to: str, message: dict[str, Any]) -> dict[str, Any]:
    try:
        payload = opener.open(message["type"], message["from"], to, message.get("payload"), message.get("msgId"))
    except Rejected as rejected:
        return {"reason": str(rejected)}
    except Duplicate:
        return {"duplicate": True}
    return {"payload": payload}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
SEALED_KEYS = {"sealed": st.just(1) | JSON, "number": st.integers(-2, 2**54) | JSON, "data": st.text() | JSON}


@settings(max_examples=50, deadline=None)
@given(JSON | st.fixed_dictionaries({}, optional=SEALED_KEYS), st.text(), st.none() | st.text())
def test_no_payload_of_a_server_raises_anything_else(payload: Any, sender: str, msg_id: str | None) -> None:
    with pytest.raises(Rejected):
        Sealing(SECRET, b"my-room").open("offer", sender, "me", payload, msg_id)


def test_an_id_that_is_no_unicode_is_sealed_and_opened_all_the_same() -> None:
    made = Sealing(SECRET, b"my-room")
    assert made.open("offer", "\ud800", "\udfff", made.seal("offer", "\ud800", "\udfff", 1, b"1"), None) == 1


def test_each_message_has_a_nonce_of_its_own() -> None:
    made = Sealing(SECRET, b"my-room")
    assert len({made.seal("offer", "a", "b", 1, b"1")["data"][:16] for _ in range(100)}) == 100


@pytest.mark.parametrize("secret", ["", "fifteen bytes..", "é" * 7])
def test_a_secret_that_is_too_short_is_refused_with_a_way_to_make_one(secret: str) -> None:
    with pytest.raises(ValueError, match="token_urlsafe"):
        Sealing(secret, b"my-room")


def test_senders_that_are_forgotten_are_refused_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MAX_SENDERS", 2)
    sender, opener = (Sealing(SECRET, b"my-room") for _ in range(2))

    def send(name: str, number: int) -> dict[str, Any]:
        payload = sender.seal("offer", name, "me", number, b"1")
        return outcome(opener, "me", {"type": "offer", "from": name, "payload": payload})

    opened, forgotten = {"payload": 1}, {"reason": sealing.FORGOTTEN}
    assert [send("b", 1), send("c", 1), send("b", 2), send("d", 1)] == [opened] * 4  # "c" was forgotten
    assert [send("c", 2), send("a", 1), send("b", 3), send("e", 1)] == [forgotten, forgotten, opened, opened]


def test_the_oldest_messages_are_not_recognised_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MAX_RECENT", 2)
    made = Sealing(SECRET, b"my-room")
    messages = [
        {"type": "offer", "from": "a", "msgId": f"~{n}", "payload": made.seal("offer", "a", "me", n, b"1")}
        for n in (1, 2, 3)
    ]
    assert [outcome(made, "me", message) for message in messages] == [{"payload": 1}] * 3
    assert [outcome(made, "me", message) for message in messages[:2]] == [
        {"reason": sealing.REPEATED},
        {"duplicate": True},
    ]
