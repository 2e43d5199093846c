"""Many that fail at once, or one that floods: who else is served, what is refused, and how much memory it takes."""

from __future__ import annotations

import itertools
import random
import resource
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.harness.frames import masked
from tests.harness.peer import joined_id, observed, receive
from tests.harness.raw_client import BODY_TO_COME, MIB, REQUEST, dial, join_raw, read_to_the_end, relay, upgrade
from tests.harness.server import TWISTD, Server, running, serving, start
from tests.programs import free_port, missing, need


def healthy(server: Server) -> bool:
    return server.get("/healthz") == (200, b"ok")


def refusal(url: str, **how: object) -> tuple[int, str | None]:
    """Return the status of a refused handshake, and when to come back."""
    with pytest.raises(InvalidStatus) as refused, connect(url, **how):
        pass
    return refused.value.response.status_code, refused.value.response.headers.get("Retry-After")


# Floods


@contextmanager
def repeating(action: Callable[[], None]) -> Iterator[threading.Event]:
    """Repeat ``action`` in a thread until the end; it may not fail. Yields what is set after five times."""
    stop, fifth = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def repeat() -> None:
        try:
            for times in itertools.count(1):
                action()
                if times == 5:
                    fifth.set()
                if stop.is_set():
                    return
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield fifth
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert not failures, failures


def send_and_read(client: socket.socket, data: bytes) -> None:
    """Send all of ``data``, and read whatever comes meanwhile."""
    rest = memoryview(data)
    while rest:
        readable, writable, _ = select.select([client], [client], [], 60)
        assert readable or writable
        if readable and not client.recv(1 << 20):
            raise ConnectionAbortedError
        if writable:
            rest = rest[client.send(rest) :]


FLOODS: dict[str, Callable[[str], bytes]] = {
    "pings": lambda peer: masked(0x89, b"x" * 100) * 1_000,
    "relays": lambda peer: masked(0x81, relay(peer)) * 500,
    "long relays": lambda peer: masked(0x81, relay(peer, "x" * 60_000)) * 10,
    "nonsense": lambda peer: masked(0x81, b"?") * 1_000,
    "empty fragments": lambda peer: b"\x01\x80" + bytes(4) + (b"\0\x80" + bytes(4)) * 5_000 + b"\x80\x80" + bytes(4),
}


# For clients that answer no pings, however long they stay on a slow machine.
NO_PINGS = "--ping-interval=0"


def test_floods_on_open_connections_disturb_nobody() -> None:
    with serving(NO_PINGS, "--write-timeout=120") as server, observed(server) as observers, ExitStack() as stack:
        before = server.memory_bytes("VmHWM")
        floods = []
        for flood in FLOODS.values():
            client, peer = join_raw(server, "flood")
            stack.enter_context(client).setblocking(False)
            floods.append(stack.enter_context(repeating(partial(send_and_read, client, flood(peer)))))
        assert all(flood.wait(60) for flood in floods)
        observers.goes_on(20)
        assert healthy(server)
        assert server.memory_bytes("VmHWM") - before < 16 * MIB


RANDOM = random.Random(1).randbytes(25_000)

JUNK = {
    "bytes": RANDOM,
    "a long line": b"x" * 25_000,
    "empty lines": b"\r\n" * 12_000,
    "headers": upgrade()[:-2] + b"x: y\r\n" * 4_000,
    "requests": REQUEST * 500,
    "frames": upgrade("junk") + RANDOM,
}


def test_floods_of_junk_disturb_nobody() -> None:
    def knock(data: bytes) -> None:
        with suppress(ConnectionError), dial(server, data) as client:
            client.shutdown(socket.SHUT_WR)
            read_to_the_end(client)

    with serving() as server, observed(server) as observers, ExitStack() as stack:
        before = server.memory_bytes("VmHWM")
        floods = [stack.enter_context(repeating(partial(knock, data))) for data in JUNK.values()]
        assert all(flood.wait(60) for flood in floods)
        observers.goes_on(20)
        assert healthy(server)
        assert server.memory_bytes("VmHWM") - before < 16 * MIB


