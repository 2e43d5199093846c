"""What servers, proxies and floods do to the Python clients: they end in words, or go on within their bounds."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve

from signaling.client import (
    Backoff,
    Error,
    Lost,
    NotDelivered,
    NotUpdated,
    Offer,
    PeerLeft,
    PeerList,
    PeerUpdated,
    Refused,
    Signaling,
    Welcome,
    join,
)
from signaling.client.aiortc import BYE, TopicSignaling
from signaling.client.mesh import Mesh
from signaling.client.mesh import join as mesh_join
from tests.harness.server import Server, launch, running
from tests.programs import free_port
from tests.system.test_python_client import joined
from tests.system.test_twisted_client import program

SECONDS = 120
WELCOME = json.dumps({"type": "welcome", "selfId": "b"})
EMPTY = json.dumps({"type": "peer-list", "peers": []})

Play = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def playing(play: Play) -> AsyncIterator[tuple[str, list[ServerConnection]]]:
    """Run a server that handles each connection as the test says; yields its URL and its connections so far."""
    connections: list[ServerConnection] = []

    async def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        await play(connection)

    async with asyncio.timeout(SECONDS), serve(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/ws/room", connections


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A real server with the default options; each test has a topic of its own."""
    with running() as started:
        yield started


def soon() -> Backoff:
    return Backoff(first_seconds=0.02, most_seconds=0.2)


async def expire(connection: ServerConnection) -> None:
    """Let the token of a peer expire as soon as it has joined."""
    await connection.send(WELCOME)
    await connection.send(EMPTY)
    await connection.close(4401, "the token has expired")


def test_a_token_that_expired_ends_the_asyncio_client() -> None:
    async def scenario() -> None:
        async with playing(expire) as (url, connections):
            with pytest.raises(Refused, match="close code 4401: the token has expired"):
                async with join(url, backoff=soon()) as signaling:
                    await drain(signaling)
            assert len(connections) == 1

    asyncio.run(scenario())


async def drain(signaling: Signaling) -> None:
    async for _ in signaling:
        pass


def test_a_token_that_expired_ends_the_aiortc_client() -> None:
    async def scenario() -> None:
        async with playing(expire) as (url, connections):
            signaling = TopicSignaling(url, backoff=soon())
            with pytest.raises(Refused, match="4401"):
                await signaling.receive()
            assert len(connections) == 1
            await signaling.close()

    asyncio.run(scenario())


def test_a_token_that_expired_ends_the_twisted_client() -> None:
    async def scenario() -> None:
        async with playing(expire) as (url, connections):
            with program("echo_service.py", url) as echo:
                await asyncio.to_thread(echo.wait_for, "close code 4401: the token has expired")
                assert await asyncio.to_thread(echo.process.wait, SECONDS) == 0
            assert len(connections) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("code", [4403, 4404])
def test_a_peer_that_an_operator_removed_stays_away(code: int) -> None:
    async def remove(connection: ServerConnection) -> None:
        await connection.send(WELCOME)
        await connection.send(EMPTY)
        await connection.close(code, "Enough")

    async def scenario() -> None:
        async with playing(remove) as (url, connections):
            # With a token function, too: another token changes nothing.
            with pytest.raises(Refused, match=f"close code {code}: Enough") as refused:
                async with join(url, backoff=soon(), token=lambda: "a") as signaling:
                    await drain(signaling)
            assert refused.value.status == code
            aiortc = TopicSignaling(url, backoff=soon())
            with pytest.raises(Refused, match=f"close code {code}: Enough"):
                await aiortc.receive()
            await aiortc.close()
            async with mesh_join(url, backoff=soon()) as signaling:
                with pytest.raises(Refused, match=f"close code {code}: Enough"):
                    await Mesh(signaling).run()
            assert len(connections) == 3

    asyncio.run(scenario())


TOO_LONG = "x" * 300
REASON = "HTTP 400: .*256 bytes"


def test_a_refusal_carries_the_servers_reason(server: Server) -> None:
    async def scenario(url: str) -> None:
        with pytest.raises(Refused, match=REASON):
            async with join(url):
                pass
        with pytest.raises(Refused, match=REASON):
            await TopicSignaling(url).connect()

    asyncio.run(asyncio.wait_for(scenario(server.url + TOO_LONG), SECONDS))
    with program("echo_service.py", server.url + TOO_LONG) as echo:
        echo.wait_for(REASON)
        assert echo.process.wait(SECONDS) == 0


