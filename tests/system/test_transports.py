"""The same scenarios over every kind of transport, and on every reactor: own TCP, Twisted's TCP, TLS, UNIX, PROXY."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.harness.certificates import self_signed
from tests.harness.frames import TEXT, masked
from tests.harness.raw_client import PATIENCE_SECONDS, REQUEST, relay, upgrade
from tests.harness.server import HOST, Server, running, start
from tests.harness.server import wait_until as wait

# As on macOS, where Twisted's own transports serve.
WITHOUT_EPOLL = "import select; del select.epoll; from twisted.scripts.twistd import run; run()"
ON_UVLOOP = "import uvloop; uvloop.install(); from twisted.scripts.twistd import run; run()"

KINDS = ["own TCP", "Twisted's TCP", "TLS", "UNIX", "PROXY"]
CLOSE = 0x88
PING = 0x89
PONG = 0x8A


class Client:
    """A client's end of one connection."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._data = b""

    def send(self, data: bytes) -> None:
        self.end.sendall(data)

    def say(self, message: Any) -> None:
        self.send(masked(0x80 | TEXT, json.dumps(message).encode()))

    def offer(self, target: str, payload: str = "", msg_id: str = "m") -> None:
        self.send(masked(0x80 | TEXT, relay(target, payload, msg_id)))

    def _read(self) -> None:
        received = self.end.recv(262_144)
        if not received:
            raise EOFError
        self._data += received

    def take(self, count: int) -> bytes:
        """Read so many bytes."""
        while len(self._data) < count:
            self._read()
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def take_head(self) -> bytes:
        """Read the head of an HTTP answer."""
        while b"\r\n\r\n" not in self._data:
            self._read()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        return head

    def frame(self) -> tuple[int, bytes]:
        """Read the next frame: its first byte, and its payload."""
        first, size = self.take(2)
        if size == 126:
            size = int.from_bytes(self.take(2), "big")
        elif size == 127:
            size = int.from_bytes(self.take(8), "big")
        return first, self.take(size)

    def receive(self) -> Any:
        """Read the next text message, and answer pings."""
        while True:
            first, payload = self.frame()
            if first == 0x80 | TEXT:
                return json.loads(payload)
            if first == PING:
                self.send(masked(PONG, payload))

    def close_code(self) -> int:
        """Read up to the close frame."""
        while True:
            first, payload = self.frame()
            if first == CLOSE:
                return int.from_bytes(payload[:2], "big")

    def join(self, topic: str) -> str:
        """Join; returns the peer's id."""
        self.send(upgrade(topic))
        assert self.take_head().startswith(b"HTTP/1.1 101 ")
        own: str = self.receive()["selfId"]
        assert self.receive()["type"] == "peer-list"
        return own

    def ended(self) -> bool:
        """Wait for the end, clean or not."""
        try:
            while self.end.recv(262_144):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def reset(self) -> None:
        # An SSLSocket would close the connection properly.
        descriptor = self.end.detach()
        with socket.socket(fileno=descriptor) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass
class Endpoint:
    """Where a kind of transport is served.

    Attributes:
        dial: connects; its argument is the size of a receive buffer, or None.
    """

    server: Server
    dial: Callable[[int | None], socket.socket]


class Service:
    """Servers that listen with every kind of transport, and the clients that are connected to them."""

    def __init__(self, stack: ExitStack, folder: Path, *options: str) -> None:
        self._stack = stack
        pem, path = folder / "server.pem", folder / "socket"
        pem.write_bytes(self_signed())
        context = ssl.create_default_context(cafile=str(pem))
        inside = "0:interface=127.0.0.1"
        listen = [f"tcp:{inside}", f"ssl:{inside}:privateKey={pem}:certKey={pem}", f"haproxy:tcp:{inside}"]
        arguments = [word for text in [*listen, f"unix:{path}"] for word in ("--listen", text)] + list(options)
        main = self._run(arguments)
        tcp, tls, proxy = (int(main.next_line(r"listening on \S+:(\d+)")[1]) for _ in listen)
        other = self._run(["--listen", listen[0], *options], command=[sys.executable, "-c", WITHOUT_EPOLL])
        header = b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 80\r\n"
        self.servers = [main, other]
        self.endpoints = {
            "own TCP": Endpoint(main, lambda size: _dial((HOST, tcp), size)),
            "Twisted's TCP": Endpoint(other, lambda size: _dial((HOST, other.port), size)),
            "TLS": Endpoint(
                main, lambda size: context.wrap_socket(_dial((HOST, tls), size), server_hostname="localhost")
            ),
            "UNIX": Endpoint(main, lambda size: _dial(str(path), size)),
            "PROXY": Endpoint(main, lambda size: _dial((HOST, proxy), size, header)),
        }

    def _run(self, arguments: list[str], **how: Any) -> Server:
        server = start(arguments, **how)
        self._stack.callback(server.end)
        server.wait_until_listening()
        return server

    def connect(self, kind: str, stack: ExitStack, receive_buffer: int | None = None) -> Client:
        client = self.endpoints[kind].dial(receive_buffer)
        stack.enter_context(client)
        client.settimeout(PATIENCE_SECONDS)
        return Client(client)

    def stop(self) -> None:
        """Stop the servers, which have logged no error."""
        for server in self.servers:
            assert server.stop() == 0, server.log
            server.assert_no_problem()


