"""``twistd signaling --workers``: several processes that are one server to its peers and to its operator."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect, unix_connect

from tests.harness.certificates import self_signed
from tests.harness.peer import joined_id, observed, receive
from tests.harness.raw_client import REQUEST, dial, read_to_the_end, read_until, relay, upgrade
from tests.harness.server import TWISTD, Server, running, start
from tests.harness.starting import problem_of
from tests.programs import free_port, need
from tests.system import test_failures as failures
from tests.system.worker_processes import ending, pids, port_in, shared, topic_of


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of two workers; it has to survive all tests together."""
    with shared("--metrics") as server:
        yield server


# Whatever ends, trickles or half-closes: what holds for one process holds for several.

test_an_end_at_any_point_of_the_handshake_disturbs_nobody = (
    failures.test_an_end_at_any_point_of_the_handshake_disturbs_nobody
)
test_a_peer_that_ends_its_connection_is_told_gone = failures.test_a_peer_that_ends_its_connection_is_told_gone
test_a_half_close_ends_the_other_half = failures.test_a_half_close_ends_the_other_half
test_a_client_that_sends_one_byte_at_a_time_is_served = failures.test_a_client_that_sends_one_byte_at_a_time_is_served


# Where topics live


def encodings(topic: str) -> list[str]:
    everything = "".join(f"%{byte:02x}" for byte in topic.encode())
    return [topic, everything, everything.upper(), f"{topic[:3]}%{ord(topic[3]):02X}{topic[4:]}", f"{topic}?x=/ws/b"]


@pytest.mark.parametrize("worker", [0, 1])
def test_peers_of_a_topic_meet_whichever_way_they_write_it(server: Server, worker: int) -> None:
    with ExitStack() as stack:
        known = []
        for path in encodings(topic_of(worker, "encoded")):
            peer = stack.enter_context(connect(server.url + path))
            own = receive(peer)["selfId"]
            assert [entry["id"] for entry in receive(peer)["peers"]] == known
            known.append(own)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda topic: b"\r\n" + upgrade(topic),
        lambda topic: upgrade(topic).replace(b"/ws/", b"/%77s/", 1),
        lambda topic: upgrade(topic).replace(b"/ws/", b"http://server/ws/", 1),
    ],
    ids=["an-empty-line", "an-encoded-mount", "absolute-form"],
)
def test_peers_meet_over_every_request_that_is_understood_at_all(server: Server, request_of) -> None:
    for worker in (0, 1):
        topic = topic_of(worker, "spelled")
        with connect(server.url + topic) as observer:
            joined_id(observer)
            with dial(server, request_of(topic)) as client:
                read_until(client, b'"peers":[{')
                assert receive(observer)["type"] == "peer-joined"
            assert receive(observer)["type"] == "peer-left"


def test_a_second_request_of_a_connection_asks_no_wrong_worker(server: Server) -> None:
    with dial(server, REQUEST + upgrade(topic_of(0))) as client:
        received = read_to_the_end(client)
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in received


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /ws/a/b HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 404 "),
        (b"GET /ws/%zz HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /ws/%61 HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 426 "),
        (b"GET /ws/a HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000, b"HTTP/1.1 431 "),
        (b"GET /" + b"x" * 20_000, b"HTTP/1.1 431 "),
        (b"OPTIONS /ws/a HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 204 "),
    ],
)
def test_what_is_wrong_is_answered_as_by_one_process(server: Server, data: bytes, answer: bytes) -> None:
    with dial(server, data) as client:
        assert read_to_the_end(client).startswith(answer)


# What an operator sees


def test_health_readiness_and_metrics_are_those_of_all(server: Server) -> None:
    assert server.get("/healthz") == (200, b"ok")
    assert server.readiness()[1] == {"ready": True}
    before = server.scrape()
    with connect(server.url + topic_of(0, "seen")) as first, connect(server.url + topic_of(1, "seen")) as second:
        joined_id(first)
        joined_id(second)
        now = server.scrape()
    assert now["peers",] - before["peers",] == 2
    assert now["topics",] - before["topics",] == 2
    assert now["joins_total",] - before["joins_total",] == 2
    assert (now["ready",], now["worker_up", "worker-0"], now["worker_up", "worker-1"]) == (1, 1, 1)
    for process in ("listener", "worker-0", "worker-1"):
        assert now["process_resident_memory_bytes", process] > 0
        assert ("reactor_lag_seconds_count", process) in now