def test_loopback_is_reached_without_the_proxy_of_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    async def scenario(port: int) -> None:
        for host in ("127.0.0.1", "localhost"):
            async with asyncio.timeout(SECONDS), join(f"ws://{host}:{port}/ws/room"):
                pass
        with pytest.raises(Lost, match=r"no connection: ConnectionRefusedError: .+"):
            async with join("ws://signaling.example/ws/room", reconnect=False):
                pass

    asyncio.run(scenario(server.port))


def test_a_proxys_password_reaches_no_log() -> None:
    async def scenario() -> None:
        with pytest.raises(Lost, match="the proxy's URL is not valid") as lost:
            async with join("ws://signaling.example/ws/room", reconnect=False, proxy="ftp://me:secret@proxy"):
                pass
        assert "secret" not in str(lost.value)

    asyncio.run(scenario())


# 60 KB that are 20,000 objects once they have been read.
LISTS: list[list[object]] = [[] for _ in range(20_000)]


def test_what_a_program_does_not_read_is_bounded_in_bytes(server: Server) -> None:
    async def scenario(url: str) -> None:
        async with joined(url) as ada, joined(url) as mallory:
            before = lists()
            while await is_delivered(mallory, ada.self_id, LISTS):
                pass
            # Twenty messages are held as objects, and not 256.
            assert lists() - before < 1_000_000

    asyncio.run(asyncio.wait_for(scenario(server.url + "bytes"), SECONDS))


def lists() -> int:
    return sum(type(obj) is list for obj in gc.get_objects())


def test_what_a_program_does_not_read_is_bounded_while_it_delivers(server: Server) -> None:
    async def scenario(url: str) -> None:
        async with joined(url) as ada:
            async with joined(url) as mallory:

                async def flood() -> None:
                    for _ in range(400):
                        while not await is_delivered(mallory, ada.self_id, "x" * 60_000):
                            pass

                flooding = asyncio.create_task(flood())
                while not flooding.done():
                    await ada.deliver("offer", mallory.self_id)
                await flooding
            unread = 0
            async for message in ada:
                unread += isinstance(message, Offer)
                if isinstance(message, PeerLeft):
                    break
            assert 0 < unread < 200

    asyncio.run(asyncio.wait_for(scenario(server.url + "delivering"), SECONDS))


async def is_delivered(signaling: Signaling, target: str, payload: object) -> bool:
    try:
        await signaling.deliver("offer", target, payload)
    except NotDelivered:
        return False
    return True


JOINED = json.dumps({"type": "peer-joined", "peerId": "a"})
LEFT = json.dumps({"type": "peer-left", "peerId": "a"})
ERROR = json.dumps({"type": "error", "code": "dropped", "message": "x" * 100})
OFFERED = json.dumps({"type": "offer", "from": "a", "payload": 1})


def test_a_program_that_only_sends_stays_in_its_topic_and_holds_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signaling.client.connection.MAX_NEVER_READ", 2_000)
    monkeypatch.setattr("signaling.client.connection.PING_SECONDS", 0.1)
    monkeypatch.setattr("signaling.client.connection.PONG_SECONDS", 2.0)
    received: list[str | bytes] = []

    async def flood(connection: ServerConnection) -> None:
        for text in (WELCOME, EMPTY, *(JOINED, OFFERED, LEFT) * 3_000):
            await connection.send(text)
        received.append("all was sent")
        async for text in connection:
            received.append(text)

    async def scenario() -> None:
        async with playing(flood) as (url, connections), join(url, backoff=soon()) as signaling:
            await signaling.send("offer", "a", "first")
            while not received:
                await asyncio.sleep(0.01)
            await asyncio.sleep(3)
            await signaling.send("offer", "a", "last")
            while not any("last" in text for text in received):
                await asyncio.sleep(0.01)
            assert len(connections) == 1
            assert list(signaling.peers) == []
            await signaling.leave()
            unread = [message async for message in signaling]
            assert 0 < len(unread) < 2_500

    asyncio.run(scenario())