def _dial(address: Any, receive_buffer: int | None, data: bytes = b"") -> socket.socket:
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(PATIENCE_SECONDS)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(address)
    client.sendall(data)
    return client


@contextmanager
def serving_everything(folder: Path, *options: str) -> Iterator[Service]:
    with ExitStack() as stack:
        service = Service(stack, folder, *options)
        yield service
        service.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Servers with the default limits."""
    with serving_everything(tmp_path_factory.mktemp("patient")) as service:
        yield service


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Servers that wait for pongs and for readers a short time only."""
    folder = tmp_path_factory.mktemp("impatient")
    options = ("--write-timeout=5", "--ping-interval=1", "--ping-timeout=5")
    with serving_everything(folder, *options) as service:
        yield service


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of transport."""
    kind: str = request.param
    return kind


@pytest.fixture
def dial(service: Service, kind: str) -> Iterator[Callable[..., Client]]:
    """Connect with one kind of transport."""
    with ExitStack() as stack:
        yield lambda receive_buffer=None: service.connect(kind, stack, receive_buffer)


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic of this test alone."""
    return re.sub(r"\W+", "-", request.node.name)


@pytest.fixture
def pair(dial: Callable[..., Client], topic: str) -> tuple[Client, str, Client, str]:
    """Two peers of one topic, each with its id."""
    first, second = dial(), dial()
    own, other = first.join(topic), second.join(topic)
    assert first.receive()["peerId"] == other
    return first, own, second, other


Pair = tuple[Client, str, Client, str]


def leaves(observer: Client, peer: str) -> bool:
    """Wait until a peer leaves."""
    while (message := observer.receive()).get("type") != "peer-left" or message["peerId"] != peer:
        pass
    return True


def test_large_relays_arrive_whole(pair: Pair) -> None:
    sender, own, receiver, target = pair
    payload = "".join(random.Random(1).choices("abcdefgh", k=64_000))
    for number in range(3):
        sender.offer(target, payload, str(number))
    for number in range(3):
        message = receiver.receive()
        assert (message["from"], message["msgId"], message["payload"]) == (own, str(number), payload)


def test_a_burst_in_one_segment_is_relayed_in_order(pair: Pair) -> None:
    sender, _, receiver, target = pair
    sender.send(b"".join(masked(0x80 | TEXT, relay(target, "", str(number))) for number in range(500)))
    assert [receiver.receive()["msgId"] for _ in range(500)] == [str(number) for number in range(500)]


def test_a_handshake_and_frames_may_come_byte_by_byte(dial: Callable[..., Client], topic: str) -> None:
    client = dial()
    for byte in upgrade(topic):
        client.send(bytes([byte]))
    assert client.take_head().startswith(b"HTTP/1.1 101 ")
    for byte in masked(PING, b"x" * 20):
        client.send(bytes([byte]))
    assert [client.receive()["type"] for _ in range(2)] == ["welcome", "peer-list"]
    assert client.frame() == (PONG, b"x" * 20)


def test_http_requests_are_answered_one_after_the_other(dial: Callable[..., Client]) -> None:
    client = dial()
    client.send(REQUEST * 20)
    for _ in range(20):
        assert client.take_head().startswith(b"HTTP/1.1 200 ")
        assert client.take(2) == b"ok"


