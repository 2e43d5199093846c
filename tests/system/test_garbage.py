"""A connection that ends leaves nothing behind that only the garbage collector finds."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.certificates import self_signed
from tests.harness.frames import TEXT, masked
from tests.harness.raw_client import (
    PATIENCE_SECONDS,
    REQUEST,
    assert_open_files,
    read_to_the_end,
    read_until,
    relay,
    reset,
    upgrade,
)
from tests.harness.server import HOST, Server, running

REPORTER = [sys.executable, "-m", "tests.harness.garbage_reporter"]
TREE = str(Path(__file__).parents[2])
PROXY_HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
GOODBYE = masked(0x88, b"\x03\xe8")
LIVES_COUNTED = 3

numbers = itertools.count()

Connect = Callable[[bytes], socket.socket]
"""Connects to the server and sends something."""


class Watched:
    """A server on each kind of endpoint."""

    def __init__(self, server: Server, path: str, ports: dict[str, int]) -> None:
        self._server = server
        self._path = path
        self._ports = ports
        self._open_files = server.open_files()

    def connect(self, endpoint: str, data: bytes) -> socket.socket:
        if endpoint == "unix":
            client = socket.socket(socket.AF_UNIX)
            client.connect(self._path)
        else:
            client = socket.create_connection((HOST, self._ports[endpoint]))
        client.settimeout(PATIENCE_SECONDS)
        if endpoint == "haproxy":
            client.sendall(PROXY_HEADER)
        if endpoint == "ssl":
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            client = trusting.wrap_socket(client, suppress_ragged_eofs=True)
        client.sendall(data)
        return client

    def garbage(self) -> dict[str, Any]:
        """Wait until all connections are gone.

        Returns:
            How many objects of each class a young collection finds, and how many only a full one; how many are frozen.
        """
        assert_open_files(self._server, self._open_files)
        os.kill(self._server.pid, signal.SIGUSR2)
        found: dict[str, Any] = json.loads(self._server.next_line(r"^garbage (.*)")[1])
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("garbage")
    pem, path = folder / "both.pem", folder / "socket"
    pem.write_bytes(self_signed())
    endpoints = {
        "tcp": f"tcp:0:interface={HOST}",
        "ssl": f"ssl:0:interface={HOST}:privateKey={pem}:certKey={pem}",
        "haproxy": f"haproxy:tcp:0:interface={HOST}",
        "unix": f"unix:{path}",
    }
    options = [word for endpoint in endpoints.values() for word in ("--listen", endpoint)]
    options.append("--max-peers-per-topic=2")
    # The staying connections answer no pings, and would be lost while the tests run on a slow machine.
    options.append("--ping-interval=0")
    with running(options, command=REPORTER, env={"PYTHONPATH": TREE}) as server:
        found = [server.next_line(r"listening on (?:\S+:(\d+)$|unix)") for _ in endpoints]
        ports = {name: int(match[1] or 0) for name, match in zip(endpoints, found, strict=True)}
        # What all connections of one kind share is no garbage while there is one.
        starting = Watched(server, str(path), ports)
        staying = [starting.connect(endpoint, upgrade(f"staying-{endpoint}")) for endpoint in endpoints]
        for client in staying:
            read_until(client, b'"peers":[')
        yield Watched(server, str(path), ports)
        for client in staying:
            client.close()
        server.assert_no_problem()


def new_topic() -> str:
    """Return a topic that no peer of another life is in, who may still be about to leave."""
    return f"topic-{next(numbers)}"


def join(connect: Connect, topic: str) -> tuple[socket.socket, str]:
    client = connect(upgrade(topic))
    welcome = read_until(client, b'"peers":[')
    return client, welcome.partition(b'"selfId":"')[2][:26].decode()


def call(connect: Connect) -> list[socket.socket]:
    """Two peers join, and exchange a message each."""
    topic = new_topic()
    (caller, caller_id), (callee, callee_id) = join(connect, topic), join(connect, topic)
    caller.sendall(masked(0x80 | TEXT, relay(callee_id, "calling")))
    read_until(callee, b"calling")
    callee.sendall(masked(0x80 | TEXT, relay(caller_id, "answering")))
    read_until(caller, b"answering")
    return [caller, callee]


def a_call_that_ends_by_close_frames(connect: Connect) -> None:
    for client in call(connect):
        client.sendall(GOODBYE)
        read_to_the_end(client)
        client.close()


def a_call_that_ends_by_resets(connect: Connect) -> None:
    for client in call(connect):
        reset(client)


def a_call_that_ends_by_half_closes(connect: Connect) -> None:
    for client in call(connect):
        client.shutdown(socket.SHUT_WR)
        client.close()


def a_message_that_is_refused(connect: Connect) -> None:
    client, _ = join(connect, new_topic())
    client.sendall(masked(0x80 | TEXT, b"nonsense"))
    read_until(client, b"invalid")
    client.sendall(masked(0x80 | TEXT, relay("0" * 26)))
    read_until(client, b"target_not_found")
    client.sendall(masked(0x82, b"binary"))
    read_until(client, b"binary")
    client.close()


def a_join_of_a_topic_that_is_full(connect: Connect) -> None:
    topic = new_topic()
    members = [join(connect, topic)[0] for _ in range(2)]
    refused = connect(upgrade(topic))
    assert b"topic_full" in read_to_the_end(refused)
    for client in (*members, refused):
        client.close()


def a_frame_that_breaks_the_protocol(connect: Connect) -> None:
    client, _ = join(connect, new_topic())
    client.sendall(masked(0xF1, b"reserved bits"))
    read_to_the_end(client)
    client.close()


def an_upgrade_that_is_refused(connect: Connect) -> None:
    client = connect(upgrade().replace(b"Version: 13", b"Version: 12"))
    assert b" 426 " in read_to_the_end(client)
    client.close()


def a_request_head_that_is_refused(connect: Connect) -> None:
    client = connect(b"nonsense\r\n\r\n")
    assert b" 400 " in read_to_the_end(client)
    client.close()


def a_request(connect: Connect) -> None:
    client = connect(REQUEST)
    read_until(client, b"\r\n\r\nok")
    client.close()


def two_requests_on_one_connection(connect: Connect) -> None:
    client = connect(REQUEST)
    read_until(client, b"\r\n\r\nok")
    client.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert b"ok" in read_to_the_end(client)
    client.close()


def a_join_behind_a_request(connect: Connect) -> None:
    client = connect(REQUEST + upgrade(new_topic()))
    read_until(client, b'"peers":[')
    client.sendall(GOODBYE)
    read_to_the_end(client)
    client.close()


def a_connection_that_asks_for_nothing(connect: Connect) -> None:
    connect(b"").close()


def a_request_that_is_reset_half_way(connect: Connect) -> None:
    reset(connect(REQUEST[:-5]))


LIVES = [
    a_call_that_ends_by_close_frames,
    a_call_that_ends_by_resets,
    a_call_that_ends_by_half_closes,
    a_message_that_is_refused,
    a_join_of_a_topic_that_is_full,
    a_frame_that_breaks_the_protocol,
    an_upgrade_that_is_refused,
    a_request_head_that_is_refused,
    a_request,
    two_requests_on_one_connection,
    a_join_behind_a_request,
    a_connection_that_asks_for_nothing,
    a_request_that_is_reset_half_way,
]


@pytest.mark.parametrize("endpoint", ["tcp", "unix", "haproxy", "ssl"])
@pytest.mark.parametrize("life", LIVES)
def test_no_garbage_is_left(watched: Watched, life: Callable[[Connect], None], endpoint: str) -> None:
    def connect(data: bytes) -> socket.socket:
        return watched.connect(endpoint, data)

    # What a server builds once, with its first connections, is no part of it.
    life(connect)
    watched.garbage()
    for _ in range(LIVES_COUNTED):
        life(connect)
    found = watched.garbage()
    assert not found["full"]
    # Twisted's TLS makes some: declarations of interfaces, and the Failure of an unclean end, which holds its frame.
    if endpoint != "ssl":
        assert not found["young"]


def test_collections_leave_out_what_is_there_at_the_start(watched: Watched) -> None:
    assert watched.garbage()["frozen"] > 10_000