def test_a_loss_is_noticed_while_the_program_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signaling.client.connection.PING_SECONDS", 0.1)
    monkeypatch.setattr("signaling.client.connection.PONG_SECONDS", 1.0)

    async def end(connection: ServerConnection) -> None:
        for text in (WELCOME, EMPTY, *[OFFERED] * 260):
            await connection.send(text)
        connection.transport.close()

    async def scenario() -> None:
        async with playing(end) as (url, connections), join(url, backoff=soon()) as signaling:
            await anext(signaling)
            while len(connections) == 1:
                await asyncio.sleep(0.01)
            for _ in range(300):
                await signaling.send("offer", "a")
            # Too much waited for a connection, or was sent as a peer whose connection was lost just then.
            assert (await first_error(signaling)).code == "dropped"

    asyncio.run(scenario())


async def first_error(signaling: Signaling) -> Error:
    return await anext(message async for message in signaling if isinstance(message, Error))


def test_the_documented_program_survives_a_peer_that_leaves_at_once() -> None:
    async def leave(connection: ServerConnection) -> None:
        for text in (WELCOME, EMPTY, JOINED, OFFERED):
            await connection.send(text)
        async for text in connection:
            msg_id = json.loads(text)["msgId"]
            error = {"type": "error", "code": "target_not_found", "message": "gone", "msgId": msg_id}
            await connection.send(json.dumps(error))
            if msg_id.startswith("fence"):
                await connection.close(4401)

    async def scenario() -> None:
        documented = (Path(__file__).parents[2] / "docs" / "clients-python.md").read_text()
        [program] = re.findall(r"```python\n(import asyncio\n.*?)\n\nasyncio.run", documented, re.DOTALL)
        async with playing(leave) as (url, _):
            names: dict[str, Callable[[], Awaitable[None]]] = {}
            exec(program.replace("ws://localhost:8081/ws/my-room", url), names)
            with pytest.raises(Refused):
                await names["main"]()

    asyncio.run(scenario())


def test_deliver_after_leaving_is_an_error_at_once(server: Server) -> None:
    async def scenario(url: str) -> None:
        async with joined(url) as ada:
            pass
        with pytest.raises(NotDelivered, match="this peer left"):
            await ada.deliver("offer", ada.self_id)

    asyncio.run(asyncio.wait_for(scenario(server.url + "leaving"), SECONDS))


async def serve_well(connection: ServerConnection) -> None:
    """Let a peer join, and return its messages to itself."""
    await connection.send(WELCOME)
    await connection.send(EMPTY)
    async for text in connection:
        message = json.loads(text)
        if message["to"] == "b":
            await connection.send(json.dumps({**message, "from": "b"}))


def test_a_topic_that_is_full_for_long_is_joined_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signaling.client.connection.MAX_UNREAD", 3)
    full = json.dumps({"type": "error", "code": "topic_full", "message": "no room"})
    attempts = itertools.count()

    async def play(connection: ServerConnection) -> None:
        if next(attempts) < 5:
            await connection.send(full)
            await connection.close(1013, "no room")
        else:
            await serve_well(connection)

    async def scenario() -> None:
        async with playing(play) as (url, _), asyncio.timeout(SECONDS):
            async with join(url, backoff=Backoff(0.001, 0.002)) as signaling:
                assert isinstance(await anext(signaling), Welcome)

    asyncio.run(scenario())


def test_a_peer_whose_leaving_is_cancelled_does_not_join_again() -> None:
    async def scenario() -> None:
        async with playing(serve_well) as (url, connections):
            for passes in itertools.count(1):
                signaling = await join(url, backoff=Backoff(0.001, 0.002)).__aenter__()
                leaving = asyncio.create_task(signaling.leave())
                for _ in range(passes):
                    await asyncio.sleep(0)
                if leaving.done():
                    break
                leaving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leaving
                await drain(signaling)
            assert len(connections) == passes > 3

    asyncio.run(scenario())