def test_one_log_tells_of_all_workers() -> None:
    port = free_port()
    server = start(["--port", str(port), "--workers=2", "--log-format=json"])
    try:
        server.wait_for('"worker_started".*"worker": 0')
        server.wait_for('"worker_started".*"worker": 1')
        server.port = port_in(server.log)
        for worker in (0, 1):
            with connect(server.url + topic_of(worker)) as peer:
                joined_id(peer)
            server.wait_for(f'"left".*"worker": {worker}')
        assert server.stop() == 0
    finally:
        server.end()
    lines = [json.loads(line) for line in server.lines]
    joined = [line for line in lines if line["event"] == "joined"]
    assert [(line["worker"], line["topic"]) for line in joined] == [(0, topic_of(0)), (1, topic_of(1))]
    assert all(line["address"].startswith("127.0.0.1:") for line in joined)
    assert all(re.fullmatch(r"20\d\d-.*Z", line["time"]) for line in lines)


def test_what_a_worker_says_before_it_has_a_log_is_in_the_log(tmp_path: Path) -> None:
    servers = tmp_path / "ice.json"
    servers.write_text("[]")
    with running(["--port=0", "--workers=2", "--ice-servers", str(servers)]) as server:
        process = pids(server)[0]
        servers.unlink()
        os.kill(process, signal.SIGKILL)
        server.wait_for(rf"#warn\] worker 0: signaling: --ice-servers: {servers}: No such file")
        # It did not die early if its start took long.
        server.wait_for(r"worker 0 died: exit status 1; it is restarted (now|in 0\.5 s)")
        assert server.get("/healthz") == (200, b"ok")
        assert server.readiness()[1] == {"ready": False, "reasons": ["worker 0 is starting"]}
        servers.write_text("[]")
        server.wait_for(rf"worker 0 is ready, as process (?!{process}\b)")
        assert server.readiness()[1] == {"ready": True}
        assert server.stop() == 0


# A worker that dies


def until_closed(peer) -> int | None:
    """Read to the end of a connection; returns the code of its close frame."""
    try:
        while True:
            peer.recv(60)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def test_a_worker_that_is_killed_costs_the_other_ones_peers_nothing() -> None:
    doomed, safe = topic_of(0, "doomed"), topic_of(1, "safe")
    with running(["--port=0", "--workers=2", "--metrics"]) as server, ExitStack() as stack:
        (process, _), count = pids(server), 5
        observers = stack.enter_context(observed(server, safe))
        peers = [stack.enter_context(connect(server.url + doomed)) for _ in range(count)]
        assert server.scrape()["joins_total",] == 2 + count
        os.kill(process, signal.SIGKILL)
        observers.goes_on(3)
        assert [until_closed(peer) for peer in peers] == [None] * count
        # They reconnect at once; a connection that is too early waits for the new process.
        back = [stack.enter_context(connect(server.url + doomed, open_timeout=60)) for _ in range(count)]
        assert len({joined_id(peer) for peer in back}) == count
        observers.goes_on(3)
        now = server.scrape()
        server.wait_for("worker 0 died: signal SIGKILL; it is restarted now")
    assert (now["worker_restarts_total", "worker-0"], now["joins_total",]) == (1, 2 + 2 * count)


# The end


@pytest.mark.parametrize(("options", "code"), [([], 1001), (["--drain-spread=0.2"], 1012)])
def test_all_peers_are_told_when_the_server_stops(options: list[str], code: int) -> None:
    with running(["--port=0", "--workers=2", *options]) as server, ending(*pids(server)) as workers:
        with ExitStack() as stack:
            peers = [stack.enter_context(connect(server.url + topic_of(worker))) for worker in (0, 1, 0, 1)]
            for peer in peers:
                joined_id(peer)
            server.process.send_signal(signal.SIGTERM)
            assert [until_closed(peer) for peer in peers] == [code] * 4
        assert server.process.wait(60) == 0
        workers.wait()
        server.join()
        server.assert_no_problem()
        assert server.log.count("stopping: closing 2 peers") == 2


