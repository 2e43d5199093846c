"""Every byte that a server sends in fixed scenarios, compared with ``wire_transcript.txt``.

Clients are bare sockets with frames that are masked by hand, and nothing of the server is imported: however its modules
are arranged, the transcript has to stay as it is. What is random stands in it by a name, numbered by first appearance
in each part. ``python -m tests.system.test_wire_transcript --record`` writes the file anew.

In the file, ``a > `` is what client ``a`` sent, in short, and ``a < `` is what it was sent: bytes that are not
printable ASCII are escaped, an HTTP head is broken after each line, and a WebSocket frame is one line.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import hmac
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, groupby, product
from pathlib import Path

import pytest

from tests.harness.server import running

TRANSCRIPT = Path(__file__).with_name("wire_transcript.txt")
PATIENCE_SECONDS = 60.0
# Each has a server of its own to start.
PARTS_AT_ONCE = 6
MASK = b"\x12\x34\x56\x78"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
TURN_SECRET = "a secret of the TURN servers"
TOKEN_SECRET = b"a secret of thirty-two bytes, or more"
# A token's end that no test lives to see.
FAR_AWAY = 4_102_444_800


# Writing down


ESCAPES = {9: "\\t", 10: "\\n", 13: "\\r", 92: "\\\\"}
RUN = re.compile(r"((?:\\x..)|\\?.)\1{39,}")
DATE = re.compile(r"(?<=Date: )\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT")
# The rest of a token's time: until no test lives, or of two seconds.
EXPIRES_IN = re.compile(r'(?<="expiresIn":)(?:\d{10}|[0-7])(?!\d)')
RETRY = re.compile(r"(?<=Retry-After: )(?:9\d\d|1000)(?!\d)")
ID = "[0-9A-HJKMNP-TV-Z]{26}"
RANDOM = re.compile(rf"(?<![0-9A-Za-z])({ID}[0-9A-Za-z_-]{{24}}|{ID})(?![0-9A-Za-z_-])")
CREDENTIAL = re.compile(r'"username":"((\d{10}):[^"]+)","credential":"([^"]+)"')


def printable(data: bytes) -> str:
    """Write bytes as ASCII; of the same character many times, say how many."""
    text = "".join(
        chr(byte) if 32 <= byte < 127 and byte != 92 else ESCAPES.get(byte, f"\\x{byte:02x}") for byte in data
    )
    return RUN.sub(lambda run: f"<{len(run[0]) // len(run[1])} times {run[1]}>", text)


def with_checked_credential(found: re.Match[str]) -> str:
    """Leave out a TURN credential that is the one of its username, which ends in 16 seconds at the latest."""
    digest = base64.b64encode(hmac.digest(TURN_SECRET.encode(), found[1].encode(), "sha1")).decode()
    if digest != found[3] or not 0 < int(found[2]) - time.time() <= 16:
        return found[0]
    return found[0].replace(found[2], "<expiry>", 1).replace(found[3], "<credential>")


class Notes:
    """What happened in one part of the transcript."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._names: dict[str, str] = {}

    def title(self, text: str, mark: str = "--") -> None:
        self.blocks.append(f"\n{mark} {text}")

    def add(self, who: str, direction: str, *texts: str, hides: str | None = None) -> None:
        """Write down what belongs together.

        Args:
            hides: a pattern; what it matches is left out as well.
        """
        lines = [f"{who} {direction} {self._without_random(text)}".rstrip() for text in texts]
        if hides is not None:
            lines = [re.sub(hides, "<hidden>", line) for line in lines]
        self.blocks.append("\n".join(lines))

    def _without_random(self, text: str) -> str:
        text = EXPIRES_IN.sub("<seconds>", text)
        text = RETRY.sub("<seconds>", DATE.sub("<date>", CREDENTIAL.sub(with_checked_credential, text)))
        return RANDOM.sub(lambda found: self._name(found[1]), text)

    def _name(self, random: str) -> str:
        kind = "peer" if len(random) == 26 else "token"
        number = sum(name.startswith(f"<{kind}-") for name in self._names.values()) + 1
        return self._names.setdefault(random, f"<{kind}-{number}>")

    def lines(self) -> list[str]:
        """Return all lines; where a block repeats itself, say how often."""
        text = []
        for block, times in groupby(self.blocks):
            number = len(list(times))
            text.append(block if number == 1 else f"{block}\n({number} times)")
        return "\n".join(text).split("\n")


# Clients


def frame(opcode: int, payload: bytes = b"", *, first: int | None = None, size: bytes | None = None) -> bytes:
    """Return a client's frame.

    Args:
        first: its first byte, where it is not that of a whole message.
        size: how its length is written, where it is not as it should be.
    """
    length = len(payload)
    if size is None:
        short = length if length < 126 else 126 if length < 65_536 else 127
        size = bytes([0x80 | short]) + (length.to_bytes({126: 2, 127: 8}[short]) if short > 125 else b"")
    masked = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))
    return bytes([0x80 | opcode if first is None else first]) + size + MASK + masked


