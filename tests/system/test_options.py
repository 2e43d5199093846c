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
from tests.harness.starting import problem_of
from tests.programs import free_port, unprivileged

TWISTD = Path(sys.executable).parent / "twistd"
SECRET_SDP = "v=0 o=secret-session"
SECRET_CANDIDATE = "candidate:secret 1 udp 192.0.2.7"
SECRET_METADATA = "secret-name"


def run_to_end(*options: str, **environ: str) -> tuple[int, str]:
    """Run a server that cannot start; returns its status and all that it printed."""
    server = start(options, env=environ)
    status = server.process.wait(60)
    server.join()
    return status, server.log


def call(server: Server, topic: str = "room") -> None:
    """Let two peers meet, exchange every type of message, make a mistake, and leave."""
    metadata = f"?metadata=%7B%22n%22%3A%22{SECRET_METADATA}%22%7D"
    with connect(server.url + topic + metadata) as caller, connect(server.url + topic) as callee:
        json.loads(caller.recv(60))
        target = json.loads(callee.recv(60))["selfId"]
        for kind, payload in (
            ("offer", {"sdp": SECRET_SDP}),
            ("answer", {"sdp": SECRET_SDP}),
            ("ice-candidate", {"candidate": SECRET_CANDIDATE}),
        ):
            caller.send(json.dumps({"type": kind, "to": target, "payload": payload}))
        caller.send(f'{{"type":"nope","payload":"{SECRET_SDP}"}}')
        caller.send(SECRET_SDP)
        assert [json.loads(callee.recv(60))["type"] for _ in range(4)][-1] == "ice-candidate"
        answers = [json.loads(caller.recv(60)) for _ in range(4)]
        assert [answer.get("code") for answer in answers[2:]] == ["invalid_type", "invalid_message"]


