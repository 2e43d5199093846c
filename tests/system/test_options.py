"""``twistd signaling`` as an operator meets it: wrong options, taken ports, logs, signals."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.harness.server import Server, running, start
from tests.programs import need

TWISTD = Path(sys.executable).parent / "twistd"
SECRET_SDP = "v=0 o=secret-session"
SECRET_CANDIDATE = "candidate:secret 1 udp 192.0.2.7"
SECRET_METADATA = "secret-name"


def run_to_end(*options: str, **environ: str) -> tuple[int, str]:
    """Run a server that cannot start; returns its status and all that it printed."""
    server = start(options, env=environ)
    status = server.process.wait(20)
    server.join()
    return status, server.log


def call(server: Server, topic: str = "room") -> None:
    """Let two peers meet, exchange every type of message, make a mistake, and leave."""
    metadata = f"?metadata=%7B%22n%22%3A%22{SECRET_METADATA}%22%7D"
    with connect(server.url + topic + metadata) as caller, connect(server.url + topic) as callee:
        json.loads(caller.recv(5))
        target = json.loads(callee.recv(5))["selfId"]
        for kind, payload in (
            ("offer", {"sdp": SECRET_SDP}),
            ("answer", {"sdp": SECRET_SDP}),
            ("ice-candidate", {"candidate": SECRET_CANDIDATE}),
        ):
            caller.send(json.dumps({"type": kind, "to": target, "payload": payload}))
        caller.send(f'{{"type":"nope","payload":"{SECRET_SDP}"}}')
        caller.send(SECRET_SDP)
        assert [json.loads(callee.recv(5))["type"] for _ in range(4)][-1] == "ice-candidate"
        answers = [json.loads(caller.recv(5)) for _ in range(4)]
        assert [answer.get("code") for answer in answers[2:]] == ["invalid_type", "invalid_message"]


@pytest.mark.parametrize(
    ("options", "environ", "line"),
    [
        ([], {"PORT": "http"}, "signaling: PORT: 'http' is not a port"),
        (["--ping-interval", "soon"], {}, "signaling: --ping-interval: 'soon' is not a number of seconds"),
        (["--listen", "nope:1"], {}, "signaling: --listen nope:1: there is no kind of endpoint 'nope'; for example"),
    ],
)
def test_an_error_is_one_line_that_names_it(options: list[str], environ: dict[str, str], line: str) -> None:
    status, output = run_to_end(*options, **environ)
    assert status != 0
    assert output.startswith(line)
    assert "\n" not in output


def last_line_of_failed_start(*options: str) -> str:
    status, output = run_to_end(*options)
    assert status == 1
    assert "Traceback" not in output
    assert "rror" not in output.replace(output.splitlines()[-1], "")
    return output.splitlines()[-1]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_one_line(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        line = last_line_of_failed_start("--port", str(port))
        assert line == f"signaling: port {port}: the address is in use; stop the other server or choose another port"
        listen = f"tcp:{port}:interface={host.replace(':', chr(92) + ':')}"
        assert "the address is in use" in last_line_of_failed_start("--listen", listen)


def test_a_second_listener_that_fails_stops_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = last_line_of_failed_start("--listen", "tcp:0", "--listen", f"tcp:{port}:interface=127.0.0.1")
        assert "the address is in use" in line


def unprivileged() -> list[str]:
    """Return the command in front of another that takes root's privileges from it."""
    return [need("setpriv"), "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


def test_the_server_starts_in_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    tmp_path.chmod(0o555)
    with running(command=[*unprivileged(), str(TWISTD)], cwd=tmp_path, pidfile=None) as server:
        assert server.stop() == 0


def test_a_privileged_port_is_one_line() -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("every port is open to every user here")
    server = start(["--port", "80"], command=[*unprivileged(), str(TWISTD)])
    assert server.process.wait(20) == 1
    server.join()
    assert server.lines[-1].startswith("signaling: port 80: this user may not listen there; choose a port from 1024 up")
    assert "Traceback" not in server.log


def test_a_failed_start_leaves_no_pid_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        pidfile = tmp_path / "server.pid"
        options = ["--port", str(taken.getsockname()[1])]
        server = start(options, twistd_options=[f"--pidfile={pidfile}"], cwd=tmp_path)
        assert server.process.wait(20) == 1
        server.join()
        assert not pidfile.exists()


def test_twistd_help_lists_the_server() -> None:
    output = subprocess.run([TWISTD, "--help"], cwd="/", capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(r"^\s+signaling\s+A WebRTC signaling server", output, re.MULTILINE)


def test_the_version_is_that_of_the_server() -> None:
    command = [TWISTD, "signaling", "--version"]
    output = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.fullmatch(r"twisted-signaling \d+\.\d+\.\d+\S*\n", output)


def test_the_environment_sets_port_and_log_level() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running([], env={"PORT": str(port), "LOG_LEVEL": "DEBUG"}, cwd="/") as server:
        assert server.port == port
        call(server)
        server.wait_for("#debug")


def test_several_endpoints_serve_one_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(["--listen", "tcp:0:interface=127.0.0.1", "--listen", f"unix:{path}"]) as server:
        server.wait_for(re.escape(f"listening on unix:{path}"))
        assert server.get("/healthz") == (200, b"ok")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"\r\n\r\nok")
        assert server.stop() == 0
    assert not path.exists()


# The log


def test_joins_and_leaves_are_logged_with_topic_and_reason() -> None:
    with running() as server:
        call(server, "a%0Atopic")
        server.wait_for(r"signaling#info\] [0-9A-Z]{26} joined 'a\\ntopic' from 127\.0\.0\.1:\d+")
        server.wait_for(r"signaling#info\] [0-9A-Z]{26} left 'a\\ntopic': closed by the peer with 1000")
        assert "relayed" not in server.log


def test_relays_are_logged_at_debug() -> None:
    with running(["--port=0", "--log-level=debug"]) as server:
        call(server)
        server.wait_for(r"signaling#debug\] [0-9A-Z]{26} relayed ice-candidate of \d+ bytes to [0-9A-Z]{26}")
        server.wait_for(r"signaling#debug\] [0-9A-Z]{26} was sent the error invalid_type: ")


def test_refused_handshakes_are_logged_with_their_reason() -> None:
    with running() as server:
        with pytest.raises(Exception, match="HTTP 400"), connect(server.url + "room?metadata=" + SECRET_METADATA):
            pass
        server.wait_for(r"refused a request from 127\.0\.0\.1:\d+: 400 metadata: not a JSON object")
        assert SECRET_METADATA not in server.log


def test_aborted_connections_are_logged_with_their_reason() -> None:
    with running(["--port=0", "--ping-interval=0.2", "--ping-timeout=0.2"]) as server:
        with socket.create_connection(("127.0.0.1", server.port), 5) as silent:
            silent.sendall(
                b"GET /ws/room HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            server.wait_for(r"left 'room': aborted: no pong within 0\.2 s")


@pytest.mark.parametrize("level", ["debug", "warn"])
def test_no_payload_is_logged_at_any_level(level: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(["--port", str(port), "--log-level", level])
    try:
        server.port = port
        server.wait_until_accepting()
        server.wait_for("reactor class: ")  # twistd's own last line, whatever the level
        started = len(server.lines)
        call(server)
        assert server.stop() == 0
        assert "secret" not in server.log
        if level == "warn":
            assert server.lines[started:] == []
    finally:
        server.end()


def test_the_json_log_is_one_object_on_each_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(["--port", str(port), "--log-format", "json", "--log-level", "debug"])
    try:
        server.port = port
        server.wait_until_accepting()
        call(server)
        assert server.stop() == 0
    finally:
        server.end()
    lines = [json.loads(line) for line in server.lines]
    events = {line["event"]: line for line in lines}
    assert events.keys() >= {"log", "listening", "joined", "relayed", "error_sent", "left", "signal"}
    assert events["left"]["topic"] == "room"
    assert 0 <= events["left"]["duration"] < 60
    for secret in (SECRET_SDP, SECRET_CANDIDATE, SECRET_METADATA):
        assert secret not in server.log


def test_the_json_log_goes_to_the_log_file_of_twistd(tmp_path: Path) -> None:
    path = tmp_path / "signaling.log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(["--port", str(port), "--log-format", "json"], twistd_options=[f"--logfile={path}"])
    try:
        server.port = port
        server.wait_until_accepting()
        assert server.stop() == 0
    finally:
        server.end()
    assert "listening" in [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_an_invalid_log_format_is_named() -> None:
    assert run_to_end("--log-format", "xml") == (1, "signaling: --log-format: 'xml' is not a format (text or json)")
    server = start(["--log-format", "json"], twistd_options=["--logger=twisted.logger.globalLogPublisher"])
    assert server.process.wait(20) == 1
    server.join()
    assert server.log.startswith("signaling: --log-format json: it is written to a file or to standard output")


def test_metrics_are_served_on_the_port_or_on_their_own_endpoint() -> None:
    with running(["--port", "0", "--metrics"]) as server:
        assert server.scrape()["peers",] == 0
    own = ["--listen", "tcp:0:interface=127.0.0.1", "--metrics-listen", "tcp:0:interface=127.0.0.1"]
    with running(own) as server:
        assert server.get("/metrics")[0] == 404
        _, metrics = (int(server.next_line(r"listening on 127\.0\.0\.1:(\d+)")[1]) for _ in own[::2])
        assert server.scrape(metrics)["process_open_fds",] > 0


def test_the_metrics_endpoint_checks_the_host_name(tmp_path: Path) -> None:
    own = ["--listen", f"unix:{tmp_path}/socket", "--metrics-listen", "tcp:0:interface=127.0.0.1"]
    with running([*own, "--metrics-host", "metrics.example.com"]) as server:
        port = int(server.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1])
        statuses = {"evil.example:9090": 421, "metrics.example.com": 200, "signaling:9090": 200, "localhost": 200}
        for host, status in statuses.items():
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as asking:
                asking.request("GET", "/metrics", headers={"Host": host, "Connection": "close"})
                answer = asking.getresponse()
                assert answer.status == status, host
                assert (b"signaling_peers" in answer.read()) == (status == 200), host


def test_metrics_without_the_extra_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')")
    status, text = run_to_end("--metrics", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert status == 1
    assert text == "signaling: --metrics: needs the extra metrics, as in pip install '.[metrics]': not here"


def test_no_secret_is_logged(tmp_path: Path) -> None:
    secret = tmp_path / "turn-secret"
    secret.write_text("the-turn-secret\n")
    turn = ("--turn-secret-file", str(secret), "--turn-uri", "turn:127.0.0.1")
    with running(["--port", "0", "--log-level", "debug", "--resume-window", "30", *turn]) as server:
        with connect(server.url + "room") as peer:
            welcome = json.loads(peer.recv(5))
            peer.recv(5)
            peer.socket.shutdown(socket.SHUT_RDWR)
        token, credential = welcome["resume"]["token"], welcome["iceServers"][0]["credential"]
        with connect(f"{server.url}room?resume={token}&seen=2") as peer:
            again = json.loads(peer.recv(5))
            assert again["resumed"]
        with pytest.raises(Exception, match="400"):
            connect(f"{server.url}room?resume={again['resume']['token']}&seen=x")
        assert server.stop() == 0
        for word in (token, token[26:], again["resume"]["token"], credential, "the-turn-secret"):
            assert word not in server.log


# Signals


def test_during_the_drain_delay_peers_may_join_and_readyz_answers_503() -> None:
    with running(["--port", "0", "--drain-delay", "1.5", "--drain-spread", "0.5"]) as server:
        assert server.readiness() == (200, {"ready": True})
        with connect(server.url + "room") as early:
            early.recv(5)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("SIGTERM: stopping")
            assert server.readiness() == (503, {"ready": False, "reasons": ["the server is stopping"]})
            assert server.get("/healthz")[0] == 200
            with connect(server.url + "room") as late:
                assert json.loads(late.recv(5))["type"] == "welcome"
            with pytest.raises(ConnectionClosedError, match="1012"):
                list(early)
        assert server.process.wait(20) == 0


def test_a_second_signal_ends_the_drain_delay() -> None:
    with running(["--port", "0", "--drain-delay", "3600"]) as server:
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("SIGTERM: stopping")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_all_peers_with_1001_and_ends_with_status_0(number: int) -> None:
    with running() as server:
        with connect(server.url + "room") as peer:
            peer.recv(5)
            peer.recv(5)
            server.process.send_signal(number)
            with pytest.raises(Exception, match="1001"):
                peer.recv(5)
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log


def test_a_signal_right_after_the_start_ends_with_status_0() -> None:
    for _ in range(3):
        with running() as server:
            assert server.stop() == 0


def test_a_second_signal_does_not_wait() -> None:
    with running(["--port=0", "--shutdown-timeout=60"]) as server:
        with socket.create_connection(("127.0.0.1", server.port), 5) as silent:
            silent.sendall(
                b"GET /ws/room HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            server.wait_for("joined")
            server.process.send_signal(signal.SIGINT)
            server.wait_for("SIGINT: stopping")
            server.process.send_signal(signal.SIGINT)
            server.wait_for("SIGINT again: not waiting any longer")
            assert server.process.wait(20) == 0
        assert "Traceback" not in server.log
