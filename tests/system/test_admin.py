"""The admin API of a real server: on a UNIX socket, by the examples of its documentation, by its OpenAPI document."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests import issuer
from tests.harness.raw_client import join_raw
from tests.harness.server import HOST, Server, running
from tests.programs import need

TREE = Path(__file__).parents[2]
DOCUMENT = Path(str(files("signaling.admin") / "openapi.json"))
TOKEN = "a-token-of-the-tests-0123456789"
CLAIMS = {"prefixes": [""]}


# On a UNIX socket


class UnixConnection(HTTPConnection):
    """HTTP on a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


def topics_by_socket(path: Path) -> Any:
    connection = UnixConnection(path)
    try:
        connection.request("GET", "/v1/topics")
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())["topics"]
    finally:
        connection.close()


def test_a_socket_lets_the_user_and_the_group_in_without_a_token_until_the_drain_is_over(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    options = ["--port", "0", f"--admin-listen=unix:{path}", "--shutdown-timeout", "30"]
    with running(options) as server:
        server.wait_for("listening on unix")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        # It does not answer the close frame, so the drain waits for it.
        client, _ = join_raw(server, "call-1")
        room = [{"name": "call-1", "peers": 1}]
        assert topics_by_socket(path) == room
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("closing 1 peers")
        assert topics_by_socket(path) == room
        client.close()
        assert server.process.wait(60) == 0
        server.join()
        assert not path.exists()
        server.assert_no_problem()


# The examples of the documentation


@contextmanager
def guarded(folder: Path, *options: str) -> Iterator[tuple[Server, int]]:
    """Run a server that checks tokens, with an admin API; yields it, and the port of that."""
    (folder / "keys.json").write_bytes(issuer.key_set(issuer.jwk("EdDSA", "EdDSA")))
    (folder / "admin-token").write_text(f"{TOKEN}\n")
    own = [
        *("--port", "0", "--auth", f"jwt:{folder}/keys.json"),
        *("--admin-listen", f"tcp:0:interface={HOST}", "--admin-token-file", f"{folder}/admin-token"),
    ]
    with running([*own, *options]) as server:
        ports = {int(server.next_line(r"listening on \S+:(\d+)")[1]) for _ in range(2)}
        [admin_port] = ports - {server.port}
        yield server, admin_port
        assert TOKEN not in server.log
        server.assert_no_problem()


def join(server: Server, topic: str, subject: str, query: str = "") -> ClientConnection:
    token = issuer.token(CLAIMS, sub=subject)
    return connect(f"{server.url}{topic}{query}", additional_headers={"Authorization": f"Bearer {token}"})


def documented() -> list[tuple[str, Any]]:
    """List the commands of the documentation with their answers."""
    page = (TREE / "docs" / "admin.md").read_text()
    [function] = re.findall(r"^\$ (api\(\) \{.*\})$", page, re.MULTILINE)
    return [
        (f"{function}; {found[1]}", json.JSONDecoder().raw_decode(page, found.end())[0])
        for found in re.finditer(r"^\$ (api (?:.*\\\n)*.*)\n(?=\{)", page, re.MULTILINE)
    ]


def with_types(answer: Any) -> Any:
    """Replace what differs from run to run by its type."""
    if isinstance(answer, list):
        return [with_types(item) for item in answer]
    if not isinstance(answer, dict):
        return answer
    varying = ("id", "address", "seconds") if "id" in answer else ()
    return {key: type(value) if key in varying else with_types(value) for key, value in answer.items()}


def test_the_examples_of_the_documentation_do_what_it_says(tmp_path: Path) -> None:
    need("curl")
    with guarded(tmp_path) as (server, port), ExitStack() as stack:
        ada, bob, eve, zoe = (
            stack.enter_context(join(server, topic, subject, query))
            for topic, subject, query in (
                ("call-1", "ada", "?metadata=%7B%22name%22:%22Ada%22%7D"),
                ("call-1", "bob", ""),
                ("call-2", "eve", ""),
                ("call-3", "zoe", ""),
            )
        )
        ids = [json.loads(peer.recv(60))["selfId"] for peer in (ada, bob)]
        environ = {**os.environ, "TOKEN": TOKEN, "PEER": ids[0], "OTHER": ids[1]}
        commands = documented()
        assert len(commands) == 6
        for command, answer in commands:
            own = command.replace("127.0.0.1:8082", f"{HOST}:{port}")
            done = subprocess.run(
                ["sh", "-c", own], env=environ, capture_output=True, text=True, timeout=60, check=True
            )
            assert with_types(json.loads(done.stdout)) == with_types(answer), command
        closed = {}
        for peer in (ada, bob, eve):
            with pytest.raises(ConnectionClosed) as raised:
                list(peer)
            assert raised.value.rcvd is not None
            closed[peer] = raised.value.rcvd.code, raised.value.rcvd.reason
        assert closed == {ada: (4403, "Please be kind"), bob: (4403, ""), eve: (4404, "See you tomorrow")}
        assert [json.loads(zoe.recv(60))["type"] for _ in range(3)] == ["welcome", "peer-list", "notice"]
        with pytest.raises(InvalidStatus) as refused:
            stack.enter_context(join(server, "call-1", "bob"))
        assert refused.value.response.status_code == 403
        stack.enter_context(join(server, "call-1", "ada"))


# The OpenAPI document


def test_the_document_is_valid() -> None:
    document = json.loads(DOCUMENT.read_text())
    validate(document)
    operations = [
        operation for path in document["paths"].values() for key, operation in path.items() if key != "parameters"
    ]
    assert all(operation["operationId"] and operation["responses"] for operation in operations)


class Guests:
    """Clients that join another topic whenever they are removed."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._stay, daemon=True) for _ in range(3)]
        self._numbers = count(1)

    def __enter__(self) -> Guests:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)

    def _stay(self) -> None:
        while not self._done.is_set():
            # Whoever closed a topic expects to find it no more.
            with join(self._server, f"call-{next(self._numbers)}", "ada") as peer:
                while not self._done.is_set():
                    try:
                        peer.recv(0.2)
                    except TimeoutError:
                        continue
                    except ConnectionClosed:
                        break


# What OpenAPI cannot say: the reason is bounded in bytes.
HOOKS = """
import schemathesis

@schemathesis.hook
def filter_query(context, query):
    return len(str((query or {}).get("reason", "")).encode()) <= 123 or len(str(query["reason"])) > 123
"""


def test_the_server_does_what_its_document_says(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    tool = Path(sys.executable).parent / "schemathesis"
    with guarded(tmp_path, "--metrics") as (server, port), Guests(server):
        command = [
            *(str(tool), "run", str(DOCUMENT), "--url", f"http://{HOST}:{port}"),
            *("--header", f"Authorization: Bearer {TOKEN}", "--checks", "all", "--mode", "all"),
            *("--max-examples", "5", "--seed", "17", "--generation-database", "none", "--no-color"),
            *("--suppress-health-check", "too_slow", "--request-timeout", "60"),
        ]
        environ = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        counts = server.scrape()
        # It has seen more than errors.
        for operation in ("list_topics", "describe_topic", "close_topic", "remove_peer", "send_notice", "openapi"):
            assert counts["admin_requests_total", operation, "200"] > 0, operation
