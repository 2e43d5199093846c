"""What tests of failures share: a server that is checked at its end, peers that watch, clients without manners."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

from tests.system.twistd import Server, running

MIB = 1 << 20
PATIENCE_SECONDS = 5.0

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
BODY_TO_COME = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"


@contextmanager
def serving(*options: str, **how: object) -> Iterator[Server]:
    """Run a server that has to survive: it ends with status 0 and has logged no exception."""
    with running(["--port=0", *options], **how) as server:
        yield server
        assert server.process.poll() is None, server.log
        assert server.stop() == 0, server.log
        assert_no_exception(server)


def assert_no_exception(server: Server) -> None:
    assert not re.search("Traceback|Unhandled|#error|#critical", server.log), server.log


def peak_bytes(server: Server) -> int:
    """Return the most memory that the server's process has had resident so far."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found, status
    return int(found[1]) * 1024


def open_files(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def assert_open_files(server: Server, count: int) -> None:
    """Wait until the server has so many files open and no more."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while open_files(server) > count:
        assert time.monotonic() < deadline, f"{open_files(server)} files are open, not {count}"
        time.sleep(0.01)  # Nobody tells when another process closes a file.


# Clients without manners


def upgrade(topic: str = "room") -> bytes:
    return (
        f"GET /ws/{topic} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def masked(opcode: int, payload: bytes = b"") -> bytes:
    """Return a client's frame, under a mask of zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def relay(target: str, payload: str = "", msg_id: str = "m") -> bytes:
    return json.dumps({"type": "offer", "to": target, "payload": payload, "msgId": msg_id}).encode()


def dial(server: Server, data: bytes = b"", receive_buffer: int | None = None) -> socket.socket:
    """Connect, and send ``data``.

    Args:
        receive_buffer: its size in bytes, for a client that means not to read; None leaves it to the system.
    """
    client = socket.socket()
    client.settimeout(PATIENCE_SECONDS)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", server.port))
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


# Peers that watch


def hear(peer: ClientConnection) -> dict:
    return json.loads(peer.recv(PATIENCE_SECONDS))


def enter(peer: ClientConnection) -> str:
    """Return the id from a new peer's welcome, after its peer-list."""
    own = hear(peer)["selfId"]
    assert hear(peer)["type"] == "peer-list"
    return own


class Pair:
    """Two peers of one topic that go on relaying to each other; a relay that takes 5 s fails the test.

    Attributes:
        topic: theirs alone, until a test joins it.
        rounds: how many relays came and were answered so far.
        events: what else the first of them heard, in order.
    """

    def __init__(self, topic: str, first: ClientConnection, second: ClientConnection) -> None:
        self.topic = topic
        self._first, self._second = first, second
        self._ids = enter(first), enter(second)
        self.events: list[dict] = []
        assert hear(first) == {"type": "peer-joined", "peerId": self._ids[1]}
        self.rounds = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop relaying; fails where a relay was lost."""
        self._stop.set()
        self._thread.join(2 * PATIENCE_SECONDS)
        self.check()

    def check(self) -> None:
        if self._failure is not None:
            raise AssertionError(f"the observers were disturbed after {self.rounds} rounds") from self._failure

    def relays_on(self, rounds: int = 3) -> None:
        """Wait until so many more relays came and were answered."""
        goal = self.rounds + rounds
        self._wait_for(lambda: self.rounds >= goal)

    def hears(self, kind: str, peer: str) -> None:
        """Wait until it was told of ``peer``."""
        event = {"type": kind, "peerId": peer}
        self._wait_for(lambda: event in self.events)

    def hears_joining(self) -> str:
        """Wait until it was told of a newcomer; returns whose."""
        self._wait_for(lambda: bool(self.events))
        assert self.events[-1]["type"] == "peer-joined"
        return self.events[-1]["peerId"]

    def hears_leaving(self, count: int) -> None:
        """Wait until it was told that so many peers left."""
        self._wait_for(lambda: sum(event["type"] == "peer-left" for event in self.events) >= count)

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            came = self._changed.wait_for(lambda: self._failure is not None or condition(), 2 * PATIENCE_SECONDS)
        self.check()
        assert came, f"{self.rounds} rounds, {self.events[-5:]}"

    def _run(self) -> None:
        try:
            # Not as fast as it can: it is there to watch.
            while not self._stop.wait(0.005):
                self._pass(self._first, self._second, self._ids[1], [])
                self._pass(self._second, self._first, self._ids[0], self.events)
                with self._changed:
                    self.rounds += 1
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _pass(self, sender: ClientConnection, target: ClientConnection, to: str, events: list[dict]) -> None:
        name = str(self.rounds)
        sender.send(relay(to, "x" * 1000, name).decode())
        while (message := hear(target)).get("msgId") != name:
            events.append(message)


_numbers = itertools.count()


@contextmanager
def pair(server: Server) -> Iterator[Pair]:
    """Let two peers of a new topic relay to each other; they still do so at the end, or the test fails."""
    topic = f"watched-{next(_numbers)}"
    with connect(server.url + topic) as first, connect(server.url + topic) as second:
        watching = Pair(topic, first, second)
        yield watching
        watching.relays_on()
        watching.stop()
