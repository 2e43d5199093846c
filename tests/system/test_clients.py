"""The ``websockets`` package, a client that no one here wrote, against a real server."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as async_connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect, unix_connect

from tests.harness.certificates import self_signed
from tests.harness.peer import joined_id, receive
from tests.harness.raw_client import upgrade
from tests.harness.server import Server, running

UPGRADE = (
    b"GET /ws/room HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the default options; each test has topics of its own."""
    with running() as server:
        yield server


def test_two_clients_meet_and_signal(server: Server) -> None:
    with connect(server.url + "call") as caller:
        caller_id = joined_id(caller)
        with connect(server.url + "call") as callee:
            callee_id = joined_id(callee)
            assert receive(caller) == {"type": "peer-joined", "peerId": callee_id}
            caller.send(json.dumps({"type": "offer", "to": callee_id, "payload": {"sdp": "x"}, "msgId": "1"}))
            assert receive(callee) == {"type": "offer", "from": caller_id, "payload": {"sdp": "x"}, "msgId": "1"}
        assert receive(caller) == {"type": "peer-left", "peerId": callee_id}


def test_many_clients_agree_on_who_is_there(server: Server) -> None:
    async def join(url: str) -> tuple[ClientConnection, str, set[str]]:
        # Of those that joined first, the client reads no further than its queue: closing would wait for the rest.
        peer = await async_connect(url, max_queue=None)
        own = json.loads(await peer.recv())["selfId"]
        return peer, own, {entry["id"] for entry in json.loads(await peer.recv())["peers"]}

    async def scenario(url: str) -> None:
        joined = await asyncio.gather(*(join(url) for _ in range(100)))
        everyone = {own for _, own, _ in joined}
        for peer, own, known in joined:
            while known | {own} != everyone:
                known.add(json.loads(await peer.recv())["peerId"])
        await asyncio.gather(*(peer.close() for peer, _, _ in joined))

    asyncio.run(asyncio.wait_for(scenario(server.url + "many"), 60))


def test_a_killed_client_is_told_to_its_topic(server: Server) -> None:
    code = (
        "import sys; from websockets.sync.client import connect; c = connect(sys.argv[1]); [c.recv() for _ in range(9)]"
    )
    with connect(server.url + "killed") as observer:
        joined_id(observer)
        client = subprocess.Popen([sys.executable, "-c", code, server.url + "killed"], stdout=subprocess.PIPE)
        with client:
            assert receive(observer)["type"] == "peer-joined"
            client.kill()
        assert receive(observer)["type"] == "peer-left"


@pytest.mark.parametrize(("frame", "code"), [(b"\x81\x81\0\0\0\0\xff", 1007), (b"\x81\x01x", 1002)])
def test_a_framing_error_is_answered_with_a_close_frame_and_an_end(server: Server, frame: bytes, code: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 60) as client:
        client.sendall(upgrade(f"framing-{code}") + frame + b"more" * 10_000)
        received = client.makefile("rb").read()
    assert code.to_bytes(2, "big") in received.split(b'"peers":[]}')[1][:4]


def test_an_oversized_message_is_1009(server: Server) -> None:
    with connect(server.url + "oversized") as peer:
        joined_id(peer)
        peer.send("x" * 65_537)
        with pytest.raises(ConnectionClosed, match="1009"):
            peer.recv(60)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_the_port_is_open_on_ipv6_and_ipv4(server: Server, host: str) -> None:
    with connect(f"ws://{host}:{server.port}/ws/ip") as peer:
        assert joined_id(peer)


