"""``signaling-probe`` against real servers, good and bad."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve

from signaling.tools.probe import ProbeError, main, topic_url
from tests.harness.certificates import self_signed
from tests.harness.server import running


def probe(*arguments: str, **environ: str) -> tuple[int, str]:
    """Run the probe as a cron job does; returns its status and what it printed."""
    command = [sys.executable, "-m", "signaling.tools.probe", "--timeout", "3", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environ or None)
    return ended.returncode, ended.stdout + ended.stderr


def test_a_working_server_is_ok_with_times() -> None:
    with running() as server:
        for url in (f"ws://127.0.0.1:{server.port}", f"http://127.0.0.1:{server.port}/ws/"):
            status, text = probe(url)
            assert status == 0, text
            number = r"\d+\.\d ms"
            assert re.fullmatch(rf"ok: connect {number}, join {number}, relay {number} there, {number} back\n", text)


def test_a_server_with_workers_below_a_path_is_ok_and_its_metrics_are_there() -> None:
    with running(["--port", "0", "--workers", "2", "--path-prefix", "/signal", "--metrics"]) as server:
        for number in range(2):
            server.wait_for(f"worker {number} is ready")
        assert probe(f"ws://localhost:{server.port}/signal")[0] == 0
        assert server.get("/ws/room?check")[0] == 404
        assert b"\nsignaling_joins_total" in server.get("/signal/metrics")[1]


def test_a_failed_connection_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    status, text = probe(f"ws://127.0.0.1:{port}")
    assert status == 1
    assert text.startswith("failed: connecting: ConnectionRefusedError")


def test_a_refused_request_is_quoted() -> None:
    with running(["--port", "0", "--max-connections", "1"]) as server:
        status, text = probe(f"ws://127.0.0.1:{server.port}")
    assert status == 1
    assert text == "failed: joining: the server answered 503: the server is full: it takes 1 connections\n"


def test_a_silent_server_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, text = probe(f"ws://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.3")
    assert status == 1
    assert text == "failed: connecting: no answer in time\n"


def test_a_certificate_that_is_not_trusted_fails(tmp_path: Path) -> None:
    chain = tmp_path / "server.pem"
    chain.write_bytes(self_signed())
    with running(["--listen", f"ssl:0:interface=127.0.0.1:privateKey={chain}:certKey={chain}"]) as server:
        assert probe(f"wss://localhost:{server.port}")[0] == 1
        status, text = probe(f"wss://localhost:{server.port}", "--ca", str(chain))
        assert status == 0, text


@pytest.mark.parametrize(
    ("url", "start"),
    [
        ("ws://a", "ws://a/ws/probe-"),
        ("https://a:8443/", "wss://a:8443/ws/probe-"),
        ("wss://a/x/ws/", "wss://a/x/ws/probe-"),
        ("wss://a/x?y=z", "wss://a/x/ws/probe-"),
    ],
)
def test_the_url_of_a_topic(url: str, start: str) -> None:
    assert topic_url(url).startswith(start)


@pytest.mark.parametrize("url", ["", "a", "ws://[::1", "ftp://a", "ws://", "localhost:8081"])
def test_an_invalid_url_is_named(url: str) -> None:
    with pytest.raises(ProbeError, match="is not the address of a server"):
        topic_url(url)


@pytest.mark.parametrize(
    "said",
    [
        "[" * 100_000,
        '{"type":"welcome","selfId":' + "9" * 5_000 + "}",
        "[]",
        "7",
        "{}",
        '{"type":["welcome"]}',
        '{"type":"welcome"}',
        '{"type":"error"}',
        '{"type":"error","code":{"a":1}}',
        '{"type":"\\u001b[2J\\nok: connect 1 ms"}',
        b"\xff",
    ],
)
def test_any_invalid_answer_is_one_printable_line(said: str | bytes, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(lambda connection: connection.send(said), capsys)
    assert line.startswith("failed: ")
    assert line.isprintable()


def test_a_probe_that_an_operator_removes_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    def remove(connection: ServerConnection) -> None:
        connection.send('{"type":"notice","data":"This server stops soon."}')
        connection.close(4403, "Enough")

    assert failure(remove, capsys) == "failed: joining: the server closed the connection with 4403: Enough"


def failure(play: Callable[[ServerConnection], None], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the probe says of a server that handles each connection as the test says."""
    with serve(play, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        status = main(["--timeout", "3", f"ws://127.0.0.1:{server.socket.getsockname()[1]}"])
        server.shutdown()
        thread.join()
    output, errors = capsys.readouterr()
    assert (status, output) == (1, "")
    [line] = errors.splitlines()
    return line