HANDSHAKE = (
    "Host: server",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def request(line: str, *headers: str) -> bytes:
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1")


def get(target: str, *headers: str, method: str = "GET") -> bytes:
    return request(f"{method} {target} HTTP/1.1", "Host: server", *headers)


def upgrade(target: str = "/ws/room", *more: str, without: str = "-", line: str = "") -> bytes:
    """Return a handshake.

    Args:
        more: headers at its end.
        without: the name of a header to leave out.
        line: the whole request line, where it is not the usual one.
    """
    kept = [header for header in HANDSHAKE if not header.startswith(f"{without}:")]
    return request(line or f"GET {target} HTTP/1.1", *kept, *more)


class Client:
    """A socket that writes down what goes over it."""

    id = ""
    token = ""

    def __init__(self, notes: Notes, name: str, address: int | str) -> None:
        self._notes, self._name = notes, name
        self._speaks_frames = False
        self._data = b""
        self._socket = socket.socket(socket.AF_INET if isinstance(address, int) else socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.connect(("127.0.0.1", address) if isinstance(address, int) else address)

    # Sending

    def send(self, data: bytes, told: str | None = None) -> None:
        """Send bytes, and write down what is told of them."""
        self._notes.add(self._name, ">", printable(data) if told is None else told)
        self._socket.sendall(data)

    def say(self, text: str | bytes, told: str | None = None) -> None:
        """Send a text message."""
        data = text.encode() if isinstance(text, str) else text
        self.send(frame(TEXT, data), told or f"text {printable(data)}")

    def relay(self, target: str, msg_id: str = "m", payload: str = '{"sdp":"x"}', kind: str = "offer") -> None:
        self.say(f'{{"type":"{kind}","to":"{target}","payload":{payload},"msgId":"{msg_id}"}}')

    def control(self, opcode: int, payload: bytes = b"") -> None:
        names = {CLOSE: "close", PING: "ping", PONG: "pong"}
        self.send(frame(opcode, payload), f"{names[opcode]} {printable(payload)}")

    # Receiving

    def _receive(self) -> None:
        data = self._socket.recv(65_536)
        if not data:
            self._note_rest("(the server ended the connection)")
            raise EOFError(f"{self._name} expected more")
        self._data += data

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            self._receive()
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _note_rest(self, *last: str) -> None:
        rest = [printable(self._data)] if self._data else []
        self._data = b""
        self._notes.add(self._name, "<", *rest, *last)

    def frame(self) -> bytes:
        """Read a frame; returns all of it."""
        head = self._take(2)
        more = {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
        head += self._take(more)
        data = head + self._take(int.from_bytes(head[2:]) if more else head[1] & 0x7F)
        self._notes.add(self._name, "<", printable(data))
        return data

    def frames(self, count: int) -> list[bytes]:
        return [self.frame() for _ in range(count)]

    def sync(self) -> None:
        """Read all that the server has sent up to now: what comes before the answer to a ping."""
        self.control(PING, b"?")
        while self.frame() != b"\x8a\x01?":
            pass

    def answer(self, *, to_head: bool = False, hides: str | None = None) -> str:
        """Read an HTTP answer; returns its head."""
        while b"\r\n\r\n" not in self._data:
            self._receive()
        head = self._take(self._data.index(b"\r\n\r\n") + 4).decode("latin-1")
        body = b""
        length = re.search(r"\r\nContent-Length: (\d+)\r\n", head, re.IGNORECASE)
        if not (to_head or re.match(r"HTTP/1.1 (1|204|304)", head)):
            body = self._take(int(length[1])) if length else b""
        lines = printable(head.encode("latin-1")).replace("\\r\\n", "\\r\\n\n").split("\n")[:-1]
        self._notes.add(self._name, "<", *lines, *([printable(body)] if body else []), hides=hides)
        return head

    def opened(self) -> str:
        """Read the answer to a handshake; what follows are frames."""
        head = self.answer()
        self._speaks_frames = head.startswith("HTTP/1.1 101 ")
        return head

    def welcomed(self) -> None:
        """Read what every peer is sent first."""
        welcome = self.frame().partition(b"{")
        found = json.loads(b"{" + welcome[2])
        self.id, self.token = found["selfId"], found.get("resume", {}).get("token", "")
        self.frame()

    # The end

    def half_close(self) -> None:
        """Send no more, and read to the end."""
        self._notes.add(self._name, ">", "(end)")
        self._socket.shutdown(socket.SHUT_WR)
        self.end()

    def leave(self, payload: bytes = b"\x03\xe8") -> None:
        """Say goodbye, and read to the end."""
        self.control(CLOSE, payload)
        self.end()

    def end(self, *, without: bytes = b"") -> None:
        """Read until the server ends the connection, and end it here as well.

        Args:
            without: what is not written down, if it comes.
        """
        how = "(end)"
        while True:
            try:
                data = self._socket.recv(65_536)
            except ConnectionResetError:
                how = "(reset)"
                break
            except TimeoutError:
                how = "(no end in time)"
                break
            if not data:
                break
            self._data += data
        self._data = self._data.replace(without, b"") if without else self._data
        try:
            while self._speaks_frames and len(self._data) >= 2:
                self.frame()
        except OSError:
            # Half a frame.
            pass
        self._note_rest(how)
        self._socket.close()


class Stage:
    """One server, and clients for it."""

    def __init__(self, notes: Notes, server) -> None:
        self.notes = notes
        self.server = server
        self.address: int | str = server.port

    def title(self, text: str) -> None:
        self.notes.title(text)

    def client(self, name: str) -> Client:
        return Client(self.notes, name, self.address)

    def join(self, name: str, target: str = "/ws/room", *headers: str, told: str | None = None) -> Client:
        """Open a connection, and read all up to the list of peers."""
        client = self.client(name)
        client.send(upgrade(target, *headers), told or f"upgrade {target} {' '.join(headers)}".rstrip())
        client.opened()
        client.welcomed()
        return client

    def ask(self, data: bytes, told: str | None = None, hides: str | None = None) -> str:
        """Send one request on a connection of its own; returns the head of the answer."""
        client = self.client("http")
        client.send(data, told)
        head = client.answer(to_head=data.lstrip().startswith(b"HEAD "), hides=hides)
        if re.search(r"\r\nConnection: (upgrade, )?close\r\n", head) or data.split(b"\r\n")[0].endswith(b"/1.0"):
            client.end()
        else:
            client.half_close()
        return head

    def until_ready(self, status: bytes) -> None:
        """Ask ``/readyz`` until it answers so; nothing tells when."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with socket.create_connection(("127.0.0.1", self.address), PATIENCE_SECONDS) as client:
                client.sendall(get("/readyz", "Connection: close"))
                if client.makefile("rb").readline().split()[1] == status:
                    return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def terminate(self) -> None:
        self.notes.add("the server", ">", "SIGTERM")
        self.server.process.send_signal(signal.SIGTERM)


@contextmanager
def stage(notes: Notes, *options: str, env: dict[str, str] | None = None, ping_interval: int = 600) -> Iterator[Stage]:
    # A slow machine must not come to a ping.
    with running(["--port", "0", f"--ping-interval={ping_interval}", *options], env=env) as server:
        yield Stage(notes, server)


# HTTP


def http_answers(notes: Notes, folder: Path) -> None:
    """What an HTTP client is answered by a server with default options."""
    with stage(notes) as on:
        for title, group in HTTP.items():
            on.title(title)
            for data in group:
                on.ask(data)
        on.title("whether a client could join")
        for data in (
            get("/ws/room?check"),
            get("/ws/room?check=1", "Origin: https://page.example"),
            get("/ws/room?check", method="HEAD"),
            get("/ws/room?check", "Origin: https://page.example", method="OPTIONS"),
            get("/ws/room?check", method="POST"),
            get("/ws/%ff?check"),
            get("/ws/room?check&metadata=x"),
            get("/ws/a/b?check"),
        ):
            on.ask(data)
        on.title("requests that are sent together")
        client = on.client("http")
        client.send(
            get("/healthz") + get("/nope") + get("/healthz", method="HEAD") + get("/readyz", "Connection: close")
        )
        for number in range(4):
            client.answer(to_head=number == 2)
        client.end()
        on.title("more requests than one connection may bring")
        client = on.client("http")
        client.send(get("/healthz") * 40, "40 times GET /healthz")
        for _ in range(32):
            client.answer()
        client.end()
        on.title("a body that is announced, and one that is refused unread")
        client = on.client("http")
        client.send(get("/healthz", "Expect: 100-continue", "Content-Length: 3", method="POST"))
        client.answer()
        client.send(b"abc" + get("/healthz", "Connection: close"))
        client.answer()
        client.answer()
        client.end()
        on.title("a request that ends before it is complete")
        client = on.client("http")
        client.send(b"GET /healthz HTTP/1.1\r\nHost: ser")
        client.half_close()


LONG = "x" * 257
HTTP: dict[str, list[bytes]] = {
    "health": [
        get("/healthz"),
        get("/healthz", method="HEAD"),
        get("/healthz", "Origin: https://page.example"),
        get("/healthz", "Connection: close"),
        request("GET /healthz HTTP/1.0"),
        request("GET /healthz HTTP/1.0", "Connection: keep-alive"),
        get("http://server/healthz"),
        b"\r\n" + get("/healthz"),
        get("/healthz?any=thing"),
        get("/healthz/more"),
        get("/%68ealthz"),
    ],
    "readiness": [
        get("/readyz"),
        get("/readyz", method="HEAD"),
        get("/readyz?exclude=drain&exclude=backplane&exclude=workers"),
        get("/readyz?exclude=nothing"),
        get("/readyz?exclude=%zz"),
        get("/readyz?" + "&" * 100),
        get("/readyz", "Upgrade: websocket", "Connection: Upgrade"),
    ],
    "preflight": [
        get("/healthz", method="OPTIONS"),
        get("/ws/room", "Origin: https://page.example", "Access-Control-Request-Method: GET", method="OPTIONS"),
        get("*", method="OPTIONS"),
        get("*", "Upgrade: websocket", "Connection: Upgrade", method="OPTIONS"),
        get("/nope", method="OPTIONS"),
        get("/ws/a/b", method="OPTIONS"),
    ],
    "404": [
        get("/"),
        get("/nope"),
        get("/nope", "Origin: https://page.example"),
        get("/ws"),
        get("/ws/"),
        get("/ws/a/b"),
        get("/signaling.js"),
        get("/metrics"),
        upgrade("/ws/"),
        upgrade("/ws/a/b"),
        upgrade("/nope", "Origin: https://page.example"),
        get("/nope", method="POST"),
    ],
    "405": [
        get("/healthz", method="POST"),
        get("/healthz", "Content-Length: 0", method="PUT"),
        get("/ws/room", method="DELETE"),
        get("/ws/room", method="BREW"),
        upgrade(line="POST /ws/room HTTP/1.1"),
        get("/healthz", "Content-Length: 3", method="POST") + b"abc",
    ],
    "426": [
        get("/ws/room"),
        get("/ws/room", method="HEAD"),
        get("/ws/room", "Origin: https://page.example"),
        get("/ws/room", "Upgrade: h2c", "Connection: Upgrade"),
        upgrade("/ws/room", "Sec-WebSocket-Version: 12", without="Sec-WebSocket-Version"),
        upgrade("/ws/room", without="Sec-WebSocket-Version"),
        upgrade("/ws/room", "Sec-WebSocket-Version: 13"),
    ],
    "400 for a handshake": [
        upgrade(without="Connection"),
        upgrade("/ws/room", "Connection: keep-alive", without="Connection"),
        upgrade(without="Host"),
        upgrade("/ws/room", "Host: other"),
        upgrade(without="Sec-WebSocket-Key"),
        upgrade("/ws/room", "Sec-WebSocket-Key: short", without="Sec-WebSocket-Key"),
        upgrade("/ws/room", "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==", without="Sec-WebSocket-Key"),
        upgrade("/ws/room", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        upgrade("/ws/room", "Content-Length: 5"),
        upgrade("/ws/room", "Transfer-Encoding: chunked"),
        upgrade("/ws/room", "Origin: https://page.example", without="Sec-WebSocket-Key"),
        upgrade(line="GET /ws/room HTTP/1.0"),
        upgrade(line="HEAD /ws/room HTTP/1.1"),
    ],
    "400 for a topic or metadata": [
        upgrade(f"/ws/{LONG}"),
        get(f"/ws/{LONG}"),
        upgrade("/ws/%ff"),
        upgrade("/ws/%zz"),
        upgrade("/ws/room?metadata=nonsense"),
        upgrade("/ws/room?metadata=[]"),
        upgrade("/ws/room?metadata=" + "%22" * 5_000),
        upgrade("/ws/room?metadata={}&metadata={}"),
        upgrade("/ws/room?metadata=%zz"),
        upgrade("/ws/room?metadata=%ff"),
        upgrade("/ws/room?metadata=" + '{"a":' * 65 + "1" + "}" * 65),
        upgrade('/ws/room?metadata={"a":' + "[" * 1_500 + "]" * 1_500 + "}"),
        upgrade('/ws/room?metadata={"a":' + "1" * 101 + "}"),
        upgrade("/ws/room?" + "a&" * 100),
    ],
    "400 for a request that is not well-formed": [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/1.1\nHost: server\n\n",
        b"GET /healthz HTTP/1.1\r\nHost: server\r\nA: b\nC: d\r\n\r\n",
        request("GET /healthz HTTP/2.0"),
        request("GET /healthz"),
        request("G(T /healthz HTTP/1.1"),
        request("GET /ws/\xe4 HTTP/1.1"),
        request("GET  HTTP/1.1"),
        request("GET nowhere HTTP/1.1"),
        request("GET * HTTP/1.1"),
        request("CONNECT server:80 HTTP/1.1"),
        request("GET /%zz HTTP/1.1"),
        get("/healthz", "no colon"),
        get("/healthz", "Name : value"),
        get("/healthz", "A: b", " goes on"),
        get("/healthz", "Content-Length: many", method="POST"),
        get("/healthz", "Content-Length: 1", "Content-Length: 1", method="POST"),
        b"\r\n\r\n" + get("/healthz"),
    ],
    "411, 413 and 431": [
        get("/healthz", "Transfer-Encoding: chunked", method="POST"),
        get("/healthz", "Content-Length: 16385", method="POST"),
        get("/healthz", "Content-Length: " + "9" * 5_000, method="POST"),
        get("/healthz", "A: " + "x" * 20_000),
        b"GET /" + b"x" * 20_000,
        get("/healthz", *["A: b"] * 100),
    ],
}


# WebSocket


def messages(notes: Notes, folder: Path) -> None:
    """Joining, relaying and errors on a server with default options, and how it stops."""
    with stage(notes) as on:
        relays(on)
        errors(on)
        handshakes(on)
        frames(on)
        closings(on)
        violations(on)
        crowd(on)
        on.title("the server stops")
        clients = [on.join("a"), on.join("b"), on.client("c"), on.client("d")]
        clients[0].sync()
        clients[2].send(get("/healthz"))
        clients[2].answer()
        clients[3].send(b"GET /ws/r")
        clients[0].sync()
        on.terminate()
        for client in clients:
            client.end()


def relays(on: Stage) -> None:
    on.title("three peers, with and without metadata")
    a = on.join("a", "/ws/room?metadata=%7B%22name%22:%22Ada%22%7D")
    b = on.join("b", "/ws/%72oom")
    c = on.join("c", '/ws/room?x=y&metadata=+{"n":1e400,"u":"\\ud800%C3%A4",+"n":2}%0a&metadata%zz')
    for client in (a, b, c):
        client.sync()
    on.title("relays of every type")
    a.relay(b.id, "1", '{"type":"offer","sdp":"v=0\\r\\n"}')
    a.sync()
    b.relay(a.id, "2", '{"type":"answer","sdp":"v=0\\r\\n"}', "answer")
    b.sync()
    a.relay(b.id, "3", '{"candidate":"","sdpMid":null}', "ice-candidate")
    c.relay(c.id, "to myself")
    for payload in ("null", "1e400", '"\\ud800 \\u00e4 ä \\/"', '{"b":1, "a":2 , "b":3}', "[" * 63 + "]" * 63, '""'):
        a.relay(b.id, "4", payload)
    for text in (
        '{"type":"offer","to":"%s"}',
        ' { "msgId" : null, "to" : "%s", "type" : "offer", "payload" : [ ] } ',
        '{"type":"offer","to":"%s","msgId":""}',
        '{"type":"offer","to":"%s","msgId":"\\ud83d\\ude00 \\ud800 \\\\ud800"}',
        '{"type":"offer","to":"%s","msgId":"ä","from":"me","extra":{"a":[]}}',
        '{"type":"offer","type":"answer","to":"nobody","to":"%s","payload":1,"payload":2,"msgId":"a","msgId":"b"}',
        '{"\\u0074ype":"\\u006fffer","to":"%s"}',
        '{"type":"off\\u0065r","to":"%s","payload":"\\udfff"}',
    ):
        a.say(text % b.id)
    a.relay(b.id, "long", f'"{"x" * 200}"')
    a.relay(b.id, "longer", f'"{"x" * 65_400}"')
    for client in (a, b, c):
        client.sync()
    on.title("messages in one piece, frame by frame, byte by byte")
    text = f'{{"type":"offer","to":"{b.id}","msgId":"ä"}}'.encode()
    a.send(frame(TEXT, text) * 3 + frame(PING, b"p"), "three times the same, and a ping")
    a.frame()
    a.send(frame(TEXT, text[:30], first=0x01), "the first part")
    a.send(frame(PING, b"between"), "a ping between")
    a.frame()
    a.send(frame(CONTINUATION, b"", first=0x00), "an empty part")
    a.send(frame(CONTINUATION, text[30:]), "the last part")
    for byte in frame(TEXT, text):
        a.send(bytes([byte]), "one byte more")
    a.sync()
    b.sync()
    on.title("pings and pongs")
    a.control(PING)
    a.control(PING, b"x" * 125)
    a.control(PONG, b"nobody asked")
    a.control(PONG)
    a.sync()
    on.title("more frames at once than one turn takes")
    a.send(frame(PING, b"many") * 100, "100 pings")
    a.frames(100)
    on.title("all leave")
    c.leave(b"")
    a.sync()
    a.half_close()
    b.sync()
    b.leave()


def errors(on: Stage) -> None:
    on.title("errors")
    a = on.join("a")
    for text in (
        "nonsense",
        "",
        "[]",
        "{",
        '{"type":"offer"} {}',
        '{"type":"offer","msgId":01}',
        '{"type":1,"msgId":"m"}',
        '{"type":"offer","to":["x"],"msgId":"m"}',
        '{"type":"offer","to":"x","msgId":7}',
        '{"type":7,"to":"x","msgId":7}',
        '{"type":1,"msgId":"\\ud800"}',
        '{"type":"offer","to":"x","payload":%s,"msgId":"m"}' % ("[" * 64 + "]" * 64),
        '{"type":"offer","to":"x","payload":%s,"msgId":"m"}' % ("[" * 5_000 + "]" * 5_000),
        '{"type":1,"to":"x","payload":%s,"msgId":"m"}' % ("[" * 64 + "]" * 64),
        "{}",
        '{"msgId":"m"}',
        '{"type":null,"to":"x","msgId":"m"}',
        '{"type":"welcome","to":"x","msgId":"m"}',
        '{"type":"","to":""}',
        '{"type":"offer","msgId":"m"}',
        '{"type":"offer","to":null,"msgId":"m"}',
        '{"type":"offer","to":"","msgId":null}',
        '{"type":"offer","to":"nobody","msgId":"\\u00e4 ä \\ud800"}',
        '{"type":"offer","to":"nobody"}',
        '{"type":"offer","to":"\\ud800","msgId":""}',
    ):
        a.say(text)
    a.send(frame(BINARY, b'{"type":"offer","to":"x","msgId":"m"}'), "the same as a binary message")
    a.send(frame(BINARY, b"", first=0x02) + frame(CONTINUATION), "a binary message in two parts")
    a.sync()
    on.title("a peer of another topic is not found, one that is closing takes nothing")
    other = on.join("b", "/ws/other")
    closing = on.join("c")
    a.relay(other.id, "another topic")
    closing.send(frame(TEXT, b"", first=0xF1), "a frame with reserved bits")
    closing.frame()
    a.relay(closing.id, "closing")
    a.sync()
    closing.half_close()
    # The server ended its half before, so only the others are told when it has noticed.
    a.frame()
    a.relay(closing.id, "gone")
    a.sync()
    a.leave()
    other.leave()


def handshakes(on: Stage) -> None:
    on.title("subprotocols and extensions")
    for header in (
        "Sec-WebSocket-Protocol: signaling",
        "Sec-WebSocket-Protocol: chat, signaling",
        "Sec-WebSocket-Protocol: chat",
        "Sec-WebSocket-Protocol: signaling, signaling.bearer.token",
        "Sec-WebSocket-Extensions: permessage-deflate",
        "Origin: https://page.example",
        "Content-Length: 0",
    ):
        on.join("a", "/ws/room", header).leave()
    on.join("a", "/ws/room", "Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: signaling").leave()
    on.title("other spellings of a good handshake")
    for data in (
        upgrade("/ws/room", "UPGRADE: foo, WebSocket", "connection: keep-alive , UPGRADE", without="Upgrade"),
        upgrade("/%77s/room"),
        upgrade(line="GET http://server/ws/room?token=x&resume=y&seen=z HTTP/1.1"),
        b"\r\n" + upgrade(),
        get("/healthz") + upgrade(),
    ):
        client = on.client("a")
        client.send(data + frame(TEXT, b"early") + frame(PING, b"early"), f"{printable(data)} and two frames")
        if data.startswith(b"GET /healthz"):
            client.answer()
        client.opened()
        client.welcomed()
        client.frames(2)
        client.leave()
    on.title("a handshake byte by byte")
    client = on.client("a")
    for byte in upgrade("/ws/a%2Fb%C3%A4%20"):
        client.send(bytes([byte]), "one byte more")
    client.opened()
    client.welcomed()
    client.leave()


def frames(on: Stage) -> None:
    on.title("message and topic of the most bytes")
    a = on.join("a", "/ws/" + "%C3%A4" * 128 + '?metadata={"a":"' + "x" * 4_088 + '"}')
    b = on.join("b", "/ws/" + "%C3%A4" * 128)
    longest = b'{"type":"offer","to":"%b","payload":"' % b.id.encode()
    a.say(longest + b"x" * (65_536 - len(longest) - 2) + b'"}', "text of 65,536 bytes")
    a.sync()
    b.sync()
    a.leave()
    b.leave()


def closings(on: Stage) -> None:
    on.title("close frames are echoed")
    for payload in (
        b"",
        b"\x03\xe8",
        b"\x03\xe8bye",
        b"\x03\xe9",
        b"\x03\xf3\xc3\xa4",
        b"\x0b\xb8" + b"x" * 123,
        b"\x0f\xa0app",
        b"\x13\x87",
    ):
        on.join("a").leave(payload)
    on.title("nothing behind a close frame is looked at")
    a = on.join("a")
    a.send(frame(CLOSE, b"\x03\xe8") + frame(TEXT, b"late") + frame(PING), "a close frame, a text and a ping")
    a.end()


PART = frame(TEXT, b"part", first=0x01)
VIOLATIONS: dict[str, dict[str, bytes]] = {
    "1002": {
        "no mask": b"\x81\x02hi",
        "RSV 1": frame(TEXT, b"hi", first=0xC1),
        "RSV 3 of a ping": frame(PING, b"hi", first=0x99),
        "data opcode 3": frame(3),
        "control opcode 11": frame(11),
        "a ping in parts": frame(PING, b"hi", first=0x09),
        "a ping of 126 bytes": frame(PING, b"x" * 126),
        "a close frame of one byte": frame(CLOSE, b"x"),
        **{
            f"close code {code}": frame(CLOSE, code.to_bytes(2))
            for code in (0, 999, 1004, 1005, 1006, 1015, 2000, 5000)
        },
        "a continuation of nothing": frame(CONTINUATION, b"hi"),
        "a message inside another": PART + frame(TEXT, b"hi"),
        "a short length in 16 bits": frame(TEXT, b"hi", size=b"\xfe\x00\x02"),
        "a short length in 64 bits": frame(TEXT, b"hi", size=b"\xff" + (2).to_bytes(8)),
        "a length beyond 63 bits": frame(TEXT, size=b"\xff" * 9),
        "a good message first": frame(TEXT, b"hi") + frame(3),
    },
    "1007": {
        "no UTF-8": frame(TEXT, b"abc\xff"),
        "half a character": frame(TEXT, b"abc\xc3"),
        "a surrogate": frame(TEXT, b"\xed\xa0\x80"),
        "no UTF-8 in the first part": frame(TEXT, b"abc\xff", first=0x01),
        "no UTF-8 in the last part": PART + frame(CONTINUATION, b"\xff"),
        "half a character at the end of the last part": PART + frame(CONTINUATION, b"\xc3"),
        "a close reason that is no UTF-8": frame(CLOSE, b"\x03\xe8\xff"),
    },
    "1009": {
        "one byte too many": frame(TEXT, b"x" * 65_537),
        "a head alone": frame(TEXT, size=b"\xff" + (1 << 40).to_bytes(8)),
        "too many in parts": frame(TEXT, b"x" * 40_000, first=0x01) + frame(CONTINUATION, b"x" * 40_000),
        "a binary message": frame(BINARY, b"x" * 65_537),
    },
}


def violations(on: Stage) -> None:
    numbers = count()
    for code, group in VIOLATIONS.items():
        on.title(code)
        for told, data in group.items():
            # Of those before it is not known whether they have left their topic yet.
            client = on.join("a", f"/ws/{code}-{next(numbers)}")
            client.send(data, told)
            client.end()


def crowd(on: Stage) -> None:
    on.title("the last of a crowd")
    # What the others are sent is not written down.
    quiet = Stage(Notes(), on.server)
    others = [quiet.join("other", "/ws/crowd") for _ in range(33)]
    last = on.join("a", "/ws/crowd")
    others[0].leave()
    last.frame()
    others[1].leave()
    others[2].relay(last.id)
    last.frames(2)
    last.leave()
    for other in others[2:]:
        other.half_close()


# Bounds


def rates(notes: Notes, folder: Path) -> None:
    """Bounds on messages and on the peers of a topic."""
    # So slow that nothing is allowed anew while the test runs.
    bounds = ("--max-message-rate", "0.001", "--message-burst", "3", "--max-peers-per-topic", "2")
    with stage(notes, *bounds) as on:
        on.title("the topic is full")
        a, b = on.join("a"), on.join("b")
        c = on.client("c")
        c.send(upgrade())
        c.opened()
        c.end()
        a.leave()
        b.sync()
        on.join("c").leave()
        b.leave()
        on.title("messages over the rate")
        a = on.join("a")
        a.relay("nobody", "1")
        a.say("nonsense")
        a.relay(a.id, "3")
        a.relay(a.id, "4")
        a.say("nonsense")
        a.send(frame(BINARY, b"x"), "a binary message")
        a.relay(a.id, "7")
        a.relay(a.id, "8")
        a.end()
        for told, data in {
            "100 pings": frame(PING, b"?") * 100,
            "100 pongs": frame(PONG) * 100,
            "100 parts": frame(TEXT, first=0x01) + frame(CONTINUATION, first=0x00) * 99,
        }.items():
            on.title(f"{told} over the rate")
            a = on.join("a", f"/ws/{told.replace(' ', '-')}")
            a.send(data, told)
            a.end()


def fullness(notes: Notes, folder: Path) -> None:
    """A list of peers that is too long, and a server that is full."""
    options = ("--max-connections=2", "--max-header-bytes=800000", "--max-metadata-bytes=700000", "--drain-spread=0.1")
    with stage(notes, *options) as on:
        on.title("the server is full")
        a, b = on.join("a"), on.join("b", "/ws/other")
        for headers in ((), ("Origin: https://page.example",)):
            on.ask(upgrade("/ws/third", *headers))
        on.ask(get("/healthz"))
        on.ask(get("/ws/third?check", "Origin: https://page.example"))
        b.leave()
        on.join("c", "/ws/other").leave()
        a.leave()
        on.title("the list of peers is full")
        large = f'/ws/room?metadata={{"a":"{"x" * 600_000}"}}'
        a = on.join("a", large, told="upgrade with 600,008 bytes of metadata")
        b = on.client("b")
        b.send(upgrade(large), "the same")
        b.opened()
        b.end()
        on.title("the server stops, and spreads that")
        on.terminate()
        a.end()


def addresses(notes: Notes, folder: Path) -> None:
    """Bounds on the connections of one address."""
    bounds = ("--max-connections-per-address=2", "--max-connection-rate=0.001", "--connection-burst=3")
    with stage(notes, *bounds) as on:
        on.title("too many connections")
        a, b = on.join("a"), on.join("b", "/ws/other")
        on.ask(upgrade())
        on.ask(get("/ws/room?check", "Origin: https://page.example"))
        b.leave()
        on.title("too many in a short time")
        on.join("c", "/ws/other").leave()
        on.ask(upgrade("/ws/room", "Origin: https://page.example"))
        a.leave()
        on.title("too many connections of no peer: the oldest is cut off")
        waiting = [on.client(name) for name in "abc"]
        waiting[0].end()
        for client in waiting[1:]:
            client.half_close()


# Access


def segment(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(
    own: object = None, header: dict[str, object] | None = None, secret: bytes = TOKEN_SECRET, **claims: object
) -> str:
    """Mint a token for the topic ``room``, where nothing else is said; a claim that is None is left out."""
    values = {"exp": FAR_AWAY, "aud": "us", "iss": "issuer", "signaling": {"topics": ["room"]} if own is None else own}
    kept = {name: value for name, value in {**values, **claims}.items() if value is not None}
    text = f"{segment({'alg': 'HS256', 'kid': 'key', **(header or {})})}.{segment(kept)}"
    return f"{text}.{segment(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def bearer(text: str) -> str:
    return f"Authorization: Bearer {text}"


def key_file(folder: Path) -> Path:
    path = folder / "keys.json"
    key = {"kty": "oct", "k": segment(TOKEN_SECRET), "alg": "HS256", "kid": "key"}
    path.write_text(json.dumps({"keys": [key]}))
    return path


def tokens(notes: Notes, folder: Path) -> None:
    """Access by tokens alone."""
    good = token()
    protocols = f"Sec-WebSocket-Protocol: signaling, signaling.bearer.{good}"
    refused = {
        "none": (),
        "from a page": ("Origin: https://page.example",),
        "no token": (bearer("nonsense"),),
        "no JSON": (bearer("a.b.c"),),
        "a wrong signature": (bearer(token(secret=b"another secret of thirty-two bytes")),),
        "another audience": (bearer(token(aud="them")),),
        "no audience": (bearer(token(aud=None)),),
        "another issuer": (bearer(token(iss="me")),),
        "no issuer": (bearer(token(iss=None)),),
        "no end": (bearer(token(exp=None)),),
        "an end that is no number": (bearer(token(exp="soon")),),
        "it has ended": (bearer(token(exp=1)),),
        "it has not begun": (bearer(token(nbf=FAR_AWAY)),),
        "issued in the future": (bearer(token(iat=FAR_AWAY)),),
        "an unknown key": (bearer(token(header={"kid": "other"})),),
        "another algorithm": (bearer(token(header={"alg": "HS512"})),),
        "no algorithm": (bearer(token(header={"alg": "none"})),),
        "a claim that is no object": (bearer(token(own="room")),),
        "a claim with another key": (bearer(token(own={"topics": ["room"], "sends": False})),),
        "send is no truth": (bearer(token(own={"topics": ["room"], "send": "no"})),),
        "topics are no array": (bearer(token(own={"topics": "room"})),),
        "prefixes are no strings": (bearer(token(own={"prefixes": [1]})),),
        "metadata is no object": (bearer(token(own={"topics": ["room"], "metadata": []})),),
        "the subject is no string": (bearer(token(sub=7)),),
        "the id is no string": (bearer(token(jti=7)),),
        "a password": ("Authorization: Basic YWRhOm5vcnRo",),
        "another topic": (bearer(token(own={"topics": ["other"]})),),
        "another topic, from a page": (bearer(token(own={})), "Origin: https://page.example"),
        "two headers": (bearer(good), bearer(good)),
        "two ways": (bearer(good), protocols),
        "an empty one": (bearer(""),),
        "characters that no token has": (bearer("a b"),),
        "two subprotocols": (f"{protocols}, signaling.bearer.{good}",),
        "an empty subprotocol": ("Sec-WebSocket-Protocol: signaling, signaling.bearer.",),
        "a subprotocol alone": (f"Sec-WebSocket-Protocol: signaling.bearer.{good}",),
    }
    with stage(notes, "--auth", f"jwt:{key_file(folder)}:audience=us:issuer=issuer", "--resume-window=60") as on:
        on.title("refused tokens")
        for told, headers in refused.items():
            on.ask(upgrade("/ws/room", *headers), told)
        for query in ("token=", f"token={good}&token={good}", "token=%zz", "token=a+b"):
            on.ask(upgrade(f"/ws/room?{query}"), query.replace(good, "GOOD"))
        on.ask(get("/ws/room", bearer(good)), "a good token with a plain request")
        on.title("good tokens")
        told = "with a good token in "
        on.join("a", "/ws/room", bearer(good), told=f"{told}a header").leave()
        on.join("a", "/ws/room", f"authorization: bearer   {good}", told=f"{told}a header written otherwise").leave()
        on.join("a", f"/ws/room?token={good}", told=f"{told}the query").leave()
        on.join("a", "/ws/room", protocols, told=f"{told}a subprotocol").leave()
        on.title("a token says what metadata the others are shown, and whether its peer may send")
        a = on.join("a", "/ws/room?metadata={}", bearer(good), told="with metadata of its own")
        shown = {"prefixes": ["ro"], "send": False, "metadata": {"name": "Ädä", "n": [1, 2.5]}}
        b = on.join("b", '/ws/room?metadata={"x":1}', bearer(token(own=shown)), told="may receive only")
        b.relay(a.id, "m")
        b.say("nonsense")
        b.say('{"msgId":"\\ud800"}')
        b.send(frame(BINARY, b"x"), "a binary message")
        b.sync()
        a.relay(b.id, "to b")
        for client in (a, b):
            client.sync()
        on.title("another holder's token resumes nothing, the same one's does")
        a.half_close()
        query = f"/ws/room?resume={a.token}&seen=3"
        c = on.join("c", query, bearer(token(sub="other")), told="resume with another holder's token, seen=3")
        d = on.join("d", query, bearer(good), told="resume with the same token, seen=3")
        for client in (d, c, b):
            client.sync()
            client.leave()
        on.title("a token ends")
        soon = token(exp=time.time() + 8)
        a = on.join("a", "/ws/room", bearer(soon), told="with a token that ends soon")
        a.end()
        on.ask(upgrade("/ws/room", bearer(soon)), "with the same token")


def renewals(notes: Notes, folder: Path) -> None:
    """New tokens on an open connection, checks of tokens, and the end of a token where sessions can be resumed."""
    good = token(sub="ada")
    presented = {
        "a good one": json.dumps(good),
        "another owner's": json.dumps(token(sub="eve")),
        "for another topic": json.dumps(token(sub="ada", own={"topics": ["other"]})),
        "expired": json.dumps(token(sub="ada", exp=1)),
        "a wrong signature": json.dumps(token(sub="ada", secret=b"another secret of thirty-two bytes")),
        "nonsense": '"nonsense"',
        "characters that no token has": '"a b"',
        "empty": '""',
        "null": "null",
        "a number": "7",
    }
    with stage(notes, "--auth", f"jwt:{key_file(folder)}:audience=us:issuer=issuer", "--resume-window=60") as on:
        on.title("new tokens")
        a = on.join("a", "/ws/room", bearer(good), told="with ada's token")
        for told, text in presented.items():
            a.say(f'{{"type":"token","token":{text},"msgId":"1"}}', f"a token: {told}")
            a.sync()
        a.say('{"type":"token"}')
        a.say(f'{{"type":"token","token":"{good}"}}', "a good one without msgId")
        a.say('{"type":"token","token":"x","to":7}')
        a.say('{"type":"token","token":"x","msgId":7}')
        a.sync()
        on.title("whether a peer may send, as its newest token says")
        mute = {"topics": ["room"], "send": False}
        for own in (mute, None, mute):
            text = token(sub="ada", own=own)
            a.say(
                f'{{"type":"token","token":"{text}","msgId":"2"}}', "a token: " + ("may send" if not own else "may not")
            )
            a.relay("nobody")
            a.sync()
        on.title("checks")
        page = "Origin: https://page.example"
        for told, headers in {
            "check without a token": (),
            "check with a good token": (bearer(good),),
            "check with a good token, from a page": (bearer(good), page),
            "check with an expired token, from a page": (bearer(token(exp=1)), page),
            "check with a token for another topic": (bearer(token(own={})),),
            "check with two tokens": (bearer(good), bearer(good)),
        }.items():
            on.ask(get("/ws/room?check", *headers), told)
        on.ask(get(f"/ws/room?token={good}&check"), "check with a good token in the query")
        on.title("a token ends, and the client comes back with another one")
        soon = token(sub="ada", exp=time.time() + 8)
        a.say(f'{{"type":"token","token":"{soon}"}}', "a token that ends soon")
        a.frame()
        b = on.join("b", "/ws/room", bearer(token(sub="bob")), told="with bob's token")
        a.end()
        b.relay(a.id, "meanwhile")
        # What came before: 2 messages, 14 answers to tokens, 3 to tokens and 2 to relays, 1 to a token, a peer-joined.
        c = on.join("c", f"/ws/room?resume={a.token}&seen=23", bearer(good), told="resume with ada's token, seen=23")
        for client in (c, b):
            client.sync()
            client.leave()


CHECKER = """
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import ICheckerFactory
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(ICredentialsChecker)
class Checker:
    credentialInterfaces = (IUsernamePassword,)

    def requestAvatarId(self, credentials):
        if credentials.username == b"broken":
            raise ValueError("broken")
        if credentials.username == b"slow":
            return Deferred()
        if credentials.checkPassword(b"north"):
            return credentials.username
        raise UnauthorizedLogin("wrong")


@implementer(ICheckerFactory, IPlugin)
class Factory:
    authType = "transcript"
    argStringFormat = authHelp = ""
    credentialInterfaces = (IUsernamePassword,)

    def generateChecker(self, argstring):
        return Checker()


factory = Factory()
"""


def basic(text: str) -> str:
    return f"Authorization: Basic {base64.b64encode(text.encode()).decode()}"


def passwords(notes: Notes, folder: Path) -> None:
    """Access by tokens or passwords, checks that fail or take too long, and requests that do."""
    plugins = folder / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "transcript_auth.py").write_text(CHECKER)
    env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}
    options = ("--auth", f"jwt:{key_file(folder)}", "--auth=transcript", "--handshake-timeout=6")
    with stage(notes, *options, env=env) as on:
        on.title("passwords")
        on.join("a", "/ws/room", basic("ada:north")).leave()
        for header in (
            "A: b",
            basic("ada:south"),
            basic("nobody"),
            "Authorization: Basic ?",
            "Authorization: Digest x",
            bearer("nonsense"),
            basic("broken:x"),
        ):
            on.ask(upgrade("/ws/room", header))
        on.title("what takes too long")
        told: dict[str, bytes] = {
            "a login": upgrade("/ws/room", basic("slow:x")),
            "a login from a page": upgrade("/ws/room", basic("slow:x"), "Origin: https://page.example"),
            "a login of a check": get("/ws/room?check", basic("slow:x")),
            "a login behind another request": get("/healthz") + upgrade("/ws/room", basic("slow:x")),
            "half a request": b"GET /ws/room HTTP/1.1\r\nHost: server\r\n",
            "half a request behind another": get("/healthz") + b"GET /",
            "a body that does not come": get("/healthz", "Content-Length: 3", method="POST") + b"ab",
            "an answered request, and no other": get("/healthz"),
            "nothing at all": b"",
        }
        clients = []
        for name, data in told.items():
            client = on.client(f"{name}:")
            client.send(data)
            clients.append((client, name, data))
        for client, name, data in clients:
            if data.startswith(b"GET /healthz"):
                client.answer()
            if "login" in name:
                client.answer()
            client.end() if "check" not in name else client.half_close()


# Origins, pages, metrics


def pages(notes: Notes, folder: Path) -> None:
    """A list of origins, files for browsers, and metrics."""
    path = folder / "metrics"
    origins = ("--allow-origin=https://page.example", "--allow-origin=https://*.pages.example", "--allow-origin=null")
    metrics = (f"--metrics-listen=unix:{path}", "--metrics-host=metrics.example")
    with stage(notes, *origins, "--demo", *metrics) as on:
        on.title("origins on the list")
        for origin in ("https://page.example", "HTTPS://Page.Example:443", "https://a.pages.example", "null"):
            on.join("a", "/ws/room", f"Origin: {origin}").leave()
        on.join("a").leave()
        on.title("origins that are not")
        for headers in (
            ("Origin: https://evil.example",),
            ("Origin: https://pages.example",),
            ("Origin: http://page.example",),
            (f"Origin: https://{'x' * 200}.example",),
            ('Origin: <script>"',),
            ("Origin: ",),
            ("Origin: https://page.example", "Origin: https://page.example"),
        ):
            on.ask(upgrade("/ws/room", *headers))
        on.title("what pages may read")
        for headers in ((), ("Origin: https://page.example",), ("Origin: https://evil.example",)):
            for data in (
                get("/healthz", *headers),
                get("/nope", *headers),
                get("/ws/room", *headers, method="OPTIONS"),
            ):
                on.ask(data)
            on.ask(upgrade("/ws/room?metadata=x", *headers))
            on.ask(get("/healthz", *headers, "no colon"))
        on.title("checks, which every page may read")
        for origin, method in product(("https://page.example", "https://evil.example"), ("GET", "OPTIONS")):
            on.ask(get("/ws/room?check", f"Origin: {origin}", method=method))
        on.title("files for browsers")
        hides = r'(?<=Content-Length: )\d+|(?<=[Ee][Tt]ag: ")[0-9a-f]{16}(?=(?:-gzip)?")'
        for name in ("/", "/signaling.js", "/demo.js", "/demo-text.js", "/demo.css", "/favicon.svg"):
            head = on.ask(get(name, method="HEAD"), hides=hides)
            etag = re.search(r'etag: ("[^"]+")', head, re.IGNORECASE)
            on.ask(get(name, f"If-None-Match: {etag[1] if etag else ''}"), f"GET {name} with its tag", hides=hides)
        on.ask(get("/signaling.js", "Origin: https://page.example", method="HEAD"), hides=hides)
        on.ask(get("/signaling.js", "Accept-Encoding: gzip", method="HEAD"), hides=hides)
        on.ask(get("/signaling.js", method="POST"))
        on.ask(get("/signaling.js", method="OPTIONS"))
        on.ask(get("/index.html"))
        on.title("metrics")
        on.server.wait_for("listening on unix")
        on.address = str(path)
        for host in ("server", "metrics.example:80", "127.0.0.1"):
            on.ask(request("HEAD /metrics HTTP/1.1", f"Host: {host}"), hides=hides)
        for accept in ("application/openmetrics-text; version=1.0.0", "nonsense"):
            on.ask(get("/metrics", f"Accept: {accept}", method="HEAD"), hides=hides)
        on.ask(request("GET /metrics HTTP/1.1", "Host: evil.example"))
        on.ask(request("HEAD /metrics HTTP/1.1", "Host: evil.example", "Origin: https://page.example"))
        for data in (get("/"), get("/metrics", method="POST"), get("/metrics", method="OPTIONS"), get("/metrics/more")):
            on.ask(data, hides=r"(?<=TwistedWeb/)[\d.]+")


# The admin API


def administration(notes: Notes, folder: Path) -> None:
    """Notices, removals and closed topics, and what an operator is answered."""
    path = folder / "admin"
    with stage(notes, f"--admin-listen=unix:{path}") as on:
        on.server.wait_for("listening on unix")
        on.title("peers, and what happens to them")
        a, b, c = (on.join(name) for name in "abc")
        a.frames(2)
        b.frame()
        on.address = str(path)
        on.ask(get("/v1/topics"))
        json_type = "Content-Type: application/json"
        for body in ('{"data":{"text":"Ten minutes left"}}', f'{{"to":"{a.id}","data":"To you"}}'):
            on.ask(
                request("POST /v1/topics/room/notices HTTP/1.1", "Host: a", json_type, f"Content-Length: {len(body)}")
                + body.encode()
            )
        a.frames(2)
        b.frame()
        c.frame()
        on.ask(get(f"/v1/topics/room/peers/{a.id}?reason=Please+be+kind", method="DELETE"))
        a.end()
        b.frame()
        c.frame()
        on.ask(get("/v1/topics/room?reason=See+you+tomorrow", method="DELETE"))
        b.end()
        c.end()
        on.title("what cannot be done")
        for target in ("/v1/topics/room", "/v1/topics?limit=0", "/v1/topics?limt=1", "/nowhere"):
            on.ask(get(target))
        on.ask(get(f"/v1/topics/room/peers/{a.id}?block=60", method="DELETE"))
        on.ask(get("/v1/topics", method="OPTIONS"))
        on.ask(get("/v1/topics/room/notices", method="POST"))
        on.ask(get("/v1/topics", "Content-Length: 65537"))
        on.ask(upgrade())


# ICE servers


def ice(notes: Notes, folder: Path) -> None:
    """Fixed ICE servers, TURN credentials, and new ones before those expire."""
    path = folder / "ice.json"
    path.write_text(
        '[{"urls": "stun:stun.example"}, {"urls": ["turn:t.example"], "username": "ä/", "credential": "c"}]'
    )
    uris = ("--turn-uri=turn:turn.example:3478?transport=udp", "--turn-uri=turns:turn.example")
    with stage(notes, f"--ice-servers={path}", *uris, "--turn-ttl=16", env={"TURN_SECRET": TURN_SECRET}) as on:
        on.title("TURN credentials, renewed after half of their life")
        a = on.join("a")
        a.frame()
        a.leave()


# Resuming


def resuming(notes: Notes, folder: Path) -> None:
    """Peers that lose their connection and come back, or do not."""
    path = folder / "ice.json"
    path.write_text('[{"urls": ["stun:stun.example", "stun:other.example"]}]')
    with stage(notes, "--resume-window=8", "--high-water-mark=2", f"--ice-servers={path}") as on:
        on.title("a peer is lost, and what is relayed to it waits, up to the mark")
        a = on.join("a", "/ws/room?metadata={%22name%22:%22Ada%22}")
        b = on.join("b")
        b.relay(a.id, "seen")
        b.sync()
        a.say("nonsense")
        a.sync()
        a.half_close()
        for msg_id in ("1", "2", "3"):
            b.relay(a.id, msg_id)
        b.sync()
        c = on.join("c")
        c.leave()
        b.sync()
        on.title("it comes back, one error and two relays behind")
        a2 = resumed(on, "a2", a.token, 4)
        a2.frames(4)
        a2.relay(b.id, "back")
        a2.sync()
        b.sync()
        on.title("its former token is good until a pong proves that the new one arrived")
        a3 = resumed(on, "a3", a.token, 9)
        a2.end()
        mark = a3.frame()[2:]
        a3.control(PONG, mark)
        a3.sync()
        again = resumed(on, "b2", a.token, 11)
        again.leave()
        for client in (a3, b):
            client.sync()
        on.title("pings ask what has arrived")
        for number in range(10):
            b.relay(a3.id, f"many {number}")
        b.sync()
        a3.sync()
        on.title("a claim that reaches further than what was sent ends the peer")
        a3.half_close()
        far = resumed(on, "a4", a3.token, 999)
        far.sync()
        b.sync()
        refused_claims(on, far, b)
        late(on, far, b)
        on.title("the server stops")
        b.sync()
        lost = on.join("lost")
        lost.half_close()
        on.terminate()
        b.end()


def refused_claims(on: Stage, far: Client, b: Client) -> None:
    on.title("tokens that are none, and one for another topic")
    for told, nonsense in {"nonsense": "nonsense", "nothing": "", "bytes": "%ff"}.items():
        resumed(on, f"{told}:", nonsense, 0).leave()
    resumed(on, "other", far.token, 2, "/ws/other").leave()
    b.sync()
    on.title("claims that are refused")
    for query in (
        f"resume={far.token}",
        f"resume={far.token}&seen=",
        f"resume={far.token}&seen=-1",
        f"resume={far.token}&seen=1234567890123456",
        f"resume={far.token}&seen=1&seen=1",
        "resume=a&resume=b&seen=1",
        "resume=%zz&seen=1",
    ):
        on.ask(upgrade(f"/ws/room?{query}"))


def late(on: Stage, far: Client, b: Client) -> None:
    on.title("a peer does not come back")
    far.half_close()
    b.relay(far.id, "waits")
    b.relay(far.id, "waits too")
    b.sync()
    while b"waits too" not in b.frame():
        pass
    resumed(on, "late", far.token, 4).leave()


def resumed(on: Stage, name: str, text: str, seen: int, path: str = "/ws/room") -> Client:
    return on.join(name, f"{path}?resume={text}&seen={seen}")


# Metadata


def metadata(notes: Notes, folder: Path) -> None:
    """Peers that replace their metadata, and what does not."""
    auth = ("--auth", f"jwt:{key_file(folder)}:audience=us:issuer=issuer")
    with stage(notes, "--metadata-updates", "--metadata-rate=0.001", "--metadata-burst=4", *auth) as on:

        def join(name: str, target: str = "/ws/room", **claims: object) -> Client:
            return on.join(name, target, bearer(token(**claims)), told=f"upgrade {target} {claims or ''}")

        on.title("metadata is replaced, and is in the lists of later peers")
        a, b = join("a", "/ws/room?metadata={}"), join("b")
        a.sync()
        a.say('{"type":"metadata","metadata":{ "b":1e400,"u":"\\ud800 \\u00e4 ä","b":[]},"msgId":"1"}')
        a.say('{"metadata":{"a":%s},"\\u0074ype":"meta\\u0064ata"}' % ("[" * 63 + "]" * 63))
        a.sync()
        b.say('{"type":"metadata","metadata":{}}')
        for client in (b, a):
            client.sync()
        join("c").leave()
        a.sync()
        on.title("what is none, and what is too much")
        for text in (
            '{"type":"metadata","msgId":"m"}',
            '{"type":"metadata","metadata":null,"msgId":"m"}',
            '{"type":"metadata","metadata":[{}],"msgId":"m"}',
            '{"type":"metadata","metadata":{"n":%s},"msgId":"m"}' % ("1" * 101),
            '{"type":"metadata","metadata":{"s":"%s"},"msgId":"m"}' % ("x" * 4_096),
            '{"type":"metadata","metadata":{"a":%s},"msgId":"m"}' % ("[" * 64 + "]" * 64),
            '{"type":"metadata","metadata":{},"x":%s,"msgId":"m"}' % ("[" * 65 + "]" * 65),
            '{"type":"metadata","metadata":{},"to":7,"msgId":"m"}',
            '{"type":"metadata","metadata":{"n":1}}',
            '{"type":"metadata","metadata":{"n":2}}',
            '{"type":"metadata","metadata":{"n":3},"msgId":"one too many"}',
        ):
            a.say(text)
        a.sync()
        on.title("tokens that forbid it")
        for own in ({"topics": ["room"], "metadata": {"n": 0}}, {"topics": ["room"], "send": False}):
            other = join("other", own=own)
            other.say('{"type":"metadata","metadata":{},"msgId":"m"}')
            other.sync()
            other.leave()
        b.sync()
        a.leave()
        b.leave()


# Time, and the end


def pings(notes: Notes, folder: Path) -> None:
    """Pings of the server, answered and not."""
    with stage(notes, "--ping-timeout=3", ping_interval=6) as on:
        on.title("one peer answers, the other is cut off")
        a, b = on.join("a"), on.join("b")
        a.frame()
        a.control(PONG, a.frame()[2:])
        b.frame()
        a.frame()
        b.end()
        a.leave()


def delayed(notes: Notes, folder: Path) -> None:
    """A server that still accepts joins while it stops, until a second signal."""
    with stage(notes, "--drain-delay=60") as on:
        on.title("joins are accepted")
        a = on.join("a")
        kept = on.client("http")
        on.terminate()
        on.until_ready(b"503")
        for data in (
            get("/readyz"),
            get("/readyz", method="HEAD"),
            get("/readyz?exclude=drain"),
            get("/readyz?exclude=workers"),
            get("/healthz"),
        ):
            on.ask(data)
        # Of another topic: nobody knows whose connection is cut off first.
        b = on.join("b", "/ws/other")
        a.sync()
        on.title("a second signal; a close frame may come in front of the reset")
        on.terminate()
        for client in (a, b, kept):
            # Where a frame is written at once it leaves; where the reactor writes it, the abort is faster.
            client.end(without=b"\x88\x18\x03\xe9the server is stopping")


def workers(notes: Notes, folder: Path) -> None:
    """Several processes that share the topics."""
    with stage(notes, "--workers=2") as on:
        on.until_ready(b"200")
        on.title("one request for each connection")
        for data in (
            get("/healthz"),
            get("/readyz"),
            get("/readyz?exclude=workers", method="HEAD"),
            get("/nope"),
            get("/ws/room"),
            get("/ws/%ff"),
            get("/ws/%zz"),
            get("/ws/room", method="POST"),
            get("/ws/room", method="OPTIONS"),
            upgrade("/ws/a/b"),
            b"nonsense\r\n\r\n",
            b"GET /" + b"x" * 20_000,
            get("/ws/room", "A: " + "x" * 20_000),
            get("/ws/room") * 2,
        ):
            on.ask(data)
        on.title("checks: by the worker of the topic, and the preflight by the listener")
        for topic in ("room", "other", "third", "fourth"):
            on.ask(get(f"/ws/{topic}?check"))
        on.ask(get("/ws/room?check", "Origin: https://page.example", method="OPTIONS"))
        on.title("a topic that stands too far behind to be found")
        far = f"GET http://{'x' * 5_000}/ws/room HTTP/1.1"
        on.ask(upgrade(line=far))
        on.ask(upgrade("", "Origin: https://page.example", line=far))
        for topic in ("room", "other", "third", "fourth"):
            on.title(f"peers of {topic}")
            a, b = on.join("a", f"/ws/{topic}"), on.join("b", f"/ws/{topic}?metadata={{}}")
            a.relay(b.id)
            a.relay("nobody")
            a.sync()
            b.leave()
            a.sync()
            a.leave()
        on.title("all stop")
        clients = [on.join(topic, f"/ws/{topic}") for topic in ("room", "other", "third", "fourth")]
        on.terminate()
        for client in clients:
            client.end()


PARTS: dict[str, Callable[[Notes, Path], None]] = {
    # Those that wait for something come first: the others run meanwhile.
    "resuming": resuming,
    "ICE servers": ice,
    "pings": pings,
    "tokens": tokens,
    "new tokens, and checks": renewals,
    "passwords, and what takes too long": passwords,
    "metadata": metadata,
    "HTTP": http_answers,
    "messages": messages,
    "rates": rates,
    "a full server": fullness,
    "addresses": addresses,
    "origins, pages, metrics": pages,
    "the admin API": administration,
    "a delayed stop": delayed,
    "workers": workers,
}


def play(name: str) -> Notes:
    """Play one part; an error in it is written down like everything else."""
    notes = Notes()
    notes.title(name, "==")
    with tempfile.TemporaryDirectory(prefix="wire-") as folder:
        try:
            PARTS[name](notes, Path(folder))
        except Exception as error:
            notes.add("the test", "!", f"broken off: {error!r}".replace("\n", "\\n"))
    return notes


def played() -> list[str]:
    """Play all parts; returns the lines of the transcript."""
    with ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
        return [line for notes in threads.map(play, PARTS) for line in notes.lines()][1:]


def broken(lines: list[str]) -> list[str]:
    """Return the lines that tell of a part that could not be played to its end."""
    return [line for line in lines if line.startswith("the test ! ") or line.endswith("(no end in time)")]


def test_every_byte_on_the_wire_is_as_it_was_recorded() -> None:
    recorded, now = TRANSCRIPT.read_text(encoding="ascii").splitlines(), played()
    difference = list(difflib.unified_diff(recorded, now, "recorded", "now", lineterm=""))
    if difference:
        lines = ["the wire is not as it was recorded:", *broken(now), *difference]
        pytest.fail("\n".join(lines), pytrace=False)


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        raise SystemExit("usage: python -m tests.system.test_wire_transcript --record")
    lines = played()
    if broken(lines):
        raise SystemExit("not recorded:\n" + "\n".join(broken(lines)))
    TRANSCRIPT.write_text("\n".join(lines) + "\n", encoding="ascii")