def test_a_refusal_is_readable_to_its_end(dial: Callable[..., Client]) -> None:
    client = dial()
    client.send(upgrade("room").replace(b"Version: 13", b"Version: 12") + b"x" * 50_000)
    assert client.take_head().startswith(b"HTTP/1.1 426 ")
    client.end.shutdown(socket.SHUT_WR)
    assert client.ended()


def overwhelm(sender: Client, target: str) -> list[str]:
    """Send to a peer that does not read until something is dropped; returns what was accepted."""
    dropped: set[str] = set()
    sent: list[str] = []
    while not dropped:
        assert len(sent) < 2_000
        for _ in range(20):
            sent.append(str(len(sent)))
            sender.offer(target, "x" * 50_000, sent[-1])
        # An answer to each round says that all of it was handled.
        sender.say({"type": "nothing", "msgId": "end of round"})
        while (message := sender.receive()).get("msgId") != "end of round":
            if message.get("code") == "dropped":
                dropped.add(message["msgId"])
    return [msg_id for msg_id in sent if msg_id not in dropped]


def test_a_slow_reader_costs_its_senders_what_it_does_not_read_and_recovers(
    dial: Callable[..., Client], topic: str
) -> None:
    sender, slow = dial(), dial(4_096)
    own, target = sender.join(topic), slow.join(topic)
    accepted = overwhelm(sender, target)
    assert [slow.receive()["msgId"] for _ in accepted] == accepted
    sender.offer(target, "", "again")
    message = slow.receive()
    assert (message["from"], message["msgId"]) == (own, "again")


def test_a_client_that_closes_its_half_leaves(pair: Pair) -> None:
    observer, own, client, leaving = pair
    client.offer(own, "x" * 50_000)
    client.end.shutdown(socket.SHUT_WR)
    assert observer.receive()["from"] == leaving
    assert leaves(observer, leaving)


@pytest.mark.parametrize("at", [1, 5, 3_000])
def test_a_client_that_is_reset_in_the_middle_of_a_frame_leaves(pair: Pair, at: int) -> None:
    observer, own, client, leaving = pair
    client.send(masked(0x80 | TEXT, relay(own, "x" * 50_000))[:at])
    client.reset()
    assert leaves(observer, leaving)


def test_a_client_reads_its_close_frame_although_it_sends_on(dial: Callable[..., Client], topic: str) -> None:
    client = dial()
    own = client.join(topic)
    client.send(masked(0x80 | TEXT, relay(own, "x")))
    # A frame of no known kind, and more than the server reads at once.
    client.send(masked(0x83, b"") + masked(0x80 | TEXT, relay(own, "x" * 60_000)) * 10)
    assert client.close_code() == 1002
    client.send(masked(CLOSE, b""))
    client.end.shutdown(socket.SHUT_WR)
    assert client.ended()


def test_a_close_frame_is_answered(dial: Callable[..., Client], topic: str) -> None:
    client = dial()
    client.join(topic)
    client.send(masked(CLOSE, (1000).to_bytes(2, "big") + b"bye"))
    assert client.frame() == (CLOSE, (1000).to_bytes(2, "big") + b"bye")
    assert client.ended()


def test_peers_that_read_nothing_are_cut_off(impatient: Service, topic: str) -> None:
    def is_cut_off(kind: str) -> bool:
        with ExitStack() as stack:
            sender, reader = impatient.connect(kind, stack), impatient.connect(kind, stack, 4_096)
            sender.join(topic + kind.split(maxsplit=1)[0])
            target = reader.join(topic + kind.split(maxsplit=1)[0])
            overwhelm(sender, target)
            return leaves(sender, target)

    # Each sender answers pings while it waits.
    with ThreadPoolExecutor() as threads:
        assert all(threads.map(is_cut_off, KINDS))


def test_peers_that_answer_no_pings_are_cut_off(impatient: Service, topic: str) -> None:
    with ExitStack() as stack:
        silent = [impatient.connect(kind, stack) for kind in KINDS]
        ids = [client.join(topic + kind.split()[0]) for client, kind in zip(silent, KINDS, strict=True)]
        assert all(client.ended() for client in silent)
    for kind, own in zip(KINDS, ids, strict=True):
        impatient.endpoints[kind].server.wait_for(f"{own} left .* no pong within")


