"""Grants from claims, and credentials of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling import Grant
from signaling.core.grants import Bearer, Password, grant_from_claims, session_owner
from signaling.errors import Refused
from signaling.web.credentials import presented, subprotocol, without_secrets


def headers(**values: str):
    named = {name.lower().replace("_", "-").encode(): value.encode() for name, value in values.items()}

    def look_up(name: bytes) -> Sequence[bytes]:
        return [named[name]] if name in named else []

    return look_up


def test_claims_become_a_grant() -> None:
    own = {"topics": ["a"], "prefixes": ["b-"], "send": False, "metadata": {"name": "é", "n": [1, None]}}
    own |= {"maxPeers": 2, "messageRate": 3}
    grant = grant_from_claims({"exp": 100, "sub": "Ada", "signaling": own, "other": 1}, 5.0)
    assert grant == Grant(
        topics=frozenset({"a"}),
        prefixes=("b-",),
        may_send=False,
        metadata={"name": "é", "n": [1, None]},
        expires=105.0,
        subject="Ada",
        max_peers=2,
        message_rate=3.0,
    )
    assert grant.metadata_text == '{"name":"é","n":[1,null]}'.encode()


def test_claims_of_other_applications_allow_nothing() -> None:
    grant = grant_from_claims({"exp": 1.5, "topics": ["room"], "scope": "*"})
    assert not grant.covers("room")
    assert not grant.covers("")


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"x": value}
    return value


@pytest.mark.parametrize(
    "claims",
    [
        {"signaling": None},
        {"signaling": "room"},
        {"signaling": {"topics": "room"}},
        {"signaling": {"topics": [1]}},
        {"signaling": {"prefixes": {"": 1}}},
        {"signaling": {"send": 0}},
        {"signaling": {"send": "false"}},
        {"signaling": {"metadata": ["x"]}},
        {"signaling": {"metadata": {"x": float("inf")}}},
        {"signaling": {"metadata": {"x": "\ud800"}}},
        {"signaling": {"topic": ["room"]}},
        {"signaling": {"metadata": nested(100_000)}},
        {"signaling": {"maxPeers": 0}},
        {"signaling": {"maxPeers": -1}},
        {"signaling": {"maxPeers": 2.0}},
        {"signaling": {"maxPeers": True}},
        {"signaling": {"maxPeers": "2"}},
        {"signaling": {"messageRate": 0}},
        {"signaling": {"messageRate": -0.5}},
        {"signaling": {"messageRate": True}},
        {"signaling": {"messageRate": "1"}},
        {"signaling": {"messageRate": 1_000_001}},
        {"signaling": {"messageRate": 10**400}},
        {"signaling": {"messageRate": float("nan")}},
        {"sub": 7},
        {"sub": ["Ada"]},
        {"sub": "Ada\ud800"},
        {"jti": 7},
        {"jti": "\udfff"},
        {"iss": "\udfff"},
        {"exp": True},
        {"exp": "100"},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"exp": 10**400},
    ],
)
def test_malformed_claims_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(its claim signaling|signaling\.\w+|sub|jti|iss|exp) ha"):
        grant_from_claims(claims)


ADA, EVE = Bearer(b"a.b.c"), Bearer(b"d.e.f")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((ADA, Grant(subject="x")), (EVE, Grant(subject="x", may_send=False, expires=1.0)), True),
        ((ADA, Grant(subject="x")), (ADA, Grant(subject="y")), False),
        ((ADA, Grant(subject="x")), (ADA, Grant(subject="x", metadata={"n": 1})), False),
        ((ADA, Grant()), (ADA, Grant()), True),
        ((ADA, Grant()), (EVE, Grant()), False),
        ((ADA, Grant(subject="")), (EVE, Grant(subject="")), False),
        ((ADA, Grant(token_id="")), (EVE, Grant(token_id="")), False),
        ((ADA, Grant(token_id="1")), (EVE, Grant(token_id="1")), True),
        ((ADA, Grant(token_id="1")), (ADA, Grant(token_id="2")), False),
        ((ADA, Grant(token_id="x")), (ADA, Grant(subject="x")), False),
        ((ADA, Grant(subject="x", issuer="a")), (EVE, Grant(subject="x", issuer="a")), True),
        ((ADA, Grant(subject="x", issuer="a")), (ADA, Grant(subject="x", issuer="b")), False),
        ((ADA, Grant(token_id="x", issuer="a")), (ADA, Grant(token_id="x")), False),
        ((Password(b"x", b"1"), Grant(subject="x")), (Password(b"x", b"2"), Grant(subject="x")), True),
        ((Password(b"x", b"1"), Grant()), (Password(b"x", b"2"), Grant()), True),
        ((Password(b"x", b"1"), Grant()), (Password(b"y", b"1"), Grant()), False),
        ((Password(b"\xfe", b"1"), Grant()), (Password(b"\xff", b"1"), Grant()), False),
        ((Password(b"x", b"1"), Grant(subject="x")), (ADA, Grant(subject="x")), False),
    ],
)
def test_the_owner_of_a_session(one: Any, other: Any, same: bool) -> None:
    assert (session_owner(*one) == session_owner(*other)) is same


@pytest.mark.parametrize(
    "wrong", [{"max_peers": 0}, {"message_rate": 0.0}, {"message_rate": float("nan")}, {"message_rate": 2e6}]
)
def test_a_bound_must_be_in_its_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} has to be"):
        Grant(**wrong)


def test_a_subject_must_be_unicode() -> None:
    for wrong in ({"subject": "\ud800"}, {"token_id": "\ud800"}, {"issuer": "\ud800"}):
        with pytest.raises(ValueError, match="surrogates"):
            Grant(**wrong)


KEYS = ("topics", "prefixes", "send", "metadata")
VALUES = st.none() | st.booleans() | st.floats() | st.text(max_size=5)


@given(VALUES | st.lists(VALUES, max_size=2) | st.dictionaries(st.text(max_size=5), VALUES, max_size=2))
def test_any_claims_become_a_grant_or_a_value_error(value: Any) -> None:
    for claims in (
        {"signaling": value},
        {"exp": value},
        {"sub": value, "jti": value},
        *({"signaling": {key: value}} for key in KEYS),
    ):
        try:
            grant_from_claims(claims)
        except ValueError:
            continue


def test_a_token_is_found_wherever_it_is_sent() -> None:
    assert presented(headers(), b"", passwords=True) is None
    assert presented(headers(authorization="bEaReR  a.b-c"), b"", passwords=False) == Bearer(b"a.b-c")
    assert presented(headers(), b"x=1&token=a%2Bb%3D&y", passwords=False) == Bearer(b"a+b=")
    offered = headers(sec_websocket_protocol="signaling,signaling.bearer.abc , x")
    assert presented(offered, b"", passwords=False) == Bearer(b"abc")
    basic = headers(authorization="Basic YWRhOm46bw==")
    assert presented(basic, b"", passwords=True) == Password(b"ada", b"n:o")
    assert presented(basic, b"", passwords=False) is None


def test_the_token_is_never_the_subprotocol() -> None:
    assert subprotocol(headers(sec_websocket_protocol="signaling.bearer.abc, signaling")) == b"signaling"
    assert subprotocol(headers(sec_websocket_protocol="signaling.bearer.abc")) == b""
    assert subprotocol(headers()) == b""


def test_credentials_are_not_shown() -> None:
    assert "secret" not in repr([Bearer(b"secret"), Password(b"ada", b"secret")])


def status(values: Any, query: bytes) -> int:
    try:
        presented(values, query, passwords=True)
    except Refused as refused:
        return refused.status
    return 101


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_credentials_are_parsed_or_answered_400(header: bytes, query: bytes) -> None:
    for prefix in (b"", b"Basic ", b"Bearer ", b"signaling.bearer."):
        assert status(lambda name, value=prefix + header: [value], b"token=" + query) in (101, 400)


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"/ws/a", b"/ws/a"),
        (b"/ws/a?token=SECRET", b"/ws/a?token=..."),
        (b"/ws/a?x=1&token=SECRET&metadata=%7B%7D", b"/ws/a?x=1&token=...&metadata=%7B%7D"),
        (b"/ws/a?resume=SECRET&seen=2", b"/ws/a?resume=...&seen=2"),
        (b"/ws/a?t%6fken=SECRET&x", b"/ws/a?...&x"),
        (b"/ws/token=a?mytoken=b", b"/ws/token=a?mytoken=b"),
        (b"/ws/a?x?token=SECRET?&y", b"/ws/a?x?token=...&y"),
        (b"/ws/a?x?t%6fken=SECRET", b"/ws/a?x?..."),
        (b"/ws/a?" + b"?" * 9, b"/ws/a?" + b"?" * 9),
    ],
)
def test_a_target_without_its_secrets(target: bytes, shown: bytes) -> None:
    assert without_secrets(target) == shown


@pytest.mark.parametrize(
    ("requested", "kept"),
    [
        (b'{"name":"Eve","instance":"a-_Z9"}', b'{"name":"Ada","instance":"a-_Z9"}'),
        (b'{"\\u0069nstance":"\\u0061"}', b'{"name":"Ada","instance":"a"}'),
        (b'{"instance":"' + b"a" * 64 + b'"}', b'{"name":"Ada","instance":"' + b"a" * 64 + b'"}'),
        *(
            (requested, b'{"name":"Ada"}')
            for requested in (
                None,
                b"{}",
                b'{"instance":""}',
                b'{"instance":"' + b"a" * 65 + b'"}',
                b'{"instance":"a b"}',
                b'{"instance":"\xc3\xa9"}',
                b'{"instance":"a\\n"}',
                b'{"instance":7}',
                b'{"instance":{"instance":"a"}}',
                b'{"other":{"instance":"a"}}',
            )
        ),
    ],
)
def test_of_the_metadata_of_a_client_a_grant_keeps_a_short_instance(requested: bytes | None, kept: bytes) -> None:
    assert Grant(metadata={"name": "Ada"}).peer_metadata(requested) == kept
    assert Grant().peer_metadata(requested) == requested


def test_an_instance_of_the_grant_counts() -> None:
    assert Grant(metadata={"instance": 7}).peer_metadata(b'{"instance":"a"}') == b'{"instance":7}'
