"""ICE servers of a provider: real requests to a local site that is good or bad, and a real server that asks it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.harness.certificates import self_signed
from tests.harness.http_site import Site, answer, http_site
from tests.harness.server import Server, serving

BODY = b'{"iceServers":[{"urls":"turn:turn.example.com","username":"u","credential":"provided"}]}'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
# A request that takes longer is given up. All tests wait for it, once.
SECONDS = 8.0

FETCH = f"""
import json, sys
from twisted.internet import defer, reactor, task
from signaling.ice_source import request
from signaling.ice_source.provider import Provider, make_request

request.ANSWER_SECONDS = {SECONDS}

def fetched(body):
    return {{"body": body.decode()}}

def failed(failure):
    failure.trap(request.FetchFailed)
    return {{"error": str(failure.value)}}

def fetch(fetcher, url):
    return fetcher.fetch(make_request(Provider(url), "secret-token", 600)).addCallbacks(fetched, failed)

async def main(reactor, *urls):
    fetcher = request.HttpFetcher(reactor)
    outcomes = await defer.gatherResults([fetch(fetcher, url) for url in urls])
    for _ in range(1_000):
        connections = [reader for reader in reactor.getReaders() if hasattr(reader, "getPeer")]
        if not connections:
            break
        await task.deferLater(reactor, 0.02)  # There is no event for the last of them.
    left = [call for call in reactor.getDelayedCalls() if call.getTime() - reactor.seconds() > 1]
    print(json.dumps([dict(zip(urls, outcomes)), len(connections), len(left)]))

task.react(lambda reactor, *urls: defer.ensureDeferred(main(reactor, *urls)), sys.argv[1:])
"""


def forever(start: bytes, data: bytes, pause: threading.Event | None = None) -> Any:
    """Send the same again and again, until the client hangs up."""

    def send(sock: Any) -> None:
        sock.sendall(start)
        while True:
            sock.sendall(data)
            if pause is not None:
                pause.wait(0.05)

    return send


def silent(sock: Any) -> None:
    """Send half of an answer, and nothing more."""
    sock.sendall(answer(200, BODY)[:-10])
    sock.recv(1)


NEVER = threading.Event()
TOO_LONG = "its answer is longer than 32768 bytes"
TOO_LATE = f"it does not answer within {SECONDS:g} s"
# The outcome of each path: the body, or the error.
OUTCOMES: dict[str, tuple[Any, str | bytes]] = {
    "/good": (answer(200, BODY), BODY),
    "/created": (answer(201, BODY, "Content-Type: application/json"), BODY),
    "/chunked": (CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), BODY),
    "/until-the-end": (b"HTTP/1.0 200 OK\r\n\r\n" + BODY, BODY),
    "/continued": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(200, BODY), BODY),
    "/401": (answer(401, b"secret-token"), "it answered 401"),
    "/204": (answer(204), "it answered 204"),
    "/500": (answer(500, b"x" * 100_000), "it answered 500"),
    "/redirect": (answer(302, b"", "Location: /good"), "it answered 302; redirects are not followed"),
    "/slow-head": (lambda sock: sock.recv(1), TOO_LATE),
    "/slow-body": (silent, TOO_LATE),
    "/trickle": (forever(CHUNKED, b"1\r\nx\r\n", NEVER), TOO_LATE),
    "/huge": (answer(200, b" " * 40_000), TOO_LONG),
    "/endless": (forever(CHUNKED, b"4\r\nxxxx\r\n"), TOO_LONG),
    "/endless-head": (forever(b"HTTP/1.1 200 OK\r\n", b"X-Header: secret-token\r\n"), TOO_LONG),
    "/headers": (answer(200, BODY, *(f"X-{n}: x" for n in range(10_000))), TOO_LONG),
    "/cut": (answer(200, BODY)[:-10], "no answer (ConnectionDone)"),
    "/garbage": (b"Bearer secret-token\r\n\r\n", "no answer (ParseError)"),
    "/nothing": (b"", "no answer (ConnectionDone)"),
}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Fetch everything at once: the outcomes by path, those over TLS by the name of the case, and the good request."""
    folder = tmp_path_factory.mktemp("provider")
    trusted, other = folder / "trusted.pem", folder / "other.pem"
    trusted.write_bytes(self_signed())
    other.write_bytes(self_signed())
    secure = {"/tls": answer(200, BODY)}
    with (
        http_site({path: sent for path, (sent, _) in OUTCOMES.items()}) as site,
        http_site(secure, trusted) as good,
        http_site(secure, other) as untrusted,
    ):
        urls = {path: f"http://127.0.0.1:{site.port}{path}" for path in OUTCOMES}
        urls["tls"] = f"https://localhost:{good.port}/tls"
        urls["tls, other name"] = f"https://127.0.0.1:{good.port}/tls"
        urls["tls, untrusted"] = f"https://localhost:{untrusted.port}/tls"
        urls["refused"] = "http://127.0.0.1:1/"
        urls["no name"] = "https://no-such-host.invalid/"
        result = subprocess.run(
            [sys.executable, "-c", FETCH, *urls.values()],
            env={**os.environ, "SSL_CERT_FILE": str(trusted)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        outcomes, connections, timers = json.loads(result.stdout)
        everything = {name: outcomes[url] for name, url in urls.items()}
        everything["left"] = connections, timers
        everything["stderr"] = result.stderr
        everything["request"] = next(request for request in site.received if request.target == "/good")
        yield everything


@pytest.mark.parametrize("path", OUTCOMES)
def test_an_answer_is_taken_or_refused(fetched: dict[str, Any], path: str) -> None:
    outcome = OUTCOMES[path][1]
    expected = {"body": outcome.decode()} if isinstance(outcome, bytes) else {"error": outcome}
    assert fetched[path] == expected


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("tls, other name", "its certificate is not for 127.0.0.1"),
        ("tls, untrusted", "TLS: certificate verify failed"),
        ("refused", "Connection was refused by other side"),
        ("no name", "its name cannot be resolved"),
    ],
)
def test_only_a_server_that_can_be_trusted_is_asked(fetched: dict[str, Any], name: str, error: str) -> None:
    assert fetched["tls"] == {"body": BODY.decode()}
    assert fetched[name]["error"].startswith(error)


