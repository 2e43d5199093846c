"""Tokens in the Python clients: with a server that is played, and over several expiries with a real one."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from signaling.client import Backoff, Lost, PeerJoined, PeerLeft, PeerList, Refused, Signaling, Welcome, join
from signaling.client.aiortc import TopicSignaling
from tests import issuer
from tests.harness.server import Server, launch, wait_until
from tests.harness.server import running as running_server

SECONDS = 120
EMPTY = {"type": "peer-list", "peers": []}


class Issuer:
    """A token function: it answers as it is told, or else with token after token."""

    def __init__(self, *answers: Callable[[], Any]) -> None:
        self.calls = 0
        self._answers = list(answers)

    def __call__(self) -> Any:
        self.calls += 1
        return self._answers.pop(0)() if self._answers else f"secret-{self.calls}"


class Played:
    """A server that is played: what it answers to each request, and what it does with each connection.

    Args:
        statuses: of its answers, in order; then 101.
        play: called with each connection, after its welcome.
        welcome: further keys of each welcome.
    """

    def __init__(
        self,
        *statuses: int,
        play: Callable[[ServerConnection], Awaitable[None]] | None = None,
        welcome: dict[str, Any] | None = None,
    ) -> None:
        self.url = ""
        self.tokens: list[str] = []
        self.rooms: list[str | None] = []
        self.targets: list[str] = []
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._statuses = list(statuses)
        self._play = play
        self._welcome = welcome or {}

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        self.tokens.append(",".join(request.headers.get_all("Authorization")))
        self.rooms.append(request.headers.get("X-Room"))
        self.targets.append(request.path)
        status = self._statuses.pop(0) if self._statuses else 101
        return None if status == 101 else connection.respond(HTTPStatus(status), f"no, {status}\n")

    async def handle(self, connection: ServerConnection) -> None:
        for message in ({"type": "welcome", "selfId": "b", **self._welcome}, EMPTY):
            await connection.send(json.dumps(message))
        if self._play is not None:
            await self._play(connection)
        async for text in connection:
            message = json.loads(text)
            if message["type"] == "token":
                self.received.put_nowait(message)


@asynccontextmanager
async def running(played: Played) -> AsyncIterator[Played]:
    async with asyncio.timeout(SECONDS), serve(played.handle, "127.0.0.1", 0, process_request=played.answer) as server:
        played.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws/room"
        yield played


def joining(played: Played, token: Any, **options: Any) -> Signaling:
    return join(played.url, token=token, backoff=Backoff(0.02, 0.1), **options)


async def follow(signaling: Signaling) -> None:
    async with signaling:
        async for _ in signaling:
            pass


async def close_by_4401(connection: ServerConnection) -> None:
    await connection.close(4401, "the token has expired")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log at its most talkative, which must not have a token or a resume token."""
    logging.getLogger("websockets.server").setLevel(logging.INFO)
    caplog.set_level(logging.DEBUG)
    return caplog