# More connections than there is room for


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let the tests themselves have 4,096 files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        raise missing("room for 4096 open files (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def with_files(count: int) -> list[str]:
    """Return the command of a server that may have so many files open."""
    return [need("prlimit"), f"--nofile={count}:{count}", TWISTD]


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("files", [64, 256])
def test_thousands_of_silent_connections_leave_room_for_everyone_else(files: int) -> None:
    with serving(command=with_files(files)) as server, observed(server) as observers, ExitStack() as stack:
        before = server.memory_bytes("VmHWM")
        for _ in range(20):
            for _ in range(100):
                stack.enter_context(dial(server))
            assert healthy(server)
            assert server.open_files() < files
        observers.goes_on()
        with observed(server):
            pass
        assert server.memory_bytes("VmHWM") - before < 16 * MIB
        assert "EMFILE" not in server.log


@pytest.mark.usefixtures("many_files")
def test_a_burst_of_connections_takes_no_more_descriptors_than_there_are() -> None:
    with serving(command=with_files(256)) as server, observed(server), ExitStack() as stack:
        server.pause()
        for _ in range(500):
            stack.enter_context(dial(server))
        server.resume()
        assert healthy(server)
        assert "EMFILE" not in server.log


@pytest.mark.usefixtures("many_files")
def test_a_server_full_of_peers_answers_503_and_recovers() -> None:
    with serving(NO_PINGS, command=with_files(128)) as server, observed(server) as observers, ExitStack() as stack:
        peers = [stack.enter_context(join_raw(server, observers.topic)[0]) for _ in range(78)]
        assert refusal(server.url + observers.topic) == (503, "10")
        for _ in range(500):
            stack.enter_context(dial(server))
        assert refusal(server.url + observers.topic) == (503, "10")
        assert healthy(server)
        for peer in peers:
            peer.close()
        observers.sees_leaving(len(peers))
        with observed(server):
            pass
        assert "EMFILE" not in server.log


# Bounds that an operator sets


def test_connections_are_bounded_in_all() -> None:
    with serving("--max-connections=1") as server, connect(server.url + "room") as peer:
        joined_id(peer)
        assert refusal(server.url + "room") == (503, "10")


@pytest.fixture(scope="module")
def counting() -> Iterator[Server]:
    """A server that takes one connection of each address, and learns addresses from a proxy."""
    with serving("--max-connections-per-address=1", "--trusted-proxy=127.0.0.1") as server:
        yield server


def test_connections_of_one_address_are_bounded(counting: Server) -> None:
    with connect(counting.url + "room") as peer:
        joined_id(peer)
        assert refusal(counting.url + "room") == (429, "10")
        elsewhere = f"ws://[::1]:{counting.port}/ws/room"
        with connect(elsewhere) as other:
            joined_id(other)


def test_behind_a_trusted_proxy_its_clients_are_bounded(counting: Server) -> None:
    def named(address: str) -> dict[str, dict[str, str]]:
        return {"additional_headers": {"X-Forwarded-For": address}}

    with ExitStack() as stack:
        for address in ("203.0.113.1", "203.0.113.2"):
            joined_id(stack.enter_context(connect(counting.url + "proxied", **named(address))))
        assert refusal(counting.url + "proxied", **named("198.51.100.7, 203.0.113.1")) == (429, "10")
        counting.wait_for("joined 'proxied' from 203.0.113.2")


def test_new_connections_of_one_address_have_a_rate() -> None:
    with serving("--max-connection-rate=0.1", "--connection-burst=2") as server:
        for _ in range(2):
            with connect(server.url + "room") as peer:
                joined_id(peer)
        status, later = refusal(server.url + "room")
        assert status == 429
        assert 1 <= int(later or 0) <= 10


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    """A server that bounds origins, messages and topics."""
    bounds = ("--max-message-rate=0.1", "--message-burst=3", "--max-peers-per-topic=2")
    with serving("--allow-origin=https://example.com", *bounds) as server:
        yield server


def test_foreign_origins_are_refused(strict: Server) -> None:
    assert refusal(strict.url + "origins", origin="https://evil.example") == (403, None)
    with connect(strict.url + "origins", origin="https://example.com") as peer:
        joined_id(peer)


def test_messages_have_a_rate_and_who_ignores_it_is_closed(strict: Server) -> None:
    with connect(strict.url + "rate") as peer:
        own = joined_id(peer)
        for _ in range(7):
            peer.send(relay(own).decode())
        assert [receive(peer).get("code") for _ in range(7)] == [None] * 3 + ["rate_limited"] * 4
        with pytest.raises(ConnectionClosed, match="1008"):
            receive(peer)


def test_a_full_topic_turns_newcomers_away(strict: Server) -> None:
    with connect(strict.url + "full") as first, connect(strict.url + "full") as second:
        joined_id(first)
        assert receive(first) == {"type": "peer-joined", "peerId": joined_id(second)}
        with connect(strict.url + "full") as third:
            assert receive(third)["code"] == "topic_full"
            with pytest.raises(ConnectionClosed, match="1013"):
                receive(third)
        # Nobody was informed of it.
        first.send(relay("nobody").decode())
        assert receive(first)["code"] == "target_not_found"


# A log that takes nothing


def serve_with_deaf_log(command: list[str], cwd: Path, *options: str) -> None:
    """Let two peers meet on a server whose log cannot be written, and stop it; the log is no reason to fail."""
    port = free_port()
    server = start(["--port", str(port)], command=command, twistd_options=options, cwd=cwd)
    try:
        server.port = port
        server.wait_until_accepting()
        for _ in range(10):
            with observed(server):
                pass
        assert server.stop() == 0
        server.assert_no_problem()
    finally:
        server.end()


@pytest.mark.parametrize(
    "script",
    ['exec "$0" "$@" >/dev/full', 'mkfifo pipe; (: <pipe) & exec "$0" "$@" >pipe'],
    ids=["full", "closed"],
)
def test_standard_output_that_takes_nothing_is_no_reason_to_fail(script: str, tmp_path: Path) -> None:
    serve_with_deaf_log(["sh", "-c", script, TWISTD], tmp_path)


def test_a_full_disk_under_the_log_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    fill = 'mount -t tmpfs -o size=4k none "$0" && head -c 4096 /dev/zero >"$0/log" && exec "$@"'
    command = [need("unshare"), "--mount", "sh", "-c", fill, str(tmp_path)]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system of its own")
    serve_with_deaf_log([*command, TWISTD], tmp_path, f"--logfile={tmp_path}/log")


# The end in the middle of it all


def test_sigterm_amid_floods_stalls_and_half_handshakes_is_a_clean_end() -> None:
    def flood_until_the_end(client: socket.socket, data: bytes) -> None:
        with suppress(OSError):
            send_and_read(client, data)

    with running(["--port=0", "--shutdown-timeout=1"]) as server, ExitStack() as stack:
        for start in (b"", b"G", upgrade()[:-1], BODY_TO_COME, upgrade("silent")):
            stack.enter_context(dial(server, start))
        stuck, target = join_raw(server, "room", receive_buffer=4096)
        stack.enter_context(stuck)
        floods = []
        for flood in FLOODS.values():
            client, _ = join_raw(server)
            stack.enter_context(client).setblocking(False)
            floods.append(stack.enter_context(repeating(partial(flood_until_the_end, client, flood(target)))))
        assert all(flood.wait(60) for flood in floods)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        server.join()
        server.assert_no_problem()
