"""Whose token a line of the log is about: the subject, in every event of a peer, by every way in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.logger import LogLevel, eventAsText, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from signaling.log import paced_log
from signaling.log.forwarding import decode, encode
from signaling.log.json_format import format_json
from tests import issuer
from tests.integration.access import Session, enter
from tests.integration.harness import Harness, upgrade
from tests.issuer import token

MakeHarness = Callable[..., Harness]
WINDOW = 60


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """The events of this server's log from here on."""
    caught: list[Any] = []

    def catch(event: Any) -> None:
        if event.get("log_namespace") == "signaling":
            caught.append(event)

    globalLogPublisher.addObserver(catch)
    yield caught
    globalLogPublisher.removeObserver(catch)


@pytest.fixture
def harness(make_harness: MakeHarness, tmp_path: Path) -> Harness:
    """A server that takes tokens of the issuer, and logs everything."""
    return make_harness(
        portal=issuer.portal(tmp_path), resume_window_seconds=WINDOW, max_peers_per_topic=2, log_level=LogLevel.debug
    )


def subjects(events: list[Any], *names: str) -> list[tuple[str, str | None]]:
    """Return the names of events, of those that are meant, and whose they are by their JSON."""
    lines = [json.loads(format_json(event)) for event in events]
    return [(line["event"], line.get("subject")) for line in lines if line["event"] in names]


def test_every_event_of_a_peer_has_the_subject_of_its_token(harness: Harness, events: list[Any]) -> None:
    session = Session(harness, token(sub="Ada"))
    peer = session.resume(token(sub="Ada"))
    peer.say({"type": "token", "token": token(sub="Ada")})
    peer.say({"type": "offer", "to": "nobody", "payload": 0})
    peer.say({"type": "offer", "to": json.loads(peer.texts[0])["selfId"], "payload": 0})
    peer.reset()
    harness.advance(WINDOW + 1)
    names = ["joined", "detached", "resumed", "token_renewed", "error_sent", "relayed", "left"]
    # A client that comes back comes to another node, if there is one.
    names += ["handed_off"] * (len(harness.factories) > 1)
    found = subjects(events, *names)
    assert {name for name, _ in found} == set(names)
    assert {subject for _, subject in found} == {"Ada"}
    assert formatEvent(events[-1]).endswith("it did not resume in time (subject 'Ada')")


def test_a_client_that_is_not_let_in_is_named_once_its_token_is_right(
    make_server: MakeHarness, tmp_path: Path, events: list[Any]
) -> None:
    server = make_server(portal=issuer.portal(tmp_path), max_connections_per_address=1, max_peers_per_topic=1)
    enter(server, token(sub="Ada"))
    for subject, topic in (("Eve", "another"), ("Bob", "room")):
        server.request(upgrade(f"/ws/{topic}", Authorization=f"Bearer {token(sub=subject)}"))
    server.request(upgrade("/ws/room", Authorization=f"Bearer {token(sub='Eve', number=1)}"))
    assert subjects(events, "joined", "refused") == [
        *[("joined", "Ada"), ("refused", "Eve"), ("refused", "Bob")],
        # A token that is not right says nothing.
        ("refused", None),
    ]


def test_a_peer_that_an_operator_removes_is_named(make_server: MakeHarness, tmp_path: Path, events: list[Any]) -> None:
    server = make_server(portal=issuer.portal(tmp_path), notices=True)
    peer = enter(server, token(sub="Ada"))
    server.factory.kick("room", peer.id)
    server.run()
    assert subjects(events, "joined", "left") == [("joined", "Ada"), ("left", "Ada")]


@pytest.mark.parametrize("end", ["closed", "drained"])
def test_of_many_that_lose_their_connections_at_once_each_is_detached_and_then_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, events: list[Any], end: str
) -> None:
    # Most lines wait for later passes of the reactor.
    monkeypatch.setattr(paced_log, "_LINE_BURST", 3)
    monkeypatch.setattr(paced_log, "_LINES_PER_PASS", 1)
    server = Harness(portal=issuer.portal(tmp_path), resume_window_seconds=WINDOW)
    peers = [enter(server, token(sub="Ada")) for _ in range(8)]
    for peer in peers:
        peer.transport.protocol.connectionLost(Failure(ConnectionLost()))
        peer.transport.lost = True
    if end == "closed":
        server.factory.close_topic("room")
    else:
        server.drain()
    server.run()
    expected = [("joined", "Ada"), ("detached", "Ada"), ("left", "Ada")]
    for peer in peers:
        assert subjects([event for event in events if event.get("peer") == peer.id], *dict(expected)) == expected


def test_a_peer_that_joined_while_the_log_was_silent_is_named(
    make_server: MakeHarness, tmp_path: Path, events: list[Any]
) -> None:
    server = make_server(portal=issuer.portal(tmp_path), log_level=LogLevel.warn)
    peer = enter(server, token(sub="Ada"))
    server.factory.change(log_level=LogLevel.info)
    peer.leave()
    assert subjects(events, "joined", "left") == [("left", "Ada")]


def test_a_client_of_a_full_topic_is_named(harness: Harness, events: list[Any]) -> None:
    for subject in ("Ada", "Bob", "Eve"):
        harness.peer("/ws/room", {"Authorization": f"Bearer {token(sub=subject)}"})
    assert subjects(events, "rejected") == [("rejected", "Eve")]


def test_a_new_token_changes_the_subject_of_no_peer(
    make_server: MakeHarness, tmp_path: Path, events: list[Any]
) -> None:
    server = make_server(portal=issuer.portal(tmp_path))
    peer = enter(server, token(sub="Ada"))
    peer.say({"type": "token", "token": token(sub="Eve")})
    peer.leave()
    enter(server, token()).leave()
    assert subjects(events, "joined", "left") == [("joined", "Ada"), ("left", "Ada"), ("joined", None), ("left", None)]


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        ("Ada\n2026-11-28 [signaling#info] forged", "Ada\n2026-11-28 [signaling#info] forged"),
        ("\x1b[31mred\x00\u2028\u202e", "\x1b[31mred\x00\u2028\u202e"),
        ('{"a": {b} } %s', '{"a": {b} } %s'),
        ("x" * 256, "x" * 256),
        ("x" * 9_000, "x" * 255 + "\u2026"),
        ("", ""),
    ],
)
def test_a_subject_is_quoted_and_bounded_so_that_it_forges_no_line(
    make_server: MakeHarness, tmp_path: Path, events: list[Any], subject: str, shown: str
) -> None:
    server = make_server(portal=issuer.portal(tmp_path))
    enter(server, token(sub=subject))
    (joined,) = events
    # As it is, and as a worker forwards it.
    for event in (joined, *decode(encode(joined))):
        line, text = format_json(event), eventAsText(event)
        assert json.loads(line)["subject"] == shown
        assert line.isascii()
        assert text.endswith(f"(subject {shown!r})")
        assert text.isprintable()
        assert max(len(line), len(text)) < 2_200


def test_without_access_control_no_event_has_a_subject(make_server: MakeHarness, events: list[Any]) -> None:
    make_server().join("room").leave()
    assert subjects(events, "joined", "left") == [("joined", None), ("left", None)]
    assert all("subject" not in event for event in events)