def test_an_error_is_one_line_that_names_it() -> None:
    status, output = run_to_end(PORT="http")
    assert status != 0
    assert output.startswith("signaling: PORT: 'http' is not a port")
    assert "\n" not in output


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_named(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        in_use = "the address is in use; stop the other server or choose another port"
        assert problem_of("--port", str(port)) == f"port {port}: {in_use}"
        listen = f"tcp:{port}:interface={host.replace(':', chr(92) + ':')}"
        assert "the address is in use" in problem_of("--listen", listen)
        assert "the address is in use" in problem_of("--listen", "tcp:0", "--listen", listen)


def test_a_failed_start_is_one_line_and_leaves_no_pid_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        pidfile = tmp_path / "server.pid"
        options = ["--listen", "tcp:0", "--listen", f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"]
        server = start(options, twistd_options=[f"--pidfile={pidfile}"], cwd=tmp_path)
        assert server.process.wait(60) == 1
        server.join()
        assert not pidfile.exists()
    assert "the address is in use" in server.lines[-1]
    assert "Traceback" not in server.log
    assert "rror" not in "".join(server.lines[:-1])


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
    assert server.process.wait(60) == 1
    server.join()
    assert server.lines[-1].startswith("signaling: port 80: this user may not listen there; choose a port from 1024 up")
    assert "Traceback" not in server.log


def test_the_version_is_that_of_the_server() -> None:
    command = [TWISTD, "signaling", "--version"]
    output = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.fullmatch(r"twisted-signaling \d+\.\d+\.\d+\S*\n", output)


def test_several_endpoints_serve_one_server_and_its_metrics(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(["--listen", "tcp:0:interface=127.0.0.1", "--listen", f"unix:{path}", "--metrics"]) as server:
        server.wait_for(re.escape(f"listening on unix:{path}"))
        assert server.get("/healthz") == (200, b"ok")
        assert server.scrape()["peers",] == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(path))
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"\r\n\r\nok")
        assert server.stop() == 0
    assert not path.exists()


# The log


UPGRADE = (
    b"GET /ws/room HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_what_happens_to_connections_is_logged_with_its_reason() -> None:
    with running(["--port=0", "--ping-interval=0.2", "--ping-timeout=2"]) as server:
        with socket.create_connection(("127.0.0.1", server.port), 60) as silent:
            silent.sendall(UPGRADE)
            call(server, "a%0Atopic")
            with pytest.raises(Exception, match="HTTP 400"), connect(server.url + "room?metadata=" + SECRET_METADATA):
                pass
            server.wait_for(r"signaling#info\] [0-9A-Z]{26} joined 'a\\ntopic' from 127\.0\.0\.1:\d+")
            server.wait_for(r"signaling#info\] [0-9A-Z]{26} left 'a\\ntopic': closed by the peer with 1000")
            server.wait_for(r"refused a request from 127\.0\.0\.1:\d+: 400 metadata: not a JSON object")
            server.wait_for(r"left 'room': aborted: no pong within 2 s")
        assert "relayed" not in server.log
        assert "secret" not in server.log


def test_no_line_has_an_address_if_the_operator_wants_networks_only() -> None:
    options = ["--port=0", "--workers=2", "--log-addresses=network", "--max-connections-per-address=1"]
    with running([*options, "--log-level=debug"]) as server:
        server.wait_until_ready()
        with connect(server.url + "room") as peer:
            peer.recv(60)
            with pytest.raises(Exception, match=r"HTTP 429"):
                connect(server.url + "room")
        server.get("/nope")
        server.wait_for(r"joined 'room' from 127\.0\.0\.0/24$")
        refused = (
            r"refused a request from 127\.0\.0\.0/24: 429 at most 1 connections from one address \(127\.0\.0\.0/24\)"
        )
        server.wait_for(refused)
        assert server.stop() == 0
    assert "127.0.0.1" not in server.log


def test_relays_are_logged_at_debug_without_payload_and_secret(tmp_path: Path) -> None:
    port = free_port()
    secret = tmp_path / "turn-secret"
    secret.write_text("the-turn-secret\n")
    options = ["--resume-window", "30", "--turn-secret-file", str(secret), "--turn-uri", "turn:127.0.0.1"]
    with running(options, env={"PORT": str(port), "LOG_LEVEL": "DEBUG"}, cwd="/") as server:
        assert server.port == port
        with connect(server.url + "room") as peer:
            welcome = json.loads(peer.recv(60))
            peer.recv(60)
            peer.socket.shutdown(socket.SHUT_RDWR)
        token, credential = welcome["resume"]["token"], welcome["iceServers"][0]["credential"]
        with connect(f"{server.url}room?resume={token}&seen=2") as peer:
            again = json.loads(peer.recv(60))
            assert again["resumed"]
        with pytest.raises(Exception, match="400"):
            connect(f"{server.url}room?resume={again['resume']['token']}&seen=x")
        call(server, "another")
        server.wait_for(r"signaling#debug\] [0-9A-Z]{26} relayed ice-candidate of \d+ bytes to [0-9A-Z]{26}")
        server.wait_for(r"signaling#debug\] [0-9A-Z]{26} was sent the error invalid_type: ")
        assert server.stop() == 0
    payloads = (SECRET_SDP, SECRET_CANDIDATE, SECRET_METADATA)
    for word in (*payloads, token, token[26:], again["resume"]["token"], credential, "the-turn-secret"):
        assert word not in server.log


def test_a_healthy_server_logs_nothing_at_warn() -> None:
    port = free_port()
    server = start(["--port", str(port), "--log-level", "warn"])
    try:
        server.port = port
        server.wait_until_accepting()
        server.wait_for("reactor class: ")  # twistd's own last line, whatever the level
        started = len(server.lines)
        call(server)
        assert server.stop() == 0
        assert server.lines[started:] == []
    finally:
        server.end()


def test_the_json_log_is_one_object_on_each_line() -> None:
    port = free_port()
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
    port = free_port()
    server = start(["--port", str(port), "--log-format", "json"], twistd_options=[f"--logfile={path}"])
    try:
        server.port = port
        server.wait_until_accepting()
        assert server.stop() == 0
    finally:
        server.end()
    assert "listening" in [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_an_invalid_log_format_is_named() -> None:
    assert problem_of("--log-format", "xml") == "--log-format: 'xml' is not a format (text or json)"
    server = start(["--log-format", "json"], twistd_options=["--logger=twisted.logger.globalLogPublisher"])
    assert server.process.wait(60) == 1
    server.join()
    assert server.log.startswith("signaling: --log-format json: it is written to a file or to standard output")


def test_metrics_on_their_own_endpoint_check_the_host_name() -> None:
    own = ["--listen", "tcp:0:interface=127.0.0.1", "--metrics-listen", "tcp:0:interface=127.0.0.1"]
    with running([*own, "--metrics-host", "metrics.example.com"]) as server:
        assert server.get("/metrics")[0] == 404
        _, port = (int(server.next_line(r"listening on 127\.0\.0\.1:(\d+)")[1]) for _ in own[::2])
        assert server.scrape(port)["process_open_fds",] > 0
        statuses = {"evil.example:9090": 421, "metrics.example.com": 200, "signaling:9090": 200, "localhost": 200}
        for host, status in statuses.items():
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as asking:
                asking.request("GET", "/metrics", headers={"Host": host, "Connection": "close"})
                answer = asking.getresponse()
                assert answer.status == status, host
                assert (b"signaling_peers" in answer.read()) == (status == 200), host


def test_metrics_without_the_extra_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')")
    status, text = run_to_end("--metrics", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert status == 1
    assert text == "signaling: --metrics: needs the extra metrics (pip install 'twisted-signaling[metrics]'): not here"


# Signals


def test_during_the_drain_delay_peers_may_join_and_readyz_answers_503() -> None:
    with running(["--port", "0", "--drain-delay", "6", "--drain-spread", "0.5"]) as server:
        assert server.readiness() == (200, {"ready": True})
        with connect(server.url + "room") as early:
            early.recv(60)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("SIGTERM: stopping")
            assert server.readiness() == (503, {"ready": False, "reasons": ["the server is stopping"]})
            assert server.get("/healthz")[0] == 200
            with connect(server.url + "room") as late:
                assert json.loads(late.recv(60))["type"] == "welcome"
            with pytest.raises(ConnectionClosedError, match="1012"):
                list(early)
        assert server.process.wait(60) == 0


# What SIGTERM does is shown over TLS, in test_clients.
def test_ctrl_c_closes_all_peers_with_1001_and_ends_with_status_0() -> None:
    with running() as server:
        with connect(server.url + "room") as peer:
            peer.recv(60)
            peer.recv(60)
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(Exception, match="1001"):
                peer.recv(60)
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.log


def test_a_second_signal_does_not_wait() -> None:
    with running(["--port=0", "--shutdown-timeout=60"]) as server:
        with socket.create_connection(("127.0.0.1", server.port), 60) as silent:
            silent.sendall(UPGRADE)
            server.wait_for("joined")
            server.process.send_signal(signal.SIGINT)
            server.wait_for("SIGINT: stopping")
            server.process.send_signal(signal.SIGINT)
            server.wait_for("SIGINT again: not waiting any longer")
            assert server.process.wait(60) == 0
        assert "Traceback" not in server.log