@pytest.mark.parametrize("reconnect", [True, False])
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_asked_anew_once(status: int, *, reconnect: bool, log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(Played(status, 401)) as played:
            with pytest.raises(Refused, match="HTTP 401: no, 401") as refused:
                await joining(played, Issuer(), reconnect=reconnect).__aenter__()
            assert refused.value.status == 401
            assert played.tokens == ["Bearer secret-1", "Bearer secret-2"]
        async with running(Played(status)) as played, joining(played, Issuer(), reconnect=reconnect):
            assert played.tokens == ["Bearer secret-1", "Bearer secret-2"]

    asyncio.run(scenario())
    assert "secret" not in log.text


def test_without_reconnecting_nothing_else_is_tried_again() -> None:
    async def scenario() -> None:
        async with running(Played(401, 503)) as played:
            with pytest.raises(Lost, match="HTTP 503"):
                await joining(played, Issuer(), reconnect=False).__aenter__()
            assert len(played.tokens) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("status", [400, 404, 421])
def test_what_no_token_mends_is_the_end(status: int) -> None:
    async def scenario() -> None:
        async with running(Played(status)) as played:
            with pytest.raises(Refused, match=f"HTTP {status}"):
                await joining(played, Issuer()).__aenter__()
            assert len(played.tokens) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("token", "options"), [("one", {}), ("one", {"reconnect": True}), (Issuer(), {"reconnect": False})]
)
def test_a_token_that_expired_and_cannot_be_replaced_is_the_end(token: Any, options: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with running(Played(play=close_by_4401)) as played:
            with pytest.raises(Refused, match="close code 4401: the token has expired"):
                await follow(joining(played, token, **options))
            assert len(played.tokens) == 1

    asyncio.run(scenario())


def test_after_4401_a_function_is_asked_and_the_session_is_resumed_at_once(log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        played = Played(101, 401, play=close_by_4401, welcome={"resume": {"token": "secret-resume", "window": 20}})
        async with running(played):
            with pytest.raises(Refused, match="HTTP 401"):
                # The backoff alone would wait for half a minute.
                await follow(join(played.url, token=Issuer(), backoff=Backoff(60, 60)))
            assert played.targets == ["/ws/room", "/ws/room?resume=secret-resume&seen=2"]
            assert played.tokens == ["Bearer secret-1", "Bearer secret-2"]

    asyncio.run(scenario())
    assert "secret" not in log.text


def failing() -> str:
    raise LookupError("the secret cannot be had")


async def failing_later() -> str:
    return failing()


def cancelled() -> str:
    raise asyncio.CancelledError  # As Future.result does.


async def hanging() -> str:
    await asyncio.Event().wait()
    return "secret"


async def obstinate() -> str:
    with suppress(asyncio.CancelledError):
        await hanging()
    return await hanging()


FAULTS = {
    "raises": (failing, "the token function raised LookupError (test_client_tokens.py, line "),
    "fails later": (failing_later, "the token function raised LookupError (test_client_tokens.py, line "),
    "reads a cancelled task": (cancelled, "the token function raised CancelledError (test_client_tokens.py, line "),
    "hangs": (hanging, "the token function has not answered within"),
    "ignores its cancellation": (obstinate, "the token function has not answered within"),
    "returns nothing": (lambda: None, "the token function returned NoneType, not a token"),
    "returns what is no token": (lambda: "a\r\nsecret: b", "characters that no token has"),
}


@pytest.mark.parametrize(("fault", "reported"), FAULTS.values(), ids=FAULTS)
def test_a_function_that_fails_is_reported_and_asked_again(
    fault: Callable[[], Any], reported: str, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signaling.client.connection.TOKEN_SECONDS", 0.05)
    monkeypatch.setattr("signaling.client.credential.SHORTEST_RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr("signaling.client.credential.RENEWAL_SHARE", 0.001)
    monkeypatch.setattr("signaling.client.credential.PAUSE_SHARE", 0.001)

    async def scenario() -> None:
        # Once for the first attempt, and once for a renewal.
        issuer = Issuer(fault, lambda: "first", fault)
        async with running(Played(welcome={"expiresIn": 60})) as played, joining(played, issuer) as signaling:
            sent = await played.received.get()
            assert (sent["token"], played.tokens) == ("secret-4", ["Bearer first"])
            assert [type(await anext(signaling)) for _ in range(2)] == [Welcome, PeerList]

    asyncio.run(scenario())
    warnings = [record.message for record in log.records if record.levelno == logging.WARNING]
    assert [reported in text for text in warnings] == [True, True]
    assert "connecting again in" in warnings[0]
    assert "asking again in" in warnings[1]
    assert "secret" not in log.text


def test_a_token_is_renewed_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signaling.client.credential.SHORTEST_RENEWAL_SECONDS", 0.05)

    async def issue() -> str:
        return next(tokens)

    async def answer(connection: ServerConnection) -> None:
        async for text in connection:
            message = json.loads(text)
            renewed.append(message["token"])
            await connection.send(json.dumps({"type": "token", "expiresIn": 0.1, "msgId": message["msgId"]}))
            if len(renewed) == 5:
                await connection.close(1000)

    tokens = iter([f"t{number}" for number in range(100)])
    renewed: list[str] = []

    async def scenario() -> None:
        async with running(Played(play=answer, welcome={"expiresIn": 0.1})) as played:
            async with join(played.url, token=issue, reconnect=False) as signaling:
                assert [type(await anext(signaling)) for _ in range(2)] == [Welcome, PeerList]
                with pytest.raises(Lost):
                    await anext(signaling)
            assert len(played.tokens) == 1

    asyncio.run(scenario())
    assert renewed == ["t1", "t2", "t3", "t4", "t5"]


def test_the_aiortc_client_passes_its_token_on() -> None:
    async def scenario() -> None:
        async with running(Played(401)) as played:
            signaling = TopicSignaling(played.url, token=Issuer())
            await signaling.connect()
            await signaling.close()
            assert played.tokens == ["Bearer secret-1", "Bearer secret-2"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "headers", [{"authorization": "Bearer x"}, [("AUTHORIZATION", "Basic x")], {"Authorization": "x"}]
)
def test_a_token_beside_an_authorization_is_refused(headers: Any) -> None:
    with pytest.raises(ValueError, match="given twice"):
        join("ws://example.com/ws/room", token="secret", additional_headers=headers)


def test_other_headers_go_with_a_token() -> None:
    async def scenario() -> None:
        async with running(Played()) as played, joining(played, "one", additional_headers={"X-Room": "1"}):
            assert (played.tokens, played.rooms) == (["Bearer one"], ["1"])

    asyncio.run(scenario())


# With a real server

# With more, a client whose function failed would have the time to ask it again.
LASTS_SECONDS = 5.0
RENEWALS, RESUMES = 2, 1
# Two clients: the tokens of one are renewed; the function of the other fails every second time, at every renewal.
TWISTED = """
import itertools, sys, time
import jwt
from twisted.internet import reactor
from signaling.client.twisted import SignalingClient

url, key, lasts = sys.argv[1], open(sys.argv[2]).read(), float(sys.argv[3])

def mint(sub):
    claims = {"exp": time.time() + lasts, "sub": sub, "signaling": {"topics": ["room"]}}
    return jwt.encode(claims, key, "EdDSA", headers={"kid": "EdDSA"})

async def renewed():
    return mint("twisted, renewed")

def late(calls=itertools.count()):
    return "no token" if next(calls) % 2 else mint("twisted, late")

for function in (renewed, late):
    client = SignalingClient(url, lambda message: None, metadata={"name": function.__name__}, token=function)
    client.on_failure = lambda failure: print("FAILED", failure, flush=True)
    client.startService()
reactor.run()
"""


@contextmanager
def twisted_clients(server: Server, private: Path) -> Iterator[Server]:
    watched = launch([sys.executable, "-c", TWISTED, server.url + "room", str(private), str(LASTS_SECONDS)])
    try:
        yield watched
    finally:
        watched.end()


def test_clients_live_on_while_their_tokens_expire_and_nobody_notices(tmp_path: Path) -> None:
    keys, private = issuer.key_file(tmp_path), tmp_path / "private.pem"
    private.write_bytes(issuer.private_pem("EdDSA"))
    calls = itertools.count()

    async def renewed() -> str:
        return issuer.token(sub="renewed", exp=time.time() + LASTS_SECONDS)

    def late() -> str:
        return "no token" if next(calls) % 2 else issuer.token(sub="late", exp=time.time() + LASTS_SECONDS)

    def have_lived_on(server: Server, names: dict[str, Any]) -> bool:
        def count(name: str, text: str) -> list[int]:
            return [server.log.count(f"{peer} {text}") for peer, data in names.items() if data == {"name": name}]

        assert count("renewed", "resumed") == count("late", "renewed its token") == [0, 0]
        enough = min(count("renewed", "renewed its token")) >= RENEWALS
        return enough and min(count("late", "resumed")) >= RESUMES

    async def scenario(server: Server) -> None:
        url = server.url + "room"
        async with asyncio.timeout(SECONDS), join(url, token=issuer.token(sub="observer")) as observer:
            assert [type(await anext(observer)) for _ in range(2)] == [Welcome, PeerList]
            with twisted_clients(server, private) as program:
                async with (
                    join(url, token=renewed, metadata={"name": "renewed"}) as first,
                    join(url, token=late, metadata={"name": "late"}) as second,
                ):
                    received = [await anext(observer) for _ in range(4)]
                    assert {type(message) for message in received} == {PeerJoined}
                    names = observer.peers
                    await asyncio.to_thread(
                        wait_until, lambda: have_lived_on(server, names), state=lambda: server.log + program.log
                    )
                    assert (observer.peers, len(names)) == (names, 4)
                    for signaling in (first, second):
                        await observer.deliver("offer", signaling.self_id, "still there")
                    assert "FAILED" not in program.log
                # All that it noticed is how they left.
                assert {type(await anext(observer)) for _ in range(2)} == {PeerLeft}

    options = ["--port=0", "--log-level=debug", "--resume-window=20", f"--auth=jwt:{keys}"]
    with running_server(options) as server:
        asyncio.run(scenario(server))
        assert "refused a request" not in server.log


def test_a_text_that_expires_makes_one_request_and_a_wrong_one_as_well(tmp_path: Path) -> None:
    keys = issuer.key_file(tmp_path)

    async def scenario(url: str) -> None:
        with pytest.raises(Refused, match="close code 4401: the token has expired"):
            await follow(join(url, token=issuer.token(exp=time.time() + 5)))
        with pytest.raises(Refused, match="HTTP 401: the token's signature is wrong"):
            await follow(join(url, token=issuer.token(number=1)))
        with pytest.raises(Refused, match="HTTP 403"):
            await follow(join(url, token=lambda: issuer.token({"topics": ["other"]})))

    with running_server(["--port=0", "--resume-window=20", f"--auth=jwt:{keys}"]) as server:
        asyncio.run(asyncio.wait_for(scenario(server.url + "room"), SECONDS))
        assert server.stop() == 0
        assert server.log.count("refused a request") == 3
        assert server.log.count("joined 'room'") == 1
