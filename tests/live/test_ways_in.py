"""A client that nobody here wrote, the ``websockets`` package, meets a real ``twistd signaling`` over every way in."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect as connect_async
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.uri import parse_uri

from tests.live.twistd import Server, running
from tests.programs import missing

SECONDS = 10.0
MAX_MESSAGE_BYTES = 65_536
CROWD = 200
PROXIED = b"PROXY TCP4 198.51.100.7 203.0.113.1 5000 8081\r\n"

# Small, so that a reader that stalls is noticed soon; the kernel doubles it.
RECEIVE_BUFFER_BYTES = 4_096


# The ways in


class Certificate:
    """A self-signed certificate for the loopback address."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signaling")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .sign(key, hashes.SHA256())
        )
        self.path = folder / "cert.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key_path = folder / "key.pem"
        self.key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


class Ways:
    """One server that listens in every way, and clients that come in by each.

    Attributes:
        server: the running server.
        certificate: what its TLS listener shows.
    """

    def __init__(self, server: Server, folder: Path, certificate: Certificate) -> None:
        self.server = server
        self.certificate = certificate
        self._path = folder / "socket"
        server.wait_for("listening on unix:")
        self._tcp, self._tls, self._haproxy = map(int, re.findall(r"listening on \S+:(\d+)(?!\S)", server.log))

    @staticmethod
    def options(folder: Path, certificate: Certificate) -> list[str]:
        """Return what makes a server listen in every way; the last one is the UNIX socket."""
        loopback = "interface=127.0.0.1"
        return [
            f"--listen=tcp:0:{loopback}",
            f"--listen=ssl:0:{loopback}:privateKey={certificate.key_path}:certKey={certificate.path}",
            f"--listen=haproxy:tcp:0:{loopback}",
            f"--listen=unix:{folder / 'socket'}",
        ]

    def connect(self, way: str, topic: str, *, buffer_bytes: int | None = None, **options: Any) -> ClientConnection:
        """Connect to ``topic``.

        Args:
            way: one of ``WAYS``.
            buffer_bytes: the kernel's receive buffer; None leaves it to the kernel.
        """
        is_unix = way == "unix"
        client = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
        client.settimeout(SECONDS)
        if buffer_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        client.connect(str(self._path) if is_unix else ("127.0.0.1", getattr(self, f"_{way}")))
        if way == "haproxy":
            client.sendall(PROXIED)
        if way == "tls":
            options["ssl"] = ssl.create_default_context(cafile=self.certificate.path)
        scheme = "wss" if way == "tls" else "ws"
        return connect(f"{scheme}://127.0.0.1/ws/{topic}", sock=client, **options)


