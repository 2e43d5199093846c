"""What providers of ICE servers answer, as documented by each, and answers that are wrong."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from signaling.ice_source.answer import parse_answer
from signaling.ice_source.provider import MAX_TTL_SECONDS

TURN = "turn:turn.example.com:3478?transport=udp"
CREDENTIAL = {"username": "bc91b63e2b5d759f", "credential": "hidden"}

# developers.cloudflare.com/realtime/turn/generate-credentials
CLOUDFLARE = {
    "iceServers": [
        {"urls": ["stun:stun.cloudflare.com:3478", "stun:stun.cloudflare.com:53"]},
        {
            "urls": [
                "turn:turn.cloudflare.com:3478?transport=udp",
                "turn:turn.cloudflare.com:53?transport=udp",
                "turn:turn.cloudflare.com:3478?transport=tcp",
                "turn:turn.cloudflare.com:80?transport=tcp",
                "turns:turn.cloudflare.com:5349?transport=tcp",
                "turns:turn.cloudflare.com:443?transport=tcp",
            ],
            **CREDENTIAL,
        },
    ]
}
# The same service's older address, .../credentials/generate.
OLDER_CLOUDFLARE = {
    "iceServers": {
        "urls": [
            "stun:stun.cloudflare.com:3478",
            "turn:turn.cloudflare.com:3478?transport=udp",
            "turns:turn.cloudflare.com:5349?transport=tcp",
        ],
        **CREDENTIAL,
    }
}
# www.twilio.com/docs/stun-turn/api
TWILIO = {
    "username": CREDENTIAL["username"],
    "ice_servers": [
        {"url": "stun:global.stun.twilio.com:3478", "urls": "stun:global.stun.twilio.com:3478"},
        *(
            {"url": uri, "urls": uri, **CREDENTIAL}
            for uri in (
                "turn:global.turn.twilio.com:3478?transport=udp",
                "turn:global.turn.twilio.com:3478?transport=tcp",
                "turn:global.turn.twilio.com:443?transport=tcp",
            )
        ),
    ],
    "date_updated": "Fri, 01 May 2020 01:42:57 +0000",
    "account_sid": "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ttl": "86400",
    "date_created": "Fri, 01 May 2020 01:42:57 +0000",
    "password": "hidden",
}
# www.metered.ca/docs/turn-rest-api/get-credential
METERED = [
    {"urls": "stun:stun.relay.metered.ca:80"},
    {"urls": "turn:global.relay.metered.ca:80", **CREDENTIAL},
    {"urls": "turn:global.relay.metered.ca:80?transport=tcp", **CREDENTIAL},
    {"urls": "turn:global.relay.metered.ca:443", **CREDENTIAL},
    {"urls": "turns:global.relay.metered.ca:443?transport=tcp", **CREDENTIAL},
]


def body(answer: Any) -> bytes:
    return json.dumps(answer).encode()


def listed(uris: Any) -> list[str]:
    return uris if isinstance(uris, list) else [uris]


@pytest.mark.parametrize(
    ("answer", "entries", "ttl"),
    [
        (CLOUDFLARE, CLOUDFLARE["iceServers"], None),
        (OLDER_CLOUDFLARE, [OLDER_CLOUDFLARE["iceServers"]], None),
        (TWILIO, TWILIO["ice_servers"], 86_400),
        (METERED, METERED, None),
    ],
    ids=["Cloudflare", "older Cloudflare", "Twilio", "Metered"],
)
def test_the_servers_of_every_provider_become_those_of_a_browser(answer: Any, entries: Any, ttl: int | None) -> None:
    parsed = parse_answer(body(answer))
    expected = [
        {"urls": listed(entry["urls"])} | {key: entry[key] for key in ("username", "credential") if key in entry}
        for entry in entries
    ]
    assert (parsed.servers, parsed.ttl_seconds, parsed.left_out) == (expected, ttl, "")


def test_url_counts_where_there_are_no_urls() -> None:
    parsed = parse_answer(body([{"url": "stun:a"}, {"url": "stun:b", "urls": ["stun:c"]}]))
    assert parsed.servers == [{"urls": ["stun:a"]}, {"urls": ["stun:c"]}]


def test_unknown_keys_are_left_out() -> None:
    entry = {"urls": TURN, **CREDENTIAL, "credentialType": "password", "label": {"x": 1}}
    assert parse_answer(body({"iceServers": [entry], "v": 2})).servers == [{"urls": [TURN], **CREDENTIAL}]


@pytest.mark.parametrize(
    ("entry", "kept", "reason"),
    [
        ({"urls": ["stuns:a", TURN], **CREDENTIAL}, [TURN], "urls: not a STUN or TURN URI"),
        ({"urls": [7, None, TURN], **CREDENTIAL}, [TURN], "urls: not a STUN or TURN URI"),
        ({"urls": [["stun:a"], [], TURN], **CREDENTIAL}, [TURN], "urls: not a STUN or TURN URI"),
        ({"urls": [TURN, "stun:a"]}, ["stun:a"], "username: a TURN server needs one"),
        ({"urls": [TURN, "stun:a"], "username": 7, "credential": "hidden"}, ["stun:a"], "username: a TURN server"),
        ({"urls": [TURN], "username": "u" * 510, "credential": "hidden"}, [], "username: at most 509 bytes"),
        ({"urls": [], **CREDENTIAL}, [], "a server has no urls"),
        ({"urls": {"a": 1}}, [], "urls: not a STUN or TURN URI"),
        ({**CREDENTIAL}, [], "a server has no urls"),
        ("stun:a", [], "a server is not an object"),
        ([["stun:a"]], [], "a server is not an object"),
    ],
)
def test_what_browsers_would_not_accept_is_left_out(entry: Any, kept: list[str], reason: str) -> None:
    parsed = parse_answer(body([entry, {"urls": "stun:good"}]))
    assert [uri for server in parsed.servers for uri in server["urls"]] == [*kept, "stun:good"]
    assert re.match(reason, parsed.left_out)
    assert "hidden" not in parsed.left_out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "the answer is not JSON"),
        (b"<html>hidden</html>", "the answer is not JSON"),
        (b'{"iceServers": [', "the answer is not JSON"),
        (b"\xff", "the answer is not JSON"),
        (b"[" * 20_000, "the answer is not JSON"),
        (b'[{"urls": "stun:\\ud800"}]', "the answer is not JSON"),
        (b"null", "the answer has no ICE servers that clients accept: a server is not an object"),
        (b"{}", "the answer has no ICE servers that clients accept: a server is not an object"),
        (b"[]", "the answer has no ICE servers that clients accept"),
        (b'"hidden"', "the answer has no ICE servers"),
        (b'{"error": "hidden"}', "the answer has no ICE servers"),
        (b'{"iceServers": null}', "the answer has no ICE servers"),
        (b'{"iceServers": 7}', "the answer has no ICE servers"),
        (body([{"urls": [f"stun:host{n}.example.com" for n in range(1000)]}]), "the answer has more than 8192 bytes"),
    ],
)
def test_an_answer_without_servers_is_refused_and_not_quoted(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}") as caught:
        parse_answer(text)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        (600, 600),
        ("600", 600),
        (600.0, 600),
        (600.5, 600),
        (10**30, MAX_TTL_SECONDS),
        (1e300, MAX_TTL_SECONDS),
        ("9" * 5_000, MAX_TTL_SECONDS),
        *((wrong, None) for wrong in (0, -5, "0", "-5", "", "1h", "\u0661", 0.5, -1.5, True, None, [], {})),
    ],
)
def test_the_time_to_live_counts_if_it_makes_sense(ttl: Any, seconds: int | None) -> None:
    answer = {"ttl": ttl, "iceServers": [{"urls": "stun:a"}]}
    assert parse_answer(body(answer)).ttl_seconds == seconds
