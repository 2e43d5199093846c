"""When a provider of ICE servers is asked, how, and what becomes of what it answers; with a fake clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from signaling import IceServers, IceSource, Turn
from signaling.ice_source.provider import Provider, Request, SourceSettings, make_request
from signaling.ice_source.request import FetchFailed, HttpFetcher
from signaling.server_identity import Untrusted

URL = "https://turn.example.com/v1/keys/some-key?region=eu"
TTL = 3600


class FakeProvider:
    """Answers each request with what a test says, and notes when it came."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.requests: list[Request] = []
        self.times: list[float] = []
        self.answer: Callable[[], Any] = lambda: self.servers("first")

    def servers(self, name: str, **more: Any) -> Deferred[bytes]:
        return succeed(json.dumps({"iceServers": [{"urls": [f"stun:{name}"]}], **more}).encode())

    def fails(self, reason: str = "it answered 500") -> Deferred[bytes]:
        return fail(FetchFailed(reason))

    def fetch(self, request: Request) -> Deferred[bytes]:
        self.requests.append(request)
        self.times.append(self._clock.seconds())
        answer: Deferred[bytes] = self.answer()
        return answer


class Case:
    """A source, its provider, and the log; peers watch the ICE servers.

    Attributes:
        log: the kind of each line, and its fields.
        changes: how often peers get others.
    """

    def __init__(self, url: str = URL, token: Callable[[], str] = lambda: "secret", ttl: int = TTL) -> None:
        self.clock = Clock()
        self.provider = FakeProvider(self.clock)
        self.ice_servers = IceServers([{"urls": ["stun:fixed"]}])
        self.ice_servers.watch(self._changed)
        self.source = IceSource(url, token, ttl, reactor=self.clock, fetcher=self.provider)
        self.log: list[tuple[Any, ...]] = []
        self.changes = 0

    def _changed(self) -> None:
        self.changes += 1

    def start(self) -> None:
        self.source.start(self.ice_servers, self)

    def advance(self, seconds: float) -> None:
        """Let time pass, by a second at a time."""
        self.clock.pump([1.0] * int(seconds))

    @property
    def uris(self) -> list[str]:
        servers = json.loads(self.ice_servers.text("peer") or b"[]")
        return [uri for server in servers for uri in server["urls"]]

    def ice_servers_fetched(self, url: str, count: int, seconds: int, reason: str) -> None:
        self.log.append(("fetched", url, count, seconds, reason))

    def ice_servers_not_fetched(self, url: str, count: int, reason: str) -> None:
        self.log.append(("not fetched", url, count, reason))

    def ice_servers_expired(self, url: str) -> None:
        self.log.append(("expired", url))


@pytest.fixture
def case() -> Case:
    return Case()


# When


def test_it_is_asked_at_the_start_and_at_half_of_the_life_of_its_answers(case: Case) -> None:
    case.start()
    assert case.uris == ["stun:fixed", "stun:first"]
    assert case.log == [("fetched", "https://turn.example.com", 1, TTL, "")]
    case.provider.answer = lambda: case.provider.servers("second")
    case.advance(TTL / 2 - 1)
    assert case.uris == ["stun:fixed", "stun:first"]
    case.advance(1)
    assert case.uris == ["stun:fixed", "stun:second"]
    case.advance(TTL)
    assert case.provider.times == [0, TTL / 2, TTL, 1.5 * TTL]
    assert len(case.log) == 1


@pytest.mark.parametrize(("ttl", "renewal"), [(600, 300), ("7200", 3600), (1, 30), (0, TTL / 2)])
def test_the_providers_word_on_the_life_counts(case: Case, ttl: Any, renewal: float) -> None:
    case.provider.answer = lambda: case.provider.servers("first", ttl=ttl)
    case.start()
    case.advance(renewal)
    assert case.provider.times == [0, renewal]


def test_peers_keep_what_they_have_while_the_provider_is_asked(case: Case) -> None:
    case.provider.answer = Deferred
    case.start()
    assert case.uris == ["stun:fixed"]
    case.advance(5)
    assert (case.source.age_seconds, case.log, case.changes) == (5, [], 0)


def test_peers_are_told_only_of_other_servers(case: Case) -> None:
    case.start()
    case.advance(2 * TTL)
    assert (len(case.provider.times), case.changes) == (5, 1)


# Outages