WAYS = ["tcp", "tls", "haproxy", "unix"]
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def ways(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """A server with the default bounds."""
    folder = tmp_path_factory.mktemp("ways")
    with running(Ways.options(folder, certificate)) as server:
        yield Ways(server, folder, certificate)


@pytest.fixture(scope="module")
def impatient(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """A server that soon cuts off what takes nothing or does not answer."""
    folder = tmp_path_factory.mktemp("impatient")
    bounds = ["--write-timeout=0.5", "--ping-interval=0.3", "--ping-timeout=0.5"]
    with running([*Ways.options(folder, certificate), *bounds]) as server:
        yield Ways(server, folder, certificate)


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic for this test alone."""
    return re.sub(r"\W", "-", request.node.name)


# The clients


class Client:
    """A peer that speaks JSON over a connection of the ``websockets`` package.

    Attributes:
        id: its own, from the ``welcome``.
        peers: what its ``peer-list`` named.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.id: str = self.receive()["selfId"]
        self.peers: list[dict[str, Any]] = self.receive()["peers"]

    def receive_text(self) -> str:
        """Wait for the next message."""
        return str(self.connection.recv(SECONDS))

    def receive(self) -> dict[str, Any]:
        """Wait for the next message, as an object."""
        message: dict[str, Any] = json.loads(self.receive_text())
        return message

    def send(self, **message: Any) -> None:
        """Send one message."""
        self.connection.send(json.dumps(message))

    def is_accepted(self, number: int, target: str, payload: str) -> bool:
        """Send an offer and a message to oneself behind it; what comes back first tells what became of the offer."""
        self.send(type="offer", to=target, payload=payload, msgId=str(number))
        self.send(type="ice-candidate", to=self.id)
        answer = self.receive()
        if answer["type"] == "ice-candidate":
            return True
        assert (answer["code"], answer["msgId"]) == ("dropped", str(number))
        assert self.receive()["type"] == "ice-candidate"
        return False

    def close_code(self) -> int:
        """Wait for the server to close; returns the code of its close frame, having read what came before."""
        with pytest.raises(ConnectionClosed) as closed:
            self._read_to_the_end()
        assert closed.value.rcvd is not None, "the connection ended without a close frame"
        return closed.value.rcvd.code

    def _read_to_the_end(self) -> None:
        while True:
            self.connection.recv(SECONDS)


Join = Callable[..., Client]


@pytest.fixture
def join() -> Iterator[Join]:
    """Make clients that leave when the test is over."""
    with ExitStack() as stack:

        def client(connection: ClientConnection) -> Client:
            return Client(stack.enter_context(connection))

        yield client


@dataclass
class Stalled:
    """A sender, and a reader that took nothing until the server refused a message.

    Attributes:
        accepted: how many messages were accepted, numbered from 0.
    """

    sender: Client
    reader: Client
    accepted: int


LARGE = "x" * 30_000


def fill(sender: Client, target: str) -> int:
    """Send to a peer that does not read, until that is refused; returns how many messages were accepted."""
    number = 0
    while sender.is_accepted(number, target, LARGE):
        number += 1
    return number


@pytest.fixture
def stalled(ways: Ways, join: Join, way: str, topic: str) -> Stalled:
    return stall(ways, join, way, topic)


def stall(ways: Ways, join: Join, way: str, topic: str) -> Stalled:
    """Let a reader stop reading and a sender notice."""
    # The client stops to read the socket when one message waits for the application.
    reader = join(ways.connect(way, topic, buffer_bytes=RECEIVE_BUFFER_BYTES, max_queue=1))
    sender = join(ways.connect(way, topic))
    return Stalled(sender, reader, fill(sender, reader.id))


# Meeting


@every_way
def test_two_peers_meet_and_part(ways: Ways, join: Join, way: str, topic: str) -> None:
    first = join(ways.connect(way, topic))
    second = join(ways.connect(way, topic))
    assert (first.peers, second.peers) == ([], [{"id": first.id}])
    assert first.receive() == {"type": "peer-joined", "peerId": second.id}
    second.connection.close()
    assert first.receive() == {"type": "peer-left", "peerId": second.id}


def test_peers_meet_whichever_way_they_came(ways: Ways, join: Join, topic: str) -> None:
    clients = [join(ways.connect(way, topic)) for way in WAYS]
    assert [peer["id"] for peer in clients[-1].peers] == [client.id for client in clients[:-1]]


def test_metadata_is_shown_to_those_there_and_to_those_who_come(ways: Ways, join: Join, topic: str) -> None:
    metadata = {"name": "Zoë"}
    first = join(ways.connect("tcp", topic + "?metadata=%7B%22name%22%3A%22Zo%C3%AB%22%7D"))
    second = join(ways.connect("tcp", topic + "?metadata=%7B%22name%22%3A%22Zo%C3%AB%22%7D"))
    assert second.peers == [{"id": first.id, "metadata": metadata}]
    assert first.receive() == {"type": "peer-joined", "peerId": second.id, "metadata": metadata}


def test_a_page_of_any_origin_may_join(ways: Ways, join: Join, topic: str) -> None:
    assert join(ways.connect("tcp", topic, origin="https://anywhere.example")).peers == []


def test_a_crowd_agrees_on_who_is_there() -> None:
    with running() as server:
        asyncio.run(meet_in_a_crowd(server.url + "crowd"))


async def meet_in_a_crowd(url: str) -> None:
    async with asyncio.timeout(60):
        # Unbounded: with a full queue, this client reads no more, not even the answer to its close frame.
        crowd = await asyncio.gather(*(connect_async(url, open_timeout=30, max_queue=None) for _ in range(CROWD)))
        seen = await asyncio.gather(*(who_is_there(connection) for connection in crowd))
        ids = {peer_id for peer_id, _ in seen}
        assert len(ids) == CROWD
        for peer_id, others in seen:
            assert sorted(others) == sorted(ids - {peer_id})
        half = CROWD // 2
        await asyncio.gather(*(connection.close() for connection in crowd[:half]))
        left = await asyncio.gather(*(who_left(connection, half) for connection in crowd[half:]))
        assert all(sorted(those) == sorted(peer_id for peer_id, _ in seen[:half]) for those in left)
        await asyncio.gather(*(connection.close() for connection in crowd[half:]))


async def who_is_there(connection: Any) -> tuple[str, list[str]]:
    """Return a peer's own id and all the others' as it hears of them, twice where it hears twice."""
    peer_id = json.loads(await connection.recv())["selfId"]
    others = [peer["id"] for peer in json.loads(await connection.recv())["peers"]]
    while len(others) < CROWD - 1:
        event = json.loads(await connection.recv())
        assert event["type"] == "peer-joined"
        others.append(event["peerId"])
    return peer_id, others


async def who_left(connection: Any, count: int) -> list[str]:
    events = [json.loads(await connection.recv()) for _ in range(count)]
    assert {event["type"] for event in events} == {"peer-left"}
    return [event["peerId"] for event in events]


# Relaying


PAYLOAD = r'{"sdp":"v=0\r\n", "z":1e400,"a":123456789012345678901234567890 , "\u00e9":"\/é😀","n":null}'


@every_way
@pytest.mark.parametrize("kind", ["offer", "answer", "ice-candidate"])
def test_a_payload_is_relayed_verbatim(ways: Ways, join: Join, way: str, kind: str, topic: str) -> None:
    target = join(ways.connect(way, topic))
    sender = join(ways.connect(way, topic))
    target.receive()
    sender.connection.send(f'{{"type":"{kind}","to":"{target.id}","payload":{PAYLOAD},"msgId":"m-1"}}')
    relayed = target.receive_text()
    assert PAYLOAD in relayed
    assert relayed.replace(PAYLOAD, "0") == f'{{"type":"{kind}","from":"{sender.id}","payload":0,"msgId":"m-1"}}'


@every_way
def test_messages_arrive_in_the_order_sent(ways: Ways, join: Join, way: str, topic: str) -> None:
    target = join(ways.connect(way, topic))
    sender = join(ways.connect(way, topic))
    target.receive()
    for number in range(1_000):
        sender.send(type="ice-candidate", to=target.id, payload=number)
    assert [target.receive()["payload"] for _ in range(1_000)] == list(range(1_000))


@every_way
def test_a_message_of_64_kib_is_relayed(ways: Ways, join: Join, way: str, topic: str) -> None:
    client = join(ways.connect(way, topic))
    text = json.dumps({"type": "offer", "to": client.id, "payload": ""})
    payload = "x" * (MAX_MESSAGE_BYTES - len(text))
    client.connection.send(text.replace('""', f'"{payload}"'))
    assert client.receive()["payload"] == payload


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("not JSON", "invalid_message"),
        (b"{}", "invalid_message"),
        ('{"type":"offer","to":1}', "invalid_message"),
        ('{"type":"hello","to":"x"}', "invalid_type"),
        ('{"type":"offer"}', "missing_target"),
        ('{"type":"offer","to":"x"}', "target_not_found"),
    ],
)
def test_a_mistake_is_answered_and_the_connection_stays(
    ways: Ways, join: Join, message: str | bytes, code: str, topic: str
) -> None:
    client = join(ways.connect("tcp", topic))
    client.connection.send(message)
    assert client.receive()["code"] == code
    client.send(type="offer", to=client.id)
    assert client.receive() == {"type": "offer", "from": client.id}