def test_what_was_sent_goes_out_although_another_send_is_cancelled() -> None:
    reads = asyncio.Event()
    received: list[str] = []

    async def play(connection: ServerConnection) -> None:
        await connection.send(WELCOME)
        await connection.send(EMPTY)
        await reads.wait()
        async for text in connection:
            message = json.loads(text)
            if message["to"] == "b":
                await connection.send(json.dumps({**message, "from": "b"}))
            else:
                received.append(message["payload"][:1])

    async def scenario() -> None:
        async with playing(play) as (url, _), join(url) as signaling:

            async def send(text: str) -> asyncio.Task[None]:
                task = asyncio.create_task(signaling.deliver("offer", "a", text * 60_000))
                await asyncio.sleep(0)
                return task

            # Until the socket takes no more.
            full = [await send("x") for _ in range(200)]
            first, second, third = await send("1"), await send("2"), await send("3")
            for task in (*full, first, second):
                task.cancel()
                await asyncio.wait([task])
                # The next one begins to write.
                for _ in range(3):
                    await asyncio.sleep(0)
            reads.set()
            await third
            assert received[-3:] == ["1", "2", "3"]

    asyncio.run(scenario())


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot here\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
ANSWERS = {
    "nothing": b"",
    "not HTTP": b"\x16\x03\x01\x02\x00",
    "no status": b"HTTP/1.1\r\n\r\n",
    "a status that is no number": b"HTTP/1.1 \xb2\xb2\xb2 Yes\r\n\r\n",
    "a status of many digits": b"HTTP/1.1 " + b"4" * 5_000 + b" Yes\r\n\r\n",
    "a header that is not UTF-8": b"HTTP/1.1 503 Later\r\nX: \xff\r\nContent-Length: 0\r\n\r\n",
    "a retry that never comes": b"HTTP/1.1 503 Later\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n",
    "no accept key": SWITCHING + b"\r\n",
    "a wrong accept key": SWITCHING + b"Sec-WebSocket-Accept: x\r\n\r\n\x81\x02{}",
    "a redirect to no URL": b"HTTP/1.1 302 Found\r\nLocation: ws://[\r\nContent-Length: 0\r\n\r\n",
    "an endless header": b"HTTP/1.1 503 Later\r\nX: " + b"x" * 2_000_000,
}


@asynccontextmanager
async def answering(first: bytes) -> AsyncIterator[str]:
    """Run a server that answers its first connection as the test says, and any other by 404; yields its URL."""
    answers = iter([first])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(next(answers, NOT_FOUND))
            await writer.drain()
        writer.close()

    async with asyncio.timeout(SECONDS), await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws/room"


@pytest.mark.parametrize("first", ANSWERS.values(), ids=ANSWERS)
def test_whatever_a_server_answers_the_asyncio_client_asks_again(first: bytes) -> None:
    async def scenario() -> None:
        async with answering(first) as url:
            with pytest.raises(Refused, match="HTTP 404: not here"):
                async with join(url, backoff=soon()):
                    pass

    asyncio.run(scenario())


def test_a_redirect_is_not_followed() -> None:
    async def scenario() -> None:
        async with playing(expire) as (elsewhere, connections):
            redirect = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"
            async with answering(redirect.encode()) as url:
                with pytest.raises(Lost, match="HTTP 307"):
                    async with join(url, token="secret", reconnect=False):
                        pass
            assert not connections

    asyncio.run(scenario())


# One client for each URL; it ends once all of them have failed for good.
TWISTED_CLIENTS = """
import sys
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react
from signaling.client import Backoff
from signaling.client.twisted import SignalingClient

def failure_of(url):
    failed = Deferred()
    client = SignalingClient(url, print, backoff=Backoff(0.02, 0.2))
    client.on_failure = failed.callback
    client.startService()
    return failed.addCallback(lambda failure: print(url, failure, flush=True))

react(lambda reactor: gatherResults([failure_of(url) for url in sys.argv[1:]]))
"""


def test_whatever_a_server_answers_the_twisted_client_asks_again() -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(answering(first)) for first in ANSWERS.values()]
            clients = launch([sys.executable, "-c", TWISTED_CLIENTS, *urls])
            stack.callback(clients.end)
            assert await asyncio.to_thread(clients.process.wait, SECONDS) == 0
            clients.join()
            for what, url in zip(ANSWERS, urls, strict=True):
                assert re.search(f"^{re.escape(url)} .*HTTP 404: not here", clients.log, re.MULTILINE), what

    asyncio.run(scenario())


async def say_bye(connection: ServerConnection) -> None:
    """Let a peer join, and another one say goodbye to it."""
    await connection.send(WELCOME)
    await connection.send(EMPTY)
    await connection.send(json.dumps({"type": "ice-candidate", "from": "a", "payload": {"type": "bye"}}))
    await connection.wait_closed()