def test_newcomers_are_let_in_while_balancers_look_away() -> None:
    with running(["--port=0", "--workers=2", "--drain-delay=20"]) as server:
        pids(server)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("SIGTERM: stopping")
        assert server.readiness()[1] == {"ready": False, "reasons": ["the server is stopping"]}
        with connect(server.url + topic_of(1)) as peer:
            joined_id(peer)
            assert server.stop() == 0
            server.wait_for("SIGTERM again: not waiting any longer")
            with pytest.raises(ConnectionClosed):
                peer.recv(60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_is_a_drain_too(number: int) -> None:
    command = [need("setsid"), TWISTD]
    with running(["--port=0", "--workers=2"], command=command) as server, ending(*pids(server)) as workers:
        with connect(server.url + topic_of(0)) as first, connect(server.url + topic_of(1)) as second:
            joined_id(first)
            joined_id(second)
            os.killpg(server.process.pid, number)
            assert (until_closed(first), until_closed(second)) == (1001, 1001)
            assert server.process.wait(60) == 0
        workers.wait()
        assert "worker_died" not in server.log


def test_workers_do_not_outlive_a_listener_that_is_killed() -> None:
    with running(["--port=0", "--workers=2"]) as server, ending(*pids(server)) as workers:
        with connect(server.url + topic_of(0)) as peer:
            joined_id(peer)
            server.process.kill()
            assert until_closed(peer) == 1001
        workers.wait()


# Where it listens


def test_a_unix_socket_serves(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(["--listen", f"unix:{path}", "--workers=2"]) as server:
        pids(server)
        for worker in (0, 1):
            uri = f"ws://x/ws/{topic_of(worker)}"
            with unix_connect(str(path), uri) as first, unix_connect(str(path), uri) as second:
                own = joined_id(first)
                target = joined_id(second)
                assert receive(first)["peerId"] == target
                second.send(relay(own, "hello").decode())
                assert receive(first)["payload"] == "hello"
        server.wait_for("joined .* from a UNIX socket")
        assert server.stop() == 0
    assert not path.exists()


def test_a_socket_handed_over_is_shared_too() -> None:
    port = free_port()
    command = [need("systemd-socket-activate"), f"--listen=[::]:{port}", "--fdname=signaling", TWISTD]
    options = ["--listen", "systemd:domain=INET6:index=0", "--workers=2"]
    with socket.socket() as first:
        with running(options, command=command, ready=lambda: first.connect(("127.0.0.1", port))) as server:
            server.port = port
            processes = pids(server)
            for worker in (0, 1):
                with connect(server.url + topic_of(worker), open_timeout=60) as peer:
                    joined_id(peer)
            for process in processes:
                assert b"LISTEN_" not in Path(f"/proc/{process}/environ").read_bytes()
            assert server.stop() == 0


@pytest.mark.parametrize("reactor", ["asyncio"])
def test_workers_run_the_listeners_reactor(reactor: str) -> None:
    with running(["--port=0", "--workers=2"], twistd_options=[f"--reactor={reactor}"]) as server:
        pids(server)
        with observed(server):
            pass
        assert server.stop() == 0


def test_where_the_request_line_is_hidden_it_says_what_to_do(tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    pem.write_bytes(self_signed())
    tls = f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
    assert problem_of("--workers=2", "--listen", tls) == (
        f"--listen {tls}: --workers cannot read what is encrypted here; end TLS at a proxy in front"
        " (docs/proxies.md), or run without --workers"
    )
    assert "let the proxy send X-Forwarded-For" in problem_of("--workers=2", "--listen", "haproxy:tcp:0")


# What options mean


def test_connections_are_divided_and_options_and_secrets_reach_every_worker() -> None:
    options = ["--max-connections=3", "--allow-origin=https://example.com", "--metrics", "--max-topic-bytes=20"]
    turn = "--turn-uri=turn:turn.example.com"
    with shared(*options, turn, "--metadata-updates", env={"TURN_SECRET": "secret"}) as server, ExitStack() as stack:
        assert server.scrape()["connections_max",] == 3
        for worker, share in ((0, 2), (1, 1)):
            for _ in range(share):
                welcome = receive(stack.enter_context(connect(server.url + topic_of(worker))))
                assert welcome["iceServers"][0]["urls"] == ["turn:turn.example.com"]
                assert welcome["features"] == ["metadata-updates"]
            with pytest.raises(Exception, match="HTTP 503"):
                stack.enter_context(connect(server.url + topic_of(worker)))
            with pytest.raises(Exception, match="HTTP 403"):
                stack.enter_context(connect(server.url + topic_of(worker), origin="https://example.org"))
        with pytest.raises(Exception, match="HTTP 400"):
            stack.enter_context(connect(server.url + urllib.parse.quote("a topic that is too long")))
        assert "secret" not in server.log


def test_a_peer_comes_back_to_its_worker() -> None:
    with shared("--resume-window=20") as server, socket.socket() as again:
        with dial(server, upgrade(topic_of(1))) as client:
            token = re.search(rb'"resume":\{"token":"([^"]+)"', read_until(client, b'"peers":['))
        assert token
        server.wait_for("was detached")
        again.settimeout(60)
        again.connect(("127.0.0.1", server.port))
        again.sendall(upgrade(f"{topic_of(1)}?resume={token[1].decode()}&seen=2"))
        assert b'"resumed":true' in read_until(again, b"}")