def test_a_peer_of_another_topic_is_not_found(ways: Ways, join: Join, topic: str) -> None:
    here, there = join(ways.connect("tcp", topic)), join(ways.connect("tcp", topic + "-2"))
    here.send(type="offer", to=there.id, msgId="m-1")
    answer = here.receive()
    assert (answer["code"], answer["msgId"]) == ("target_not_found", "m-1")


# A reader that stops


@every_way
def test_what_was_accepted_for_a_slow_reader_arrives_in_order(stalled: Stalled) -> None:
    stalled.reader.receive()
    received = [stalled.reader.receive()["msgId"] for _ in range(stalled.accepted)]
    assert received == [str(number) for number in range(stalled.accepted)]


@every_way
def test_a_slow_reader_that_caught_up_takes_messages_again(stalled: Stalled) -> None:
    for _ in range(1 + stalled.accepted):
        stalled.reader.receive()
    assert stalled.sender.is_accepted(-1, stalled.reader.id, "again")
    assert stalled.reader.receive()["payload"] == "again"


@every_way
def test_a_slow_reader_delays_nobody_else(ways: Ways, join: Join, stalled: Stalled, way: str, topic: str) -> None:
    other = join(ways.connect(way, topic))
    stalled.sender.send(type="offer", to=other.id, payload="now")
    assert other.receive()["payload"] == "now"