def test_no_call_of_an_aiortc_program_waits_for_another_one_that_failed() -> None:
    async def scenario() -> None:
        async with answering(NOT_FOUND) as url:
            signaling = TopicSignaling(url)
            ends = await asyncio.gather(signaling.connect(), signaling.receive(), return_exceptions=True)
            assert [str(end) for end in ends] == ["HTTP 404: not here"] * 2
        async with playing(say_bye) as (url, _):
            signaling = TopicSignaling(url)
            connecting, receiving = asyncio.create_task(signaling.connect()), asyncio.create_task(signaling.receive())
            await asyncio.sleep(0)
            connecting.cancel()
            assert await receiving is BYE
            await signaling.close()

    asyncio.run(scenario())


def test_a_message_of_endless_fragments_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signaling.client.connection.MAX_FRAGMENTS", 50)

    async def endless(connection: ServerConnection) -> None:
        await connection.send(iter(WELCOME))
        await connection.send(EMPTY)
        await connection.send(itertools.repeat("", 200))
        await connection.wait_closed()

    async def scenario() -> None:
        async with playing(endless) as (url, _), join(url, reconnect=False) as signaling:
            with pytest.raises(Lost, match="a message of more than 50 fragments"):
                await drain(signaling)

    asyncio.run(scenario())


def test_what_waits_for_a_program_that_delivers_to_a_silent_server_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signaling.client.connection.MAX_NEVER_READ", 2_000)
    flooded: list[bool] = []

    async def flood(connection: ServerConnection) -> None:
        for text in (WELCOME, EMPTY, *(JOINED, ERROR, LEFT) * 3_000):
            await connection.send(text)
        await (await connection.ping())
        flooded.append(True)
        await connection.wait_closed()

    async def scenario() -> None:
        async with playing(flood) as (url, _), join(url) as signaling:
            assert [type(await anext(signaling)) for _ in range(2)] == [Welcome, PeerList]
            delivering = asyncio.create_task(signaling.deliver("offer", "a"))
            while not flooded:
                await asyncio.sleep(0.01)
            delivering.cancel()
            await signaling.leave()
            unread = [message async for message in signaling]
            assert 0 < len(unread) <= 2_001

    asyncio.run(scenario())


def test_an_update_that_a_flooding_server_never_answers_ends_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signaling.client.connection.MAX_NEVER_READ", 500)
    monkeypatch.setattr("signaling.client.connection.UPDATE_SECONDS", 1.0)
    flooded = asyncio.Event()
    notice = json.dumps({"type": "notice", "data": "x" * 100})
    updates = [json.dumps({"type": "peer-updated", "peerId": peer, "metadata": {"a": 1}}) for peer in ("a", "unknown")]

    async def flood(connection: ServerConnection) -> None:
        welcome = {"type": "welcome", "selfId": "b", "features": ["metadata-updates"]}
        for text in (json.dumps(welcome), EMPTY, JOINED, *(notice, *updates) * 3_000):
            await connection.send(text)
        await (await connection.ping())
        flooded.set()
        await connection.wait_closed()

    async def scenario() -> None:
        async with playing(flood) as (url, _), join(url, metadata={"name": "Ada"}) as signaling:
            updating = asyncio.create_task(signaling.update_metadata({"name": "Grace"}))
            await flooded.wait()
            with pytest.raises(NotUpdated) as failure:
                await updating
            assert failure.value.code == "unconfirmed"
            assert signaling.peers == {"a": {"a": 1}}
            await signaling.leave()
            unread = [message async for message in signaling]
            assert 0 < len(unread) <= 8 * 256 + 1
            assert sum(isinstance(message, PeerUpdated) for message in unread) <= 500

    asyncio.run(scenario())


def test_a_server_that_reads_nothing_is_noticed_while_much_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signaling.client.connection.PING_SECONDS", 0.1)
    monkeypatch.setattr("signaling.client.connection.PONG_SECONDS", 0.3)

    async def read_nothing(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await connection.send(WELCOME)
        await connection.send(EMPTY)
        await connection.wait_closed()

    async def send_much(signaling: Signaling) -> None:
        while True:
            await signaling.send("offer", "a", "x" * 60_000)
            await asyncio.sleep(0)

    async def scenario() -> None:
        async with playing(read_nothing) as (url, connections), join(url, backoff=soon()) as signaling:
            sending = asyncio.create_task(send_much(signaling))
            while len(connections) < 2:
                await asyncio.sleep(0.01)
            sending.cancel()
            for connection in connections:
                connection.transport.abort()

    asyncio.run(scenario())