def test_a_unix_socket_serves_and_its_clients_write_no_lines_into_the_log(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(["--listen", f"unix:{path}"]) as server:
        with unix_connect(str(path), "ws://x/ws/room") as peer:
            assert joined_id(peer)
        for name in (b"a\x1b[31m\nb", b"\xff"):
            with socket.socket(socket.AF_UNIX) as client:
                client.bind(bytes(tmp_path) + b"/" + name)
                client.connect(str(path))
                client.sendall(b"GET /ws/room HTTP/1.1\r\nUpgrade: websocket\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
        server.wait_for(r"refused a request from unix:.*/a\\x1b\[31m\\nb: 400 ")
        server.wait_for(r"refused a request from unix:.*/\\udcff: 400 ")


def presented(server: Server) -> bytes:
    """Return the certificate that a new connection is given."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", server.port), 60) as plain:
        with context.wrap_socket(plain) as client:
            return client.getpeercert(binary_form=True) or b""


def test_tls_serves_reloads_its_certificate_at_sighup_and_closes_with_1001(tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    pem.write_bytes(self_signed())
    context = ssl.create_default_context(cafile=str(pem))
    # The client reads and writes in two threads, which Python's ssl does not always survive with TLS 1.3.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with running(["--listen", f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"]) as server:
        first = presented(server)
        with connect(f"wss://localhost:{server.port}/ws/room", ssl=context) as peer:
            own = joined_id(peer)
            pem.write_bytes(self_signed())
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("the certificate was reloaded")
            second = presented(server)
            assert second != first
            pem.write_text("no certificate")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("all stays as it is: --listen ssl:")
            assert presented(server) == second
            peer.send(json.dumps({"type": "offer", "to": own, "payload": "x" * 60_000}))
            assert len(receive(peer)["payload"]) == 60_000
            server.process.terminate()
            with pytest.raises(ConnectionClosed, match="1001"):
                peer.recv(60)
        assert server.process.wait(60) == 0


def test_the_proxy_protocol_tells_the_clients_address_and_sighup_reaches_a_certificate_behind_it(
    tmp_path: Path,
) -> None:
    pem = tmp_path / "server.pem"
    pem.write_bytes(self_signed())
    secure = f"haproxy:ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
    with running(["--listen", "haproxy:tcp:0:interface=127.0.0.1", "--listen", secure]) as server:
        pem.write_bytes(self_signed())
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("the certificate was reloaded")
        with socket.create_connection(("127.0.0.1", server.port), 60) as client:
            client.sendall(b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 80\r\n" + UPGRADE)
            server.wait_for(r"joined 'room' from 203\.0\.113\.9:4711")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server over TLS, and its certificate."""
    pem = tmp_path_factory.mktemp("secure") / "server.pem"
    pem.write_bytes(self_signed())
    with running(["--listen", f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"]) as server:
        yield server, pem


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_nothing_older_than_tls_1_2_is_spoken(secure: tuple[Server, Path]) -> None:
    server, pem = secure
    context = ssl.create_default_context(cafile=str(pem))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", server.port), 60) as plain:
        with pytest.raises(ssl.SSLError, match=r"(?i)version"):
            context.wrap_socket(plain, server_hostname="localhost")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", server.port), 60) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            assert client.version() == "TLSv1.2"


def test_tls_serves_clients_that_name_protocols_as_browsers_do(secure: tuple[Server, Path]) -> None:
    server, pem = secure
    for offered in (["http/1.1"], ["h2", "http/1.1"]):
        context = ssl.create_default_context(cafile=str(pem))
        context.set_alpn_protocols(offered)
        with socket.create_connection(("127.0.0.1", server.port), 60) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as client:
                assert client.selected_alpn_protocol() == "http/1.1"
                client.sendall(UPGRADE)
                assert client.recv(65_536).startswith(b"HTTP/1.1 101 ")


def test_readers_that_never_read_do_not_hold_up_the_end() -> None:
    with running(["--port=0", "--shutdown-timeout=1"]) as server, socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", server.port))
        stuck.sendall(UPGRADE)
        server.wait_for("joined")
        with connect(server.url + "room") as sender:
            receive(sender)
            target = receive(sender)["peers"][0]["id"]
            message = json.dumps({"type": "offer", "to": target, "payload": "x" * 60_000})
            answer = None
            while answer is None:
                for _ in range(20):
                    sender.send(message)
                try:
                    answer = json.loads(sender.recv(0.1))
                except TimeoutError:
                    continue
            assert answer["code"] == "dropped"
        assert server.stop() == 0