@every_way
def test_a_sender_is_told_what_a_slow_reader_never_got(stalled: Stalled) -> None:
    stalled.reader.connection.socket.shutdown(socket.SHUT_RDWR)
    dropped = []
    while (answer := stalled.sender.receive())["type"] == "error":
        dropped.append(int(answer["msgId"]))
    assert answer == {"type": "peer-left", "peerId": stalled.reader.id}
    assert dropped
    assert dropped == list(range(dropped[0], stalled.accepted))


@every_way
def test_a_reader_that_takes_nothing_is_cut_off_and_its_topic_told(
    impatient: Ways, join: Join, way: str, topic: str
) -> None:
    stalled = stall(impatient, join, way, topic)
    impatient.server.wait_for(f"{stalled.reader.id} left .*: cut off: it took nothing for 0.5 s", SECONDS)
    while (answer := stalled.sender.receive())["type"] == "error":
        assert answer["code"] == "dropped"
    assert answer == {"type": "peer-left", "peerId": stalled.reader.id}


# Signs of life


@every_way
def test_a_ping_is_answered(ways: Ways, join: Join, way: str, topic: str) -> None:
    assert join(ways.connect(way, topic)).connection.ping(b"there?").wait(SECONDS)


@every_way
def test_a_peer_that_answers_no_ping_leaves_one_that_does(impatient: Ways, join: Join, way: str, topic: str) -> None:
    client = join(impatient.connect(way, topic))
    with socket.create_connection(("127.0.0.1", impatient.server.port), SECONDS) as silent:
        silent.sendall(opening_request(f"ws://127.0.0.1/ws/{topic}"))
        joined = client.receive()["peerId"]
        assert client.receive() == {"type": "peer-left", "peerId": joined}


def opening_request(url: str) -> bytes:
    protocol = ClientProtocol(parse_uri(url))
    protocol.send_request(protocol.connect())
    return b"".join(protocol.data_to_send())


PROGRAM = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1]) as connection:
    for message in connection:
        print(message, flush=True)
