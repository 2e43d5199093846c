"""What SIGHUP changes in a running server, and what it leaves as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import jwt
import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from signaling import Options
from signaling.admin.site import AdminFactory
from signaling.admin.tokens import AdminTokens
from signaling.app.reloading import Reloader, ReloadRefused
from signaling.log.events import Events
from signaling.webhooks.delivery import Webhooks
from signaling.webhooks.signature import parse_secrets
from tests.integration.harness import Harness, Peer

KEY = "01234567890123456789012345678901"


class Server:
    """A server with a configuration file.

    Attributes:
        lines: of its log about SIGHUP.
    """

    def __init__(
        self, folder: Path, text: str, *arguments: str, webhooks: Webhooks | None = None, **harness: Any
    ) -> None:
        self.file = folder / "signaling.toml"
        self.file.write_text(text)
        options = Options({})
        options.parseOptions([f"--config={self.file}", *arguments])
        limits = {name: getattr(options.limits, name) for name in options.limits.__slots__}
        self.harness = Harness(
            allow_origins=options.allow_origins,
            proxy_header=options.proxy_header,
            ice_servers=lambda clock: options.ice_servers,
            portal=options.portal,
            log_level=options.log_level,
            **{**limits, **harness},
        )
        self.harness.factory.change(topic_rules=options.topic_rules)
        self.reloader = Reloader(options, self.harness.factory, webhooks=webhooks)
        self.lines: list[str] = []

    def log(self, event: LogEvent) -> None:
        if event.get("log_namespace") == "signaling" and "SIGHUP" in event["log_format"]:
            self.lines.append(formatEvent(event).removeprefix("SIGHUP: "))

    def reload(self, text: str) -> list[str]:
        """Change the file and reload it; returns the lines of the log."""
        self.file.write_text(text)
        self.lines = []
        globalLogPublisher.addObserver(self.log)
        try:
            self.reloader.reload()
        finally:
            globalLogPublisher.removeObserver(self.log)
        self.harness.run()
        return self.lines

    def refused(self, text: str) -> str:
        """Reload a wrong file; returns the reason, without the name of the file."""
        [line] = self.reload(text)
        return line.removeprefix("all stays as it is: ").removeprefix(f"{self.file}: ")

    def join(self, **headers: str) -> Peer:
        return self.harness.peer("/ws/room", headers)


def test_without_a_change_nothing_changes(tmp_path: Path) -> None:
    server = Server(tmp_path, "ping-interval = 5")
    assert server.reload("ping-interval = 5") == ["nothing changed"]
    assert server.reload("# a comment\nping-interval = 5\n") == ["nothing changed"]


def test_to_write_down_a_default_changes_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path, "")
    text = "port = 8081\nworkers = 1\nping-interval = 20\nmetrics = false\nlog-level = 'info'\nallow-origin = []"
    assert server.reload(text) == ["nothing changed"]
    assert server.reload("# none") == ["nothing changed"]


@pytest.mark.parametrize("emptied", ["", "\n \n", "\ufeff"])
def test_a_file_that_became_empty_changes_nothing(tmp_path: Path, emptied: str) -> None:
    server = Server(tmp_path, "allow-origin = 'https://a.example'\nmax-peers-per-topic = 2")
    assert server.refused(emptied) == "empty; if all options are to be unset, write a comment into it"
    assert b" 403 " in server.join(Origin="https://b.example").received
    assert server.harness.factory.limits.max_peers_per_topic == 2
    assert len(server.reload("# All by default.")) == 2
    assert server.join(Origin="https://b.example").heard()


def test_a_file_that_was_empty_before_may_stay_so(tmp_path: Path) -> None:
    server = Server(tmp_path, "")
    assert server.reload("") == ["nothing changed"]
    assert server.reload("ping-interval = 5") == ["ping-interval: 20 seconds -> 5"]
    assert server.refused("").startswith("empty; ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ice-servers = 'pipe'",
        "auth = 'jwt:pipe:alg=HS256'",
        "auth = 'file:pipe'",
        "turn-uri = 'turn:a'\nturn-secret-file = 'pipe'",
        "admin-listen = 'unix:a'\nadmin-token-file = 'pipe'",
        "webhook = 'https://a.example'\nwebhook-secret-file = 'pipe'",
        "ice-source = 'https://a.example'\nice-source-token-file = 'pipe'",
        "backplane = 'redis://a?password-file=pipe'",
    ],
)
def test_a_pipe_whose_writer_says_nothing_holds_up_no_reload(tmp_path: Path, text: str) -> None:
    server = Server(tmp_path, "# none")
    os.mkfifo(tmp_path / "pipe")
    # Stays open and has no end, so reading it would not return.
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    if text:
        server.file.write_text(text)
    else:
        server.file.unlink()
        server.file.symlink_to("pipe")
    with pytest.raises(ReloadRefused, match="not a regular file; a pipe can be read once, when the server starts"):
        server.reloader.prepare()
    os.close(writer)


def test_a_change_is_logged_with_the_old_and_the_new_value_once(tmp_path: Path) -> None:
    server = Server(tmp_path, "ping-interval = 5\nallow-origin = ['null']")
    text = "ping-timeout = 7.5\nallow-origin = ['null', 'https://a.example']"
    assert server.reload(text) == [
        'allow-origin: ["null"] -> ["null", "https://a.example"]',
        "ping-interval: 5 -> 20 seconds",
        "ping-timeout: 15 seconds -> 7.5",
    ]
    assert server.reload(text) == ["nothing changed"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max-topic-bytes = 9\n\nping-interval = 'soon'", "line 3: ping-interval: 'soon' is not a number of seconds"),
        ("max-topic-bytes = 9\nping", "line 2: not TOML: "),
        ("max-topic-bytes = 9\nping = 1", "line 2: ping: there is no such option"),
        ("max-topic-bytes = 9\nice-servers = 'missing'", "line 2: ice-servers: "),
        ("max-topic-bytes = 9\nauth = 'jwt:missing'", "line 2: auth jwt: "),
    ],
)
def test_a_wrong_file_changes_nothing_and_its_line_is_named(tmp_path: Path, text: str, reason: str) -> None:
    server = Server(tmp_path, "")
    assert server.refused(text).startswith(reason)
    assert server.harness.factory.limits.max_topic_bytes == 256
    assert server.reload("max-topic-bytes = 9") == ["max-topic-bytes: 256 bytes -> 9"]


def test_an_error_of_another_kind_is_logged_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, failures = Server(tmp_path, ""), list[LogEvent]()

    def fail() -> None:
        raise KeyError

    monkeypatch.setattr(server.reloader, "prepare", fail)
    globalLogPublisher.addObserver(failures.append)
    try:
        server.reloader.reload()
    finally:
        globalLogPublisher.removeObserver(failures.append)
    assert [event["log_failure"].type for event in failures] == [KeyError]


def test_an_option_of_the_command_line_still_takes_precedence(tmp_path: Path) -> None:
    server = Server(tmp_path, "", "--max-topic-bytes=100")
    assert server.reload("max-topic-bytes = 9") == ["nothing changed"]
    assert server.harness.factory.limits.max_topic_bytes == 100


def test_what_needs_a_restart_is_named_each_time_and_the_rest_changes(tmp_path: Path) -> None:
    server = Server(tmp_path, "resume-window = 30")
    text = "resume-window = 60\nport = 9000\nmax-topic-bytes = 9"
    restarts = ["port: a change needs a restart", "resume-window: a change needs a restart"]
    assert server.reload(text) == ["max-topic-bytes: 256 bytes -> 9", *restarts]
    limits = server.harness.factory.limits
    assert (limits.max_topic_bytes, limits.resume_window_seconds) == (9, 30)
    assert server.reload(text) == restarts
    assert server.reload("resume-window = 30\nmax-topic-bytes = 9") == ["nothing changed"]


def test_a_change_of_the_log_level_is_logged_whichever_way_it_goes(tmp_path: Path) -> None:
    server = Server(tmp_path, "log-level = 'error'")
    assert server.reload("log-level = 'debug'") == ['log-level: "error" -> "debug"']
    assert server.harness.factory.events.debug
    assert server.reload("log-level = 'error'") == ['log-level: "debug" -> "error"']
    assert not server.harness.factory.events.info


def test_relays_of_peers_that_are_there_are_logged_from_then_on(tmp_path: Path) -> None:
    server, events = Server(tmp_path, ""), list[str]()
    peer = server.harness.join("room")

    def note(event: LogEvent) -> None:
        events.append(event.get("event", ""))

    globalLogPublisher.addObserver(note)
    try:
        peer.offer(peer)
        assert "relayed" not in events
        server.reload("log-level = 'debug'")
        peer.offer(peer)
        assert "relayed" in events
    finally:
        globalLogPublisher.removeObserver(note)


def test_all_parts_of_the_log_get_a_new_level(tmp_path: Path) -> None:
    server, levels = Server(tmp_path, ""), list[Any]()
    server.reloader.log_levels.append(levels.append)
    server.reload("log-level = 'warn'")
    assert levels[-1] is LogLevel.warn


def test_a_new_origin_counts_and_peers_of_an_old_one_stay(tmp_path: Path) -> None:
    server = Server(tmp_path, "allow-origin = ['https://a.example']")
    peer = server.join(Origin="https://a.example")
    server.reload("allow-origin = ['https://b.example']")
    assert b" 403 " in server.join(Origin="https://a.example").received
    assert server.join(Origin="https://b.example").heard()
    assert not peer.lost


def test_other_trusted_proxies_name_their_clients_in_the_same_header_as_before(tmp_path: Path) -> None:
    server = Server(tmp_path, "", "--proxy-header=Forwarded")
    factory = server.harness.factory
    named = {b"forwarded": [b"for=192.0.2.9"], b"x-forwarded-for": [b"192.0.2.66"]}

    def client() -> str:
        return factory.client(IPv4Address("TCP", "10.0.0.1", 1), lambda name: named[name]).text

    assert client().startswith("10.0.0.1")
    server.reload("trusted-proxy = '10.0.0.0/8'")
    assert client() == "192.0.2.9"


def test_a_new_turn_secret_reaches_new_peers_and_all_others(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("north")
    text = "turn-uri = 'turn:a'\nturn-secret-file = 'secret'"
    server = Server(tmp_path, text)
    peers = [server.join() for _ in range(20)]
    for peer in peers:
        peer.heard()
    secret.write_text("south")
    assert server.reload(text) == ["turn-secret-file: its content has changed"]
    server.harness.advance(0.01)
    assert {message["type"] for peer in peers[:-1] for message in peer.heard()} == {"ice-servers"}
    secret.write_text("\n")
    assert server.refused(text).startswith("line 2: turn-secret-file: ")


def test_turn_servers_that_come_later_are_renewed_too(tmp_path: Path) -> None:
    server = Server(tmp_path, "")
    (tmp_path / "secret").write_text("north")
    peer = server.join()
    peer.heard()
    server.reload("turn-uri = 'turn:a'\nturn-secret-file = 'secret'\nturn-ttl = 100")
    server.harness.advance(0.01)
    assert [message["iceServers"][0]["urls"] for message in peer.heard()] == [["turn:a"]]
    server.harness.advance(51)
    assert [message["type"] for message in peer.heard()] == ["ice-servers"]


def test_a_new_key_counts_for_new_logins(tmp_path: Path) -> None:
    keys, text = tmp_path / "keys", "auth = 'jwt:keys:alg=HS256'"
    keys.write_text(KEY)
    server = Server(tmp_path, text)

    def token(key: str) -> str:
        claims = {"exp": 4_000_000_000, "signaling": {"topics": ["room"]}}
        return jwt.encode(claims, key, "HS256")

    peer = server.join(Authorization=f"Bearer {token(KEY)}")
    assert peer.heard()
    other = KEY[::-1]
    keys.write_text(other)
    assert server.reload(text) == ["auth: its content has changed"]
    assert b" 401 " in server.join(Authorization=f"Bearer {token(KEY)}").received
    assert server.join(Authorization=f"Bearer {token(other)}").heard()
    assert not peer.lost
    keys.write_text("short")
    assert "at least 32 bytes" in server.refused(text)


def test_access_control_begins_and_ends_with_a_restart_only(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    text = "auth = 'jwt:keys:alg=HS256'"
    assert Server(tmp_path, "").reload(text) == ["auth: a change needs a restart"]
    server = Server(tmp_path, text)
    assert server.reload("# none") == ["auth: a change needs a restart"]
    assert b" 401 " in server.join().received


def test_a_worker_sets_what_the_listener_has_read_too_without_a_line_in_the_log(tmp_path: Path) -> None:
    server = Server(tmp_path, "max-topic-bytes = 9")
    reloader, limits = server.reloader, server.harness.factory.limits
    server.file.write_text("max-topic-bytes = 10")
    fingerprint = reloader.prepare().options.fingerprint()
    server.file.write_text("max-topic-bytes = 11")
    assert reloader.prepare_as_worker(fingerprint) == "a file was changed meanwhile; send SIGHUP again"
    reloader.apply_as_worker()
    assert limits.max_topic_bytes == 9
    server.file.write_text("max-topic-bytes =")
    assert "line 1: not TOML" in str(reloader.prepare_as_worker(fingerprint))
    server.file.write_text("max-topic-bytes = 10")
    assert reloader.prepare_as_worker(fingerprint) is None
    assert limits.max_topic_bytes == 9
    reloader.apply_as_worker()
    assert limits.max_topic_bytes == 10


def test_each_process_of_several_has_its_share_of_a_new_bound_on_connections(tmp_path: Path) -> None:
    file = tmp_path / "signaling.toml"
    file.write_text("workers = 3\nmax-connections = 100")
    options = Options({})
    options.parseOptions([f"--config={file}"])
    for worker, share in enumerate([4, 3, 3]):
        factory = Harness().factory
        reloader = Reloader(options, factory, worker=worker, webhooks=None)
        file.write_text("workers = 3\nmax-connections = 10")
        reloader.apply(reloader.prepare())
        assert factory.connection_limits.most == share


def test_relative_paths_start_where_the_server_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ice.json").write_text("[]")
    server = Server(tmp_path, "", "--ice-servers=ice.json")
    monkeypatch.chdir("/")
    (tmp_path / "ice.json").write_text('[{"urls": "stun:a.example"}]')
    assert server.reload("") == ["ice-servers: its content has changed"]
    assert Path.cwd() == Path("/")


def test_a_new_secret_signs_webhooks(tmp_path: Path) -> None:
    secret, text = tmp_path / "secret", "webhook = 'https://a.example'\nwebhook-secret-file = 'secret'"
    secret.write_text("whsec_" + "a" * 32)
    clock, sender = Clock(), cast("Any", None)
    webhooks = Webhooks(sender, [], 1, clock, Events(LogLevel.info, clock.seconds), wall_clock=clock.seconds)
    server = Server(tmp_path, text, webhooks=webhooks)
    secret.write_text("whsec_" + "b" * 32)
    assert server.reload(text) == ["webhook-secret-file: its content has changed"]
    assert webhooks.keys == parse_secrets(secret.read_text())
    secret.write_text("b" * 32)
    assert server.refused(text).startswith(f"line 2: webhook-secret-file: {secret}: line 1 is not whsec_")
    restarts = ["webhook: a change needs a restart", "webhook-secret-file: a change needs a restart"]
    assert server.reload("# none") == restarts


# Limits


def test_bounds_on_connections_change_and_close_none(tmp_path: Path) -> None:
    server = Server(tmp_path, "")
    peers = [server.join() for _ in range(3)]
    server.reload("max-connections = 2")
    assert b" 503 " in server.join().received
    server.reload("max-connections-per-address = 1")
    late = server.join()
    assert late.heard()
    assert b" 429 " in server.join().received
    server.reload("max-connection-rate = 1\nconnection-burst = 1")
    assert server.join().heard()
    assert b" 429 " in server.join().received
    server.reload("max-peers-per-topic = 5")
    [welcome] = server.join().heard()
    assert welcome["code"] == "topic_full"
    assert not any(peer.lost for peer in [*peers, late])


def test_bounds_of_topics_by_their_names_change(tmp_path: Path) -> None:
    table = "[[topics]]\nmatch = 'r*'\nmax-peers = {}"
    server = Server(tmp_path, table.format(1))
    assert server.join().heard()
    [refusal] = server.join().heard()
    assert refusal["code"] == "topic_full"
    assert server.reload(table.format(2)) == [
        'topics: [{match = "r*", max-peers = 1}] -> [{match = "r*", max-peers = 2}]'
    ]
    assert len(server.join().heard()) == 2
    server.reload("# none")
    assert len(server.join().heard()) == 2


def test_a_rate_of_messages_begins_and_ends_for_peers_that_are_there(tmp_path: Path) -> None:
    server = Server(tmp_path, "")
    peer = server.harness.join("room")

    def codes() -> list[str]:
        for _ in range(3):
            peer.offer(peer)
        return [message.get("code", message["type"]) for message in peer.heard()]

    assert codes() == ["offer"] * 3
    server.reload("max-message-rate = 1\nmessage-burst = 2")
    assert codes() == ["offer", "offer", "rate_limited"]
    server.reload("# none")
    assert codes() == ["offer"] * 3


def test_messages_of_new_connections_may_be_longer(tmp_path: Path) -> None:
    server = Server(tmp_path, "max-message-bytes = 100")
    old = server.harness.join("room")
    server.reload("max-message-bytes = 1000")
    new = server.harness.join("room")
    new.offer(new, payload="x" * 500)
    assert [message["type"] for message in new.heard()] == ["offer"]
    old.offer(old, payload="x" * 500)
    assert old.closed == 1009


def test_times_that_run_change_too(tmp_path: Path) -> None:
    server = Server(tmp_path, "ping-interval = 1000\nping-timeout = 1000\nhandshake-timeout = 1000")
    peer, silent = server.join(), server.harness.connect()
    server.harness.advance(10)
    server.reload("ping-interval = 12\nhandshake-timeout = 15")
    assert peer.pings == 0
    server.harness.advance(2.1)
    assert peer.pings == 1
    assert not silent.lost
    server.harness.advance(3)
    assert silent.lost or silent.ended


def test_bounds_of_requests_change(tmp_path: Path) -> None:
    server = Server(tmp_path, "")
    server.reload("max-topic-bytes = 3\nmax-header-bytes = 500")
    assert b" 400 " in server.join().received
    peer = server.harness.peer("/ws/abc", {"X-Long": "x" * 500})
    assert b" 431 " in peer.received


# An application that changes its server by itself


@pytest.fixture
def harness() -> Harness:
    return Harness(resume_window_seconds=30)


@pytest.mark.parametrize(
    "wrong",
    [
        {"allow_origins": ["x"]},
        {"trusted_proxies": ["x"]},
        {"portal": object()},
        {"limits": Harness(resume_window_seconds=60).limits},
    ],
)
def test_a_wrong_change_changes_nothing(harness: Harness, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        harness.factory.change(**{"log_level": LogLevel.debug, "allow_origins": ["null"], **wrong})
    assert not harness.factory.events.debug
    assert harness.factory.origins.allow_any


def test_a_change_is_of_one_server_alone() -> None:
    one, other = Harness(), Harness()
    one.factory.change(limits=Harness(max_topic_bytes=9).limits)
    assert (one.factory.limits.max_topic_bytes, other.factory.limits.max_topic_bytes) == (9, 256)


TOKEN, NEXT_TOKEN = "one-token-0123456789", "next-token-0123456789"


def test_new_tokens_of_the_admin_api_replace_the_old_ones(tmp_path: Path) -> None:
    file, text = tmp_path / "tokens", "admin-listen = 'tcp:1'\nadmin-token-file = 'tokens'"
    file.write_text(TOKEN)
    server = Server(tmp_path, text)
    factory = server.harness.factory
    server.reloader.admin = admin = AdminFactory(factory, factory.asker, AdminTokens(TOKEN.encode()))

    def accepted() -> list[bool]:
        assert admin.tokens is not None
        return [admin.tokens.accept([f"Bearer {token}".encode()]) for token in (TOKEN, NEXT_TOKEN)]

    file.write_text(f"{NEXT_TOKEN}\nshort")
    assert "line 2" in server.refused(text)
    assert accepted() == [True, False]
    file.write_text(NEXT_TOKEN)
    assert server.reload(text) == ["admin-token-file: its content has changed"]
    assert accepted() == [False, True]
    # The port goes on to listen where it does.
    restarts = server.reload("admin-listen = 'unix:/run/a'")
    assert sorted(restarts) == ["admin-listen: a change needs a restart", "admin-token-file: a change needs a restart"]
    assert accepted() == [False, True]