def test_a_request_says_who_asks_and_for_what(fetched: dict[str, Any]) -> None:
    request = fetched["request"]
    assert (request.method, request.target, request.body) == ("POST", "/good", b'{"ttl":600}')
    headers = {name: request.headers[name] for name in ("authorization", "content-type", "accept")}
    assert headers == {
        "authorization": "Bearer secret-token",
        "content-type": "application/json",
        "accept": "application/json",
    }
    assert request.headers["user-agent"].startswith("twisted-signaling/")


def test_no_outcome_quotes_the_token_and_nothing_is_left_open(fetched: dict[str, Any]) -> None:
    assert "secret-token" not in json.dumps({name: fetched[name] for name in OUTCOMES})
    assert fetched["stderr"] == ""
    assert fetched["left"] == (0, 0)


def test_a_server_asks_its_provider_again_after_a_failure_and_sends_peers_what_it_gets(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("AC1:secret-token")

    async def scenario(server: Server, site: Site) -> None:
        await asyncio.to_thread(server.wait_for, r"has no new ICE servers \(1 times\): it answered 503")
        async with connect(server.url + "room") as early:
            assert "iceServers" not in json.loads(await early.recv())
            await early.recv()
            site.answers["/credentials"] = answer(201, BODY)
            sent = json.loads(await early.recv())
            expected = [{"urls": ["turn:turn.example.com"], "username": "u", "credential": "provided"}]
            assert sent == {"type": "ice-servers", "iceServers": expected}
            async with connect(server.url + "room") as late:
                assert json.loads(await late.recv())["iceServers"] == expected

    with http_site({"/credentials": answer(503)}) as site:
        url = f"http://127.0.0.1:{site.port}/credentials?key=secret-key"
        options = ("--ice-source", url, "--ice-source-token-file", str(token), "--ice-source-ttl", "600")
        with serving(*options) as server:
            asyncio.run(asyncio.wait_for(scenario(server, site), 60))
            server.wait_for(rf"http://127.0.0.1:{site.port} has 1 ICE servers, valid for 600 s")
            assert "secret" not in server.log
    assert {(request.method, request.body) for request in site.received} == {("POST", b"Ttl=600")}


def test_each_worker_asks_for_itself() -> None:
    async def welcome(server: Server, topic: str) -> Any:
        async with connect(server.url + topic) as client:
            return json.loads(await client.recv())

    async def scenario(server: Server) -> None:
        # The worker of each topic.
        for topic in ("a", "b", "c", "d"):
            first = await welcome(server, topic)
            assert first["iceServers"][0]["credential"] == "provided"

    with http_site({"/credentials": answer(200, BODY)}) as site:
        options = ("--workers", "2", "--ice-source", f"http://127.0.0.1:{site.port}/credentials", "--metrics")
        with serving(*options) as server:
            for _ in range(2):
                server.next_line("has 1 ICE servers")
            asyncio.run(asyncio.wait_for(scenario(server), 60))
            assert 0 <= server.scrape()["ice_source_age_seconds",] < 30
    assert [(request.method, request.target) for request in site.received] == [("GET", "/credentials")] * 2