def test_the_last_good_answer_is_kept_through_an_outage_and_the_provider_asked_more_and_more_slowly(case: Case) -> None:
    case.start()
    case.provider.answer = case.provider.fails
    case.advance(TTL / 2)
    assert case.uris == ["stun:fixed", "stun:first"]
    case.advance(TTL / 2 - 1)
    pauses = [after - before for before, after in zip(case.provider.times[1:], case.provider.times[2:], strict=False)]
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert set(pauses[8:]) == {60}
    assert [count for kind, _, count, *_ in case.log if kind == "not fetched"] == [1, 2, 4, 8, 16, 32]
    case.provider.answer = lambda: case.provider.servers("second")
    case.advance(60)
    assert case.uris == ["stun:fixed", "stun:second"]
    assert case.log[-1] == ("fetched", "https://turn.example.com", 1, TTL, "")
    assert case.source.age_seconds < 60


def test_after_an_outage_the_first_retry_is_quick_again(case: Case) -> None:
    succeeds = iter([False] * 6 + [True])
    case.provider.answer = lambda: case.provider.servers("a") if next(succeeds, False) else case.provider.fails()
    case.start()
    case.advance(63 + TTL / 2 + 3)
    assert case.provider.times[-3:] == [63 + TTL / 2, 64 + TTL / 2, 66 + TTL / 2]


def test_servers_that_have_expired_stay_and_that_is_logged_once(case: Case) -> None:
    case.start()
    case.provider.answer = case.provider.fails
    case.advance(3 * TTL)
    assert case.uris == ["stun:fixed", "stun:first"]
    assert [line for line in case.log if line[0] == "expired"] == [("expired", "https://turn.example.com")]
    assert case.source.age_seconds == 3 * TTL
    case.provider.answer = lambda: case.provider.servers("second")
    case.advance(60)
    case.provider.answer = case.provider.fails
    case.advance(2 * TTL)
    assert len([line for line in case.log if line[0] == "expired"]) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: fail(FetchFailed("it answered 401")), "it answered 401"),
        (lambda: succeed(b"<html>secret</html>"), "the answer is not JSON"),
        (lambda: succeed(b'{"iceServers": []}'), "the answer has no ICE servers that clients accept"),
        (lambda: fail(RuntimeError("secret")), "RuntimeError"),
    ],
)
def test_a_failure_is_logged_without_what_was_sent_or_received(case: Case, answer: Any, reason: str) -> None:
    case.provider.answer = answer
    case.start()
    assert case.log == [("not fetched", "https://turn.example.com", 1, reason)]
    case.provider.answer = lambda: case.provider.servers("first")
    case.advance(1)
    assert case.uris == ["stun:fixed", "stun:first"]


def test_what_is_left_out_is_logged_when_it_changes(case: Case) -> None:
    def answer() -> Deferred[bytes]:
        return succeed(json.dumps([{"urls": ["stun:a", *extra]}]).encode())

    extra = ["stuns:b"]
    case.provider.answer = answer
    case.start()
    case.advance(TTL)
    extra.clear()
    case.advance(TTL)
    reasons = [reason for _, _, _, _, reason in case.log]
    assert [reason[:24] for reason in reasons] == ["urls: not a STUN or TURN", ""]


# The end


def test_a_source_that_is_stopped_asks_no_more_and_leaves_no_timer(case: Case) -> None:
    case.start()
    case.source.stop()
    assert (case.clock.getDelayedCalls(), case.source.age_seconds) == ([], 0)
    case.start()
    assert case.provider.times == [0, 0]


@pytest.mark.parametrize("body", [b"", b"{}"], ids=["the request was written", "its body is being written"])
def test_what_ended_the_connection_is_the_reason_whenever_it_ends(body: bytes) -> None:
    reactor = MemoryReactorClock()
    fetched = HttpFetcher(reactor).fetch(Request(b"POST", b"http://127.0.0.1:8080/", None, None, body))
    reasons: list[str] = []
    fetched.addErrback(lambda failure: reasons.append(failure.getErrorMessage()))
    factory = reactor.tcpClients[0][2]
    connection = factory.buildProtocol(None)
    connection.makeConnection(StringTransport())
    connection.connectionLost(Failure(Untrusted("its certificate is not for 127.0.0.1")))
    assert reasons == ["its certificate is not for 127.0.0.1"]


def test_a_request_is_cancelled_when_its_source_is_stopped(case: Case) -> None:
    cancelled: list[Any] = []
    case.provider.answer = lambda: Deferred(cancelled.append)
    case.start()
    case.source.stop()
    assert len(cancelled) == 1
    assert (case.clock.getDelayedCalls(), case.log) == ([], [])


# How


