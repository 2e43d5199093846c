"""The systemd units, as far as they can be tried without being init."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import stat
import subprocess
from pathlib import Path

from websockets.sync.client import connect, unix_connect

from tests.harness.server import TWISTD, running
from tests.programs import free_port, need
from tests.system.reverse_proxies import ActivatedNode

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICE = DEPLOY / "signaling.service"


def analyze(*arguments: str | Path) -> str:
    command = [need("systemd-analyze"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr


def test_the_units_verify_without_a_word(tmp_path: Path) -> None:
    # The installed program stands elsewhere on this machine; all else is verified as it is shipped.
    text = SERVICE.read_text().replace("/opt/signaling/bin/twistd", TWISTD)
    assert TWISTD in text
    (tmp_path / SERVICE.name).write_text(text)
    (tmp_path / "signaling.socket").write_text((DEPLOY / "signaling.socket").read_text())
    assert analyze("verify", tmp_path / SERVICE.name, tmp_path / "signaling.socket") == ""


def test_the_service_is_little_exposed() -> None:
    output = analyze("security", "--offline=true", SERVICE)
    level = re.search(r"Overall exposure level for signaling\.service: ([\d.]+)", output)
    assert level
    assert float(level[1]) < 2.0


def test_a_socket_handed_over_is_served() -> None:
    port = free_port()
    options = re.search(r"--listen (\S+)", SERVICE.read_text())
    assert options
    command = [need("systemd-socket-activate"), f"--listen=[::]:{port}", "--fdname=signaling", TWISTD]
    with socket.socket() as first:
        with running(
            ["--listen", options[1]], command=command, ready=lambda: first.connect(("127.0.0.1", port))
        ) as server:
            with connect(f"ws://127.0.0.1:{port}/ws/room") as peer:
                assert json.loads(peer.recv(60))["type"] == "welcome"
            assert server.stop() == 0


def test_the_file_of_a_unix_socket_stays_as_systemd_made_it(tmp_path: Path) -> None:
    path = tmp_path / "signaling.sock"
    command = [need("systemd-socket-activate"), f"--listen={path}", "--fdname=signaling", TWISTD]

    def connect_first() -> None:
        path.chmod(0o600)
        first.connect(str(path))

    with (
        socket.socket(socket.AF_UNIX) as first,
        running(["--listen", "systemd:domain=UNIX:index=0"], command=command, ready=connect_first) as server,
    ):
        with unix_connect(str(path), "ws://localhost/ws/room") as peer:
            assert json.loads(peer.recv(60))["type"] == "welcome"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert server.stop() == 0
        assert path.is_socket()


def test_readiness_and_stopping_are_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(path))
        notified.settimeout(60)
        with running(command=[TWISTD], env={"NOTIFY_SOCKET": str(path)}) as server:
            assert notified.recv(100) == b"READY=1"
            server.process.send_signal(signal.SIGTERM)
            assert notified.recv(100) == b"STOPPING=1"
            assert server.process.wait(60) == 0


def test_a_restart_behind_an_activated_socket_refuses_no_connection() -> None:
    node = ActivatedNode()
    node.start()

    async def answer() -> bytes:
        # A port that is closed would refuse this, and a connection that is given up answers b"".
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        try:
            return (await asyncio.wait_for(reader.read(), 60))[:15]
        finally:
            writer.close()

    async def connect_steadily() -> list[bytes]:
        restart = asyncio.create_task(asyncio.to_thread(node.restart))
        asked = []
        while not restart.done():
            asked.append(asyncio.create_task(answer()))
            await asyncio.sleep(0.01)  # The rate: whatever becomes of those before, 100 a second.
        await restart
        return await asyncio.gather(*asked)

    try:
        answers = asyncio.run(connect_steadily())
    finally:
        node.end()
    assert len(answers) > 20
    assert set(answers) == {b"HTTP/1.1 200 OK"}
