"""The Twisted client, in a program of its own, against a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from signaling.client import Answer, PeerJoined, PeerLeft, Signaling
from tests.harness.certificates import self_signed
from tests.harness.fault_proxy import FaultProxy, fault_proxy
from tests.harness.server import Server, launch, running
from tests.programs import free_port
from tests.system.test_python_client import RESUMING, joined, until

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 120


@contextmanager
def program(name: str, *arguments: str) -> Iterator[Server]:
    """Run an example."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    watched = launch(command)
    try:
        yield watched
    finally:
        watched.end()


async def echoes(ada: Signaling, echo_id: str, numbers: range) -> list[object]:
    """Offer numbers to the echo, and return what it answers."""
    received = []
    for number in numbers:
        await ada.deliver("offer", echo_id, number)
        received += [message.payload for message in await until(ada, Answer) if isinstance(message, Answer)]
    return received


def test_it_answers_over_a_cut_and_leaves_when_it_is_told_to() -> None:
    async def scenario(server: Server, proxy: FaultProxy) -> None:
        async with joined(server.url + "room") as ada:
            with program("echo_service.py", f"ws://127.0.0.1:{proxy.port}/ws/room") as echo:
                [there] = await until(ada, PeerJoined)
                assert there.metadata == {"name": "echo"}
                assert await echoes(ada, there.peer_id, range(5)) == list(range(5))
                for _ in range(3):
                    proxy.cut()
                    assert await echoes(ada, there.peer_id, range(5)) == list(range(5))
                await asyncio.to_thread(echo.wait_for, f"back as {there.peer_id}")
                echo.process.terminate()
                assert await until(ada, PeerLeft) == [PeerLeft(there.peer_id)]
                assert await asyncio.to_thread(echo.process.wait, SECONDS) == 0
                assert "Traceback" not in echo.log

    with running(RESUMING) as server, fault_proxy(server.port) as proxy:
        asyncio.run(asyncio.wait_for(scenario(server, proxy), SECONDS))


STOPPED_IN_ITS_HANDSHAKE = """
import sys
from twisted.internet import defer, task
from signaling.client.twisted import SignalingClient

async def scenario(reactor):
    messages = []
    client = SignalingClient(sys.argv[1], messages.append)
    for _ in range(5):
        client.startService()
        # The TCP connection is there after a few turns of the reactor, the answer to the handshake later.
        await task.deferLater(reactor, 0.0005, lambda: None)
        await (client.stopService() or defer.succeed(None))
    client.startService()
    await client.when_joined()
    stopping = client.stopService()
    client.startService()
    await stopping
    await client.when_joined()
    await task.deferLater(reactor, 0.5, lambda: None)
    for _ in range(2_000):
        if not client.peers:
            break
        await task.deferLater(reactor, 0.02, lambda: None)
    print("beside", list(client.peers), flush=True)
    await client.stopService()

task.react(lambda reactor: defer.Deferred.fromCoroutine(scenario(reactor)))
"""


def test_stopping_and_starting_it_at_any_time_leaves_no_connection_behind() -> None:
    with running() as server:
        command = [sys.executable, "-c", STOPPED_IN_ITS_HANDSHAKE, server.url + "room"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.stdout, done.stderr) == ("beside []\n", "")


def test_it_comes_back_to_a_restarted_server() -> None:
    async def scenario(port: int) -> str:
        async with joined(f"ws://127.0.0.1:{port}/ws/room") as ada:
            if not ada.peers:
                await until(ada, PeerJoined)
            echo_id = next(iter(ada.peers))
            assert await echoes(ada, echo_id, range(2)) == [0, 1]
            return echo_id

    port = free_port()
    options = [f"--listen=tcp:{port}:interface=127.0.0.1"]
    with running(options) as first, program("echo_service.py", first.url + "room") as echo:
        echo.wait_for("here as")
        asyncio.run(asyncio.wait_for(scenario(port), SECONDS))
        first.process.kill()
        first.process.wait(SECONDS)
        with running(options):
            second = asyncio.run(asyncio.wait_for(scenario(port), SECONDS))
            echo.wait_for(f"here as {second}")
        assert echo.process.poll() is None
        assert "Traceback" not in echo.log


def test_the_mesh_of_the_examples_greets_everyone() -> None:
    with running() as server, program("mesh_chat.py", server.url + "room", "Ada") as ada:
        server.wait_for("joined 'room'")
        with program("mesh_chat.py", server.url + "room", "Ben") as ben:
            ada.wait_for("hello from Ben")
            ben.wait_for("hello from Ada")
            assert ben.stop(signal.SIGINT) == 0
            assert "Traceback" not in ben.log
            server.wait_for("left 'room'")
        server.pause()
        # It does not wait for the server.
        assert ada.stop(signal.SIGINT) == 0
        server.resume()


OVER_TLS = """
import sys
from twisted.internet import defer, task
from twisted.logger import formatEvent, globalLogBeginner
from signaling.client import Backoff
from signaling.client.twisted import SignalingClient

waiting = []

def log(event):
    text = formatEvent(event)
    if "connecting again" in text and waiting:
        waiting.pop().callback(text)

async def outcome(url):
    over = defer.Deferred()
    waiting[:] = [over]
    client = SignalingClient(url, lambda message: None, backoff=Backoff(60, 60))
    client.when_joined().addCallbacks(lambda _: over.callback("joined"), lambda left: None)
    client.startService()
    text = await over
    await (client.stopService() or defer.succeed(None))
    return text

async def scenario(reactor):
    globalLogBeginner.beginLoggingTo([log], redirectStandardIO=False)
    for url in sys.argv[1:]:
        print(await outcome(url), flush=True)

task.react(lambda reactor: defer.Deferred.fromCoroutine(scenario(reactor)))
"""


def test_it_joins_only_a_server_whose_certificate_names_its_host(tmp_path: Path) -> None:
    elsewhere = "no connection: its certificate is not for localhost, by any subjectAltName"
    cases = [
        (["localhost"], True, "joined"),
        (["localhost"], False, "certificate verify failed"),
        ([], True, elsewhere),
        (["example.com"], True, elsewhere),
    ]
    trusted, listen = tmp_path / "trusted.pem", list[str]()
    with trusted.open("wb") as bundle:
        for number, (names, is_trusted, _) in enumerate(cases):
            pem = tmp_path / f"{number}.pem"
            pem.write_bytes(self_signed(names))
            bundle.write(pem.read_bytes() if is_trusted else b"")
            listen += ["--listen", f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"]
    with running(listen) as server:
        ports = [server.next_line(r"listening on 127\.0\.0\.1:(\d+)")[1] for _ in cases]
        command = [sys.executable, "-c", OVER_TLS, *(f"wss://localhost:{port}/ws/room" for port in ports)]
        env = os.environ | {"SSL_CERT_FILE": str(trusted)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    outcomes = done.stdout.splitlines()
    assert len(outcomes) == len(cases), done.stderr
    for (_, _, expected), outcome in zip(cases, outcomes, strict=True):
        assert expected in outcome