def test_sigterm_closes_every_connection_with_a_reason_that_can_be_read(tmp_path: Path) -> None:
    with serving_everything(tmp_path) as service, ExitStack() as stack:
        clients = [service.connect(kind, stack) for kind in KINDS]
        for client in clients:
            own = client.join("room")
            client.send(masked(0x80 | TEXT, relay(own, "x" * 60_000)))
        for server in service.servers:
            server.process.send_signal(signal.SIGTERM)
        for client in clients:
            with suppress(ConnectionError):
                client.send(masked(0x80 | TEXT, relay("x" * 26, "x" * 60_000)))
            assert client.close_code() == 1001
            with suppress(OSError):
                client.end.shutdown(socket.SHUT_WR)
            assert client.ended()
        for server in service.servers:
            assert server.process.wait(PATIENCE_SECONDS) == 0


# Reactors


def command(reactor: str) -> tuple[list[str] | None, list[str]]:
    """Return the command that runs ``twistd`` on a reactor, and its options."""
    if reactor == "uvloop":
        if find_spec("uvloop") is None:
            pytest.skip("uvloop is not installed")
        return [sys.executable, "-c", ON_UVLOOP], ["--reactor=asyncio"]
    return None, [f"--reactor={reactor}"]


@pytest.mark.parametrize("reactor", ["select", "poll", "epoll", "asyncio", "uvloop"])
def test_own_tcp_serves_on_every_reactor(reactor: str) -> None:
    own, options = command(reactor)
    listen = ["--listen=tcp:0:interface=127.0.0.1"]
    with running(listen, command=own, twistd_options=options) as server, ExitStack() as stack:

        def connect() -> Client:
            return Client(stack.enter_context(_dial((HOST, server.port), None)))

        # Once it serves a peer, it has opened all that it needs.
        last = connect()
        last.join("elsewhere")
        idle = server.open_files()
        for _ in range(3):
            peers = [connect() for _ in range(20)]
            ids = [peer.join("room") for peer in peers]
            for peer in peers:
                peer.offer(ids[0], "x" * 50_000)
            received = 0
            while received < len(peers):
                received += peers[0].receive()["type"] == "offer"
            for peer in peers[:10]:
                peer.reset()
            for peer in peers[10:]:
                peer.end.close()
            wait(lambda: server.open_files() <= idle, PATIENCE_SECONDS, server.open_files)
        server.process.send_signal(signal.SIGTERM)
        assert last.close_code() == 1001
        last.end.close()
        assert server.process.wait(PATIENCE_SECONDS) == 0
        server.assert_no_problem()


APPLICATION_TEST = """
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from signaling import SignalingFactory
from tests.harness.raw_client import upgrade


class Client(Protocol):
    def __init__(self):
        self.joined, self.ended = Deferred(), Deferred()
        self.received = b""

    def connectionMade(self):
        self.transport.write(upgrade())

    def dataReceived(self, data):
        self.received += data
        if b'"peers"' in self.received and not self.joined.called:
            self.joined.callback(None)

    def connectionLost(self, reason):
        self.ended.callback(None)


class ApplicationTests(TestCase):
    takes_port = False

    @inlineCallbacks
    def end(self, how):
        factory = SignalingFactory()
        port = yield TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        if self.takes_port:
            port = factory.accept_on(port)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        clients = []
        for _ in range(3):
            clients.append((yield connectProtocol(endpoint, Client())))
            yield clients[-1].joined
        assert len(factory.connections) == 3
        how(factory, clients)
        for client in clients:
            yield client.ended
        while factory.connections:
            yield deferLater(reactor, 0, lambda: None)
        yield port.stopListening()

    def test_clients_that_close(self):
        return self.end(lambda factory, clients: [client.transport.loseConnection() for client in clients])

    def test_clients_that_abort(self):
        return self.end(lambda factory, clients: [client.transport.abortConnection() for client in clients])

    def test_a_server_that_aborts(self):
        return self.end(lambda factory, clients: [c.abort("a test") for c in list(factory.connections)])


class OwnTransportTests(ApplicationTests):
    takes_port = True
"""


@pytest.mark.parametrize("reactor", ["select", "epoll", "asyncio"])
def test_an_applications_tests_leave_a_clean_reactor(reactor: str, tmp_path: Path) -> None:
    (tmp_path / "test_application.py").write_text(APPLICATION_TEST)
    command = [sys.executable, "-m", "twisted.trial", f"--reactor={reactor}", "test_application"]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    trial = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert trial.returncode == 0, trial.stdout + trial.stderr
    assert "PASSED (successes=6)" in trial.stdout
