"""Clients without a WebSocket library, which break the protocol and end their connections as they like."""

from __future__ import annotations

import json
import re
import socket
import struct

from tests.harness.server import HOST, Server, wait_until

MIB = 1 << 20
PATIENCE_SECONDS = 60.0

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
BODY_TO_COME = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
# Joins a topic by the URL in its argument and stays, in a process of its own.
STAYS = "import sys; from websockets.sync.client import connect; [*connect(sys.argv[1])]"


def upgrade(topic: str = "room", host: str = "x") -> bytes:
    """Write the request that joins a topic, which needs no percent-encoding."""
    return (
        f"GET /ws/{topic} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def relay(target: str, payload: str = "", msg_id: str = "m") -> bytes:
    """Write an offer."""
    return json.dumps({"type": "offer", "to": target, "payload": payload, "msgId": msg_id}).encode()


def dial(server: Server, data: bytes = b"", receive_buffer: int | None = None) -> socket.socket:
    """Connect, and send ``data``.

    Args:
        receive_buffer: its size in bytes, for a client that will not read; None leaves it to the system.
    """
    client = socket.socket()
    client.settimeout(PATIENCE_SECONDS)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect((HOST, server.port))
    client.sendall(data)
    return client


def reset(client: socket.socket) -> None:
    """End a connection without a FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def read_until(client: socket.socket, end: bytes) -> bytes:
    """Read up to ``end`` and what came along with it."""
    data = b""
    while end not in data:
        received = client.recv(65_536)
        assert received, data
        data += received
    return data


def read_to_the_end(client: socket.socket) -> bytes:
    """Read until the server closes or resets the connection."""
    data = b""
    try:
        while received := client.recv(65_536):
            data += received
    except ConnectionError:
        pass
    return data


def join_raw(server: Server, topic: str = "room", receive_buffer: int | None = None) -> tuple[socket.socket, str]:
    """Join without a WebSocket library; returns the connection, read up to its peer-list, and the peer's id."""
    client = dial(server, upgrade(topic), receive_buffer)
    received = read_until(client, b'"peers":[')
    found = re.search(rb'"selfId":"(\w{26})"', received)
    assert found, received
    return client, found[1].decode()


def assert_open_files(server: Server, count: int) -> None:
    """Wait until the server has so many files open and no more."""
    wait_until(lambda: server.open_files() <= count, PATIENCE_SECONDS, server.open_files)
