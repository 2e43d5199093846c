"""The STUN and TURN servers that peers receive."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest

from signaling import IceServers, Turn
from signaling.core.ice import parse_ice_servers

URI = "turn:turn.example.com:3478?transport=udp"


def test_a_credential_is_the_one_that_coturn_computes() -> None:
    servers = IceServers(turn=Turn((URI,), b"north", ttl_seconds=600), wall_clock=lambda: 1_800_000_000.9)
    (server,) = json.loads(servers.text("01ABC") or b"")
    assert server["urls"] == [URI]
    assert server["username"] == "1800000600:01ABC"
    expected = hmac.new(b"north", b"1800000600:01ABC", hashlib.sha1).digest()
    assert server["credential"] == base64.b64encode(expected).decode()


def test_fixed_servers_come_first_and_are_kept_as_they_are() -> None:
    fixed = parse_ice_servers(b'[{"urls": "stun:stun.example.com"}, {"urls": ["stun:[2001:db8::1]:3478"]}]')
    assert json.loads(IceServers(fixed).text("x") or b"") == fixed
    both = json.loads(IceServers(fixed, Turn((URI,), b"s")).text("x") or b"")
    assert both[:2] == fixed
    assert both[2]["urls"] == [URI]


def test_there_are_no_ice_servers_by_default() -> None:
    assert IceServers().text("x") is None
    assert IceServers().renewal_seconds == 0


def test_credentials_are_renewed_at_half_of_their_lifetime() -> None:
    assert IceServers(turn=Turn((URI,), b"s", ttl_seconds=600)).renewal_seconds == 300


def test_a_secret_is_not_shown() -> None:
    assert "north" not in repr(Turn((URI,), b"north"))


@pytest.mark.parametrize(
    "uri",
    [
        "turn:turn.example.com",
        "turns:turn.example.com:443?transport=tcp",
        "turn:127.0.0.1:3478",
        "turn:turn.example.com.:65535",
        "turn:turn_1-a.example:1",
        "turn:[2001:db8::1]:3478?transport=udp",
        "turn:[::ffff:192.0.2.1]",
    ],
)
def test_turn_uris(uri: str) -> None:
    assert Turn((uri,), b"s").uris == (uri,)


WRONG_HOSTS = ["", ".a", "a..b", "-a", "a-", "a b", "é", "%41", "u@h", "h/", "a" * 64, ".".join(["a" * 60] * 5)]
WRONG_ADDRESSES = ["300.1.1.1", "1.2.3", "1.2.3.4.", "a.1", "[::g]", "[1.2.3.4]", "[]", "[::1", "[fe80::1%eth0]", "::1"]
WRONG_PORTS = [":", ":0", ":65536", ":99999", ":100000", ":-1", ":+1", ":x", ":\u0661"]


@pytest.mark.parametrize(
    "wrong",
    [
        *WRONG_HOSTS,
        *WRONG_ADDRESSES,
        *(f"h{port}" for port in WRONG_PORTS),
        *(f"h{query}" for query in ("?", "?transport=", "?transport=sctp", "?transport=UDP", "?transport=udp&x", "?x")),
    ],
)
@pytest.mark.parametrize("scheme", ["stun", "turn", "turns"])
def test_uris_on_which_clients_throw_are_refused(scheme: str, wrong: str) -> None:
    server = {"urls": f"{scheme}:{wrong}", "username": "u", "credential": "hidden"}
    for refused in (
        lambda: parse_ice_servers(json.dumps([server]).encode()),
        lambda: IceServers([server]),
    ):
        with pytest.raises(ValueError, match=r"^\[0\]\.urls: not a STUN or TURN URI ") as caught:
            refused()
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["", "stuns:", "STUN:", "http:", "turn://"])
def test_other_schemes_are_refused(scheme: str) -> None:
    with pytest.raises(ValueError, match=r"not a STUN or TURN URI .*it has to be stun:HOST"):
        IceServers([{"urls": [f"{scheme}stun.example.com"]}])


def test_a_stun_uri_has_no_transport() -> None:
    with pytest.raises(ValueError, match="a STUN URI has no transport"):
        IceServers([{"urls": "stun:a?transport=udp"}])


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "turn.example.com",
        "stun:a",
        "turn://a",
        "turn:a?transport=sctp",
        "turn:a b",
        "http://a",
        "turn:",
        "turn:a:0",
    ],
)
def test_an_invalid_turn_uri_is_named(uri: str) -> None:
    with pytest.raises(ValueError, match=r"is not a TURN URI \(for example turn:turn.example.com"):
        Turn((uri,), b"s")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("{}", "not an array"),
        ("[1]", r"\[0\]: not an object"),
        ('[{"urls": "stun:a"}, {"url": "stun:a"}]', r"\[1\]: 'url' is not one of urls, username and credential"),
        ("[{}]", r"\[0\]\.urls: neither a URI nor an array of them"),
        ('[{"urls": []}]', r"\[0\]\.urls: neither"),
        ('[{"urls": "http://a"}]', "not a STUN or TURN URI"),
        ('[{"urls": "turn:a", "credential": "hidden"}]', r"\[0\]\.username: a TURN server needs one"),
        ('[{"urls": "turn:a", "username": "u", "credential": 5}]', r"\[0\]\.credential: not a string"),
        ('[{"urls": "turn:a", "username": "", "credential": "c"}]', r"\[0\]\.username: a TURN server needs one"),
        ('[{"urls": "turn:a", "username": "u", "credential": ""}]', r"\[0\]\.credential: a TURN server needs one"),
        ('[{"urls": ["stun:a", "turns:a"], "credential": "c"}]', r"\[0\]\.username: a TURN server needs one"),
        ('[{"urls": "stun:a", "username": null}]', r"\[0\]\.username: not a string"),
        (f'[{{"urls": "turn:a", "username": "{"é" * 255}", "credential": "c"}}]', r"\.username: at most 509 bytes"),
        ('[{"urls": [null]}]', r"\[0\]\.urls: not a STUN or TURN URI"),
    ],
)
def test_an_error_in_a_list_is_named_with_its_path(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_ice_servers(text.encode())
    assert "hidden" not in str(caught.value)