@pytest.mark.parametrize(
    ("url", "token", "expected"),
    [
        (
            URL,
            "cf-token",
            Request(b"POST", URL.encode(), b"Bearer cf-token", b"application/json", b'{"ttl":3600}'),
        ),
        (
            URL,
            "AC12:pass:word",
            Request(
                b"POST", URL.encode(), b"Basic QUMxMjpwYXNzOndvcmQ=", b"application/x-www-form-urlencoded", b"Ttl=3600"
            ),
        ),
        (
            "https://my.metered.live/api/v1/turn/credentials?apiKey={token}",
            "a&b/c:d",
            Request(b"GET", b"https://my.metered.live/api/v1/turn/credentials?apiKey=a%26b%2Fc%3Ad"),
        ),
        (URL, "", Request(b"GET", URL.encode())),
        ("https://a.example?apiKey={token}", "x", Request(b"GET", b"https://a.example/?apiKey=x")),
        ("https://a.example", "", Request(b"GET", b"https://a.example/")),
    ],
    ids=["Cloudflare", "Twilio", "Metered", "without a token", "a query alone", "a host alone"],
)
def test_a_token_says_how_the_provider_is_asked(url: str, token: str, expected: Request) -> None:
    assert make_request(Provider(url), token, TTL) == expected


def test_a_token_is_read_again_for_each_request(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  one\n")
    case = Case(token=SourceSettings(URL, str(path)).read_token)
    case.start()
    path.write_text("two\n")
    case.advance(TTL / 2)
    assert [request.authorization for request in case.provider.requests] == [b"Bearer one", b"Bearer two"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b" \n", "not a token"),
        (b"secret\nsecond", "not a token: one line of ASCII, at most 4096 bytes"),
        ("secrét".encode(), "not a token"),
        (b"s" * 4097, "not a token"),
    ],
)
def test_a_file_without_a_token_is_a_failure_that_names_it(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    case = Case(token=SourceSettings(URL, str(path)).read_token)
    case.start()
    assert case.provider.requests == []
    [(_, _, _, text)] = case.log
    assert text.startswith(f"{path}: {reason}")
    assert "secr" not in text.removeprefix(str(path))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "it is not a URL that begins with https://"),
        ("turn.example.com/secret", "it is not a URL that begins with https://"),
        ("ftp://turn.example.com/secret", "it is not a URL that begins with https://"),
        ("https:///secret", "it is not a URL that begins with https:// and names a host"),
        ("https://h:0/secret", "it is not a URL"),
        ("https://h:x/secret", "it is not a URL"),
        ("https://[::1/secret", "it is not a URL"),
        ("https://h/secret é", "it may have ASCII characters alone"),
        ("https://h/a secret", "it may have ASCII characters alone"),
        ("https://h/a\nsecret", "it may have ASCII characters alone"),
        ("https://u:secret@h/", "it may have no user name and password"),
        ("https://h/#secret", "it may have no fragment"),
        ("http://turn.example.com/secret", "it has to begin with https://"),
        ("http://192.0.2.1/secret", "it has to begin with https://"),
    ],
)
def test_a_url_that_is_wrong_is_refused_and_not_quoted(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}") as caught:
        IceSource(url, reactor=Clock())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:8000/x", "http://127.0.0.2/", "http://[::1]:80", "https://h?x=1"])
def test_plain_http_is_for_this_machine_alone(url: str) -> None:
    IceSource(url, reactor=Clock())


@pytest.mark.parametrize("ttl", [0, 59, 31 * 86_400 + 1])
def test_a_time_to_live_is_bounded(ttl: int) -> None:
    with pytest.raises(ValueError, match="is not from 60 to 2678400 seconds"):
        IceSource(URL, ttl_seconds=ttl, reactor=Clock())


def test_neither_url_nor_token_is_shown() -> None:
    request = make_request(Provider(URL), "secret-token", TTL)
    assert not {"some-key", "secret-token"} & set(repr([Provider(URL), request]).replace("/", " ").split())
    assert "secret-token" not in repr(request)
    assert str(Provider("https://h:8443/path/secret?x=secret")) == "https://h:8443"


# Beside other servers


def test_fixed_servers_come_first_then_turn_then_the_providers() -> None:
    turn = Turn(("turn:own",), b"s")
    servers = IceServers([{"urls": "stun:fixed"}], turn, wall_clock=lambda: 0.0)
    servers.provide([{"urls": ["stun:provided"]}])
    listed = json.loads(servers.text("peer") or b"")
    assert [server["urls"] for server in listed] == ["stun:fixed", ["turn:own"], ["stun:provided"]]


def test_servers_that_browsers_would_not_accept_are_not_provided() -> None:
    servers = IceServers()
    with pytest.raises(ValueError, match=r"^\[0\]\.username: a TURN server needs one"):
        servers.provide([{"urls": "turn:a"}])
    assert servers.text("peer") is None