"""


def test_a_killed_client_is_told_as_left() -> None:
    with running() as server, connect(server.url + "room") as connection:
        client = Client(connection)
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, server.url + "room"], stdout=subprocess.PIPE, text=True
        ) as program:
            try:
                assert client.receive()["type"] == "peer-joined"
                assert program.stdout is not None
                killed = json.loads(program.stdout.readline())["selfId"]
            finally:
                program.send_signal(signal.SIGKILL)
        assert client.receive() == {"type": "peer-left", "peerId": killed}


# The end of a connection


@every_way
def test_a_client_that_closes_reads_its_own_code(ways: Ways, join: Join, way: str, topic: str) -> None:
    client = join(ways.connect(way, topic))
    client.connection.close(4000, "bye")
    assert client.close_code() == 4000


@every_way
@pytest.mark.parametrize("fragments", [1, 2, 70])
def test_a_message_over_64_kib_closes_with_1009(ways: Ways, join: Join, way: str, fragments: int, topic: str) -> None:
    client = join(ways.connect(way, topic))
    client.connection.send(["x" * (MAX_MESSAGE_BYTES // fragments + 1)] * fragments)
    assert client.close_code() == 1009


MASK = bytes(4)
BAD_FRAMES = {
    "a text that is no UTF-8": (b"\x81\x82" + MASK + b"\xc3\x28", 1007),
    "a text that ends inside a character": (b"\x81\x81" + MASK + b"\xc3", 1007),
    "a frame without a mask": (b"\x81\x02{}", 1002),
    "a reserved opcode": (b"\x83\x80" + MASK, 1002),
    "a reserved bit": (b"\xc1\x80" + MASK, 1002),
    "a continuation of nothing": (b"\x80\x80" + MASK, 1002),
    "a fragmented ping": (b"\x09\x80" + MASK, 1002),
    "a ping of 126 bytes": (b"\x89\xfe\x00\x7e" + MASK + bytes(126), 1002),
    "a close code of one byte": (b"\x88\x81" + MASK + b"\x03", 1002),
}
every_bad_frame = pytest.mark.parametrize("bad", BAD_FRAMES)


@every_way
@every_bad_frame
def test_a_bad_frame_is_answered_by_a_close_frame(ways: Ways, join: Join, way: str, bad: str, topic: str) -> None:
    frame, code = BAD_FRAMES[bad]
    client = join(ways.connect(way, topic))
    client.connection.socket.sendall(frame)
    assert client.close_code() == code


@every_bad_frame
def test_a_close_frame_is_readable_by_one_that_sends_on(ways: Ways, bad: str, topic: str) -> None:
    frame, code = BAD_FRAMES[bad]
    url = f"ws://127.0.0.1:{ways.server.port}/ws/{topic}"
    protocol = ClientProtocol(parse_uri(url))
    protocol.send_request(protocol.connect())
    with socket.create_connection(("127.0.0.1", ways.server.port), SECONDS) as client:
        client.sendall(b"".join(protocol.data_to_send()) + frame + bytes(1_000_000))
        # Never a bare reset: that would raise here.
        while data := client.recv(65_536):
            protocol.receive_data(data)
    protocol.receive_eof()
    assert protocol.close_code == code


# The end of the server


def test_sigterm_closes_everyone_with_1001_and_ends_with_status_0(
    certificate: Certificate, tmp_path: Path, join: Join, topic: str
) -> None:
    with running(Ways.options(tmp_path, certificate)) as server:
        ways = Ways(server, tmp_path, certificate)
        clients = [join(ways.connect(way, topic)) for way in WAYS for _ in range(10)]
        server.process.send_signal(signal.SIGTERM)
        assert {client.close_code() for client in clients} == {1001}
        assert server.process.wait(SECONDS) == 0


@every_way
def test_sigterm_waits_for_one_that_never_reads_only_so_long(
    certificate: Certificate, tmp_path: Path, join: Join, way: str, topic: str
) -> None:
    with running([*Ways.options(tmp_path, certificate), "--shutdown-timeout=1"]) as server:
        stalled = stall(Ways(server, tmp_path, certificate), join, way, topic)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert stalled.sender.close_code() == 1001
        assert server.process.wait(SECONDS) == 0
        assert time.monotonic() - told < 5
        server.join()
        assert "Traceback" not in server.log


def test_sigterm_ends_also_with_a_socket_that_nobody_reads() -> None:
    with running(["--port=0", "--shutdown-timeout=1"]) as server, connect(server.url + "room") as connection:
        sender = Client(connection)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(opening_request(server.url + "room"))
            fill(sender, sender.receive()["peerId"])
            assert server.stop() == 0


# Addresses


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_is_reached_over_both_protocols(family: socket.AddressFamily, host: str) -> None:
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError:
        missing(f"the address {host}")
    shown = f"[{host}]" if ":" in host else host
    with running() as server, connect(f"ws://{shown}:{server.port}/ws/room") as connection:
        Client(connection)
        server.wait_for(rf"joined 'room' from {re.escape(shown)}:\d+", SECONDS)


@pytest.mark.parametrize(
    ("way", "address"),
    [("tcp", r"127\.0\.0\.1:\d+"), ("tls", r"127\.0\.0\.1:\d+"), ("haproxy", "198.51.100.7:5000"), ("unix", "a UNIX")],
)
def test_the_log_tells_where_a_client_came_from(ways: Ways, join: Join, way: str, address: str, topic: str) -> None:
    client = join(ways.connect(way, topic))
    ways.server.wait_for(f"{client.id} joined '{topic}' from {address}", SECONDS)


def test_no_client_made_the_server_fail(ways: Ways, impatient: Ways) -> None:
    """The last test of this file: whatever came before, nothing was logged as an error."""
    for server in (ways.server, impatient.server):
        assert not re.search("Traceback|#error|#critical|Unhandled", server.log), server.log
