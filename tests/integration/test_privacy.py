"""What of a person the server stores, tells others and forgets, as docs/privacy.md states it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from signaling.client import session
from tests.harness.redis_client import RedisClient
from tests.integration.backends import RedisStore
from tests.integration.harness import Harness, upgrade

BROWSER = Path(session.__file__).parents[1] / "browser"
# Whatever keeps something in a browser beyond the page.
STORAGE = (
    r"localStorage|sessionStorage|indexedDB|document\.cookie|cookieStore|\bcaches\b|serviceWorker|navigator\.storage"
)
SECRETS = {"sdp": "v=0 o=secret-session", "candidate": "candidate:secret 1 udp 198.51.100.7"}


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/signaling.js", "/demo.js", "/ws/room?check", "/nope"])
def test_no_answer_sets_a_cookie_and_none_is_read(path: str) -> None:
    harness = Harness(demo=True)
    answers = []
    for cookie in ("", "Cookie: session=1\r\n"):
        status, headers, body = harness.request(f"GET {path} HTTP/1.1\r\nHost: server\r\n{cookie}\r\n")
        assert "set-cookie" not in headers
        answers.append((status, body))
    assert answers[0] == answers[1]


def test_an_upgrade_sets_no_cookie() -> None:
    assert "set-cookie" not in Harness().request(upgrade("/ws/room", Cookie="session=1"))[1]


def test_the_pages_and_the_client_for_browsers_store_nothing_there() -> None:
    scripts = [*BROWSER.rglob("*.js"), *BROWSER.rglob("*.html")]
    assert len(scripts) > 3
    for script in scripts:
        assert not re.search(STORAGE, script.read_text()), script.name


def test_peers_learn_from_the_server_what_others_give_and_not_where_they_are() -> None:
    harness = Harness(resume_window_seconds=30)
    harness.host = "203.0.113.77"
    other = harness.join("room")
    harness.host = "192.0.2.1"
    peer = harness.join("room", {"name": "Ada"})
    other.offer(peer, payload=SECRETS)
    other.reset()
    harness.advance(31)
    assert [message["type"] for message in peer.heard()] == ["offer", "peer-left"]
    assert b"203.0.113.77" not in peer.received


def stored(path: str, prefix: str) -> str:
    """Return all that a Redis server has under a prefix, as text."""
    client = RedisClient(path)
    found: list[Any] = []
    for key in client.command("KEYS", f"{prefix}*"):
        read = {b"hash": "HGETALL", b"set": "SMEMBERS", b"string": "GET"}
        found.append((key, client.command(read[client.command("TYPE", key)], key)))
    client.close()
    return repr(found)


@pytest.mark.cluster
@pytest.mark.redis
def test_redis_has_the_metadata_of_peers_that_are_there_and_nothing_of_those_that_left(redis_socket: str) -> None:
    stores: list[RedisStore] = []

    def store(seconds: Any) -> RedisStore:
        stores.append(RedisStore(redis_socket))
        return stores[0]

    harness = Harness(nodes=2, store=store, resume_window_seconds=30)
    try:
        peers = [harness.join("my-room", {"name": name}) for name in ("Ada", "Bob")]
        for sender, target in (peers, peers[::-1]):
            sender.offer(target, payload=SECRETS)
            assert target.heard()[-1]["payload"] == SECRETS
        present = stored(redis_socket, stores[0].prefix)
        assert all(text in present for text in ("Ada", "Bob", "my-room", peers[0].id))
        tokens = [
            json.loads(re.findall(r'"resume":(\{.*?\})', peer.received.decode("latin-1"))[0])["token"] for peer in peers
        ]
        for secret in (*tokens, "secret", harness.host, quote("198.51.100.7")):
            assert secret not in present
        for peer in peers:
            peer.leave()
        left = stored(redis_socket, stores[0].prefix)
        assert not any(text in left for text in ("Ada", "Bob", "my-room", peers[0].id))
    finally:
        harness.close()
