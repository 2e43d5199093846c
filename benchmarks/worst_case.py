"""What the bytes of one client cost at most: every printable byte, repeated, in each place of a request or a message.

``python -m benchmarks.worst_case`` prints the worst case of each place in milliseconds of CPU. The server runs in
memory, so nothing but its own work is measured. ``tests/unit/test_linear_time.py`` runs these cases at two lengths.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from urllib.parse import quote_from_bytes

from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from signaling import Grant, GrantRealm, IBearerToken, Limits, SignalingFactory, SignalingResource
from signaling.server.protocol import SignalingProtocol
from signaling.workers.listener import WorkerListener
from signaling.workers.supervisor import WorkerSettings
from tests.harness.frames import masked

REQUEST_BYTES = 16_000
MESSAGE_BYTES = 65_000
METADATA_BYTES = 4_000
PRINTABLE = [bytes([byte]) for byte in range(0x20, 0x7F)]
"""Every printable byte."""
PUNCTUATION = [byte for byte in PRINTABLE if not byte.isalnum()]

_ADDRESS = IPv4Address("TCP", "192.0.2.1", 40_000)
_HOST = b" HTTP/1.1\r\nHost: a\r\n"
_UPGRADE = {
    "Host": b"a",
    "Upgrade": b"websocket",
    "Connection": b"Upgrade",
    "Sec-WebSocket-Key": b"dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": b"13",
}
_RESUME_SECONDS = 60

Pieces = list[bytes]
"""What a client sends, a read each."""


@implementer(ITCPTransport, IPushProducer)
class _Transport:
    """A transport that takes everything."""

    disconnecting = False

    def write(self, data: bytes) -> None:
        self.written = True

    def writeSequence(self, data: Any) -> None:
        self.written = True

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.disconnecting = True

    def getPeer(self) -> IPv4Address:
        return _ADDRESS

    def getHost(self) -> IPv4Address:
        return _ADDRESS

    def __getattr__(self, name: str) -> Any:
        if name in ("dataBuffer", "negotiatedProtocol", "transport"):
            raise AttributeError(name)
        return lambda *_: None


@implementer(IBearerToken)
class _Checker:
    """A checker that knows two tokens."""

    credentialInterfaces = (IBearerToken,)

    def requestAvatarId(self, credentials: Any) -> Deferred[Grant]:
        if credentials.token not in (b"sends", b"receives"):
            raise UnauthorizedLogin
        return succeed(Grant(prefixes=("",), may_send=credentials.token == b"sends", subject="a"))


class _LeftToAutobahn(SignalingProtocol):
    fast = False


class Server:
    """A server with every option that has something to read in a request.

    Args:
        way: ``port``, ``site`` (a foreign one), ``listener`` (of workers), ``autobahn`` (without the fast path), or
            ``limited`` (one message a day).
    """

    def __init__(self, way: str) -> None:
        self._clock = Clock()
        how: dict[str, Any] = {
            "limits": Limits(
                resume_window_seconds=_RESUME_SECONDS,
                max_messages_per_second=0.00001 if way == "limited" else 0,
                message_burst=1,
            ),
            "allow_origins": ["https://example.org", "https://*.example.com", "null"],
            "trusted_proxies": ["192.0.2.0/24"],
            "serve_client": True,
            "reactor": self._clock,
            "log_level": LogLevel.warn,
        }
        self._router = None
        self._factory: SignalingFactory
        if way == "listener":
            self._factory = listener = WorkerListener(WorkerSettings(2, [], 1.0), **how)
            self._router = listener.router
        else:
            self._factory = SignalingFactory(**how, portal=Portal(GrantRealm(), [_Checker()]), metadata_updates=True)
        if way == "autobahn":
            self._factory.protocol = _LeftToAutobahn
        self._build: Callable[[Any], Any] = self._factory.buildProtocol
        if way == "site":
            root = Resource()
            root.putChild(b"ws", SignalingResource(self._factory))
            self._build = Site(root, reactor=self._clock).buildProtocol

    def cost(self, before: Pieces, pieces: Pieces) -> float:
        """Return the CPU seconds that ``pieces`` take on a fresh connection that has brought ``before``."""
        transport, connection = _Transport(), self._build(_ADDRESS)
        connection.makeConnection(transport)
        for piece in before:
            connection.dataReceived(piece)
        start = time.process_time()
        if self._router is not None:
            self._router.route(b"".join(pieces)[:4096])
        for piece in pieces:
            connection.dataReceived(piece)
        while any(call.getTime() <= self._clock.seconds() for call in self._clock.getDelayedCalls()):
            self._clock.advance(0)
        taken = time.process_time() - start
        connection.connectionLost(None)
        # Nobody comes back: the next one finds an empty topic.
        self._clock.advance(_RESUME_SECONDS)
        return taken


@cache
def server(way: str) -> Server:
    """Return the server for a way in."""
    return Server(way)


@dataclass(frozen=True)
class Case:
    """Something that a client may send, at any length.

    Args:
        place: where the bytes stand.
        what: is repeated there.
        way: into the server.
        size: its greatest length, in bytes.
        pieces: makes it, given a length.
        before: is sent in front of it.
    """

    place: str
    what: str
    way: str
    size: int
    pieces: Callable[[int], Pieces]
    before: tuple[bytes, ...] = ()

    def cost(self, size: int) -> float:
        """Return the CPU seconds that it takes at a length."""
        return server(self.way).cost(list(self.before), self.pieces(size))

    def __str__(self) -> str:
        return f"{self.way}: {self.what} in {self.place}"


def filled(unit: bytes, size: int) -> bytes:
    """Repeat ``unit`` up to a length."""
    return unit * (size // len(unit))


def request(target: bytes = b"/ws/a", method: bytes = b"GET", **headers: bytes | None) -> bytes:
    """Write an upgrade request; a keyword replaces a header, None leaves it out."""
    values = {**_UPGRADE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [b"%b: %b\r\n" % (name.encode(), value) for name, value in values.items() if value is not None]
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, b"".join(lines))


def plain(target: bytes = b"/healthz", method: bytes = b"GET", lines: bytes = b"") -> bytes:
    """Write a request that is no upgrade."""
    return b"%b %b%b%b\r\n" % (method, target, _HOST, lines)


_HEADERS = ("Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol")
_MORE_HEADERS = ("Origin", "Authorization", "X-Forwarded-For", "Cookie", "X-Other")
_PLAIN_HEADERS = ("Connection", "Content-Length", "Transfer-Encoding", "Content-Type", "Expect", "Cookie", "Origin")

# Where bytes can stand in a request, written as what makes the request of them.
PLACES: dict[str, Callable[[bytes], bytes]] = {
    "the first line": lambda text: b"%b\r\n\r\n" % text,
    "the method": lambda text: text + b" /ws/a" + _HOST + b"\r\n",
    "the target": plain,
    "the version": lambda text: b"GET / " + text + b"\r\n\r\n",
    "the authority": lambda text: request(b"http://" + text + b"/ws/a"),
    "an unknown path": lambda text: plain(b"/" + text),
    "the mount": lambda text: request(b"/" + text + b"/a"),
    "the topic": lambda text: request(b"/ws/" + text),
    "the topic of a plain request": lambda text: plain(b"/ws/" + text),
    "the query": lambda text: request(b"/ws/a?" + text),
    "the query of a plain request": lambda text: plain(b"/ws/a?" + text),
    "the query of a check": lambda text: plain(b"/ws/a?check&" + text),
    "the query of /healthz": lambda text: plain(b"/healthz?" + text),
    "the query of /readyz": lambda text: plain(b"/readyz?" + text),
    "exclude": lambda text: plain(b"/readyz?exclude=" + text),
    "metadata in the query": lambda text: request(b"/ws/a?metadata=" + text),
    "resume": lambda text: request(b"/ws/a?seen=1&resume=" + text),
    "seen": lambda text: request(b"/ws/a?resume=a&seen=" + text),
    "token": lambda text: request(b"/ws/a?token=" + text),
    "a header's name": lambda text: plain(lines=text + b": a\r\n"),
    "a header's name of an upgrade": lambda text: request().replace(b"Host", text + b": a\r\nHost"),
    "a continued line": lambda text: plain(lines=b"A: a\r\n b" + text + b"\r\n"),
    "If-None-Match": lambda text: plain(b"/signaling.js", lines=b"If-None-Match: " + text + b"\r\n"),
    "a body": lambda text: plain(lines=b"Content-Length: %d\r\n" % len(text)) + text,
    "a body of POST": lambda text: plain(method=b"POST", lines=b"Content-Length: %d\r\n" % len(text)) + text,
    "a chunk's size": lambda text: plain(lines=b"Transfer-Encoding: chunked\r\n") + text + b"\r\n",
    "a chunk's extension": lambda text: plain(lines=b"Transfer-Encoding: chunked\r\n") + b"0;" + text + b"\r\n\r\n",
    "a trailer": lambda text: plain(lines=b"Transfer-Encoding: chunked\r\n") + b"0\r\nA:" + text + b"\r\n\r\n",
    "a second request": lambda text: plain() + text,
    "a second request's path": lambda text: plain() + plain(b"/" + text),
    "a second request's query": lambda text: plain() + plain(b"/ws/a?" + text),
    **{f"{name} of an upgrade": lambda text, name=name: request(**{name: text}) for name in _HEADERS},
    **{f"{name} of an upgrade": lambda text, name=name: request(**{name: text}) for name in _MORE_HEADERS},
    **{
        f"{name} of a plain request": lambda text, name=name: plain(lines=name.encode() + b": " + text + b"\r\n")
        for name in _PLAIN_HEADERS
    },
    "another Upgrade": lambda text: request().replace(b"Upgrade: w", b"Upgrade: " + text + b"\r\nUpgrade: w"),
    "Connection of a refused upgrade": lambda text: request(Connection=text + b",Upgrade", Origin=b"https://foreign"),
    "Authorization: Bearer": lambda text: request(Authorization=b"Bearer " + text),
    "a subprotocol with a token": lambda text: request(Sec_WebSocket_Protocol=b"signaling, signaling.bearer." + text),
}
_OF_TWO = (
    b"%41",
    b"%4",
    b"a=&",
    b"token=&",
    b"&%",
    b"?%",
    b";=",
    b"192.0.2.9,",
    b"a,",
    b", ",
    b" \t",
    b"a b",
    b"1,",
    b"::",
    b"%7b",
)
# What starts a line, repeated, is many lines.
_LINES = (b"\r\n", b"\n", b"\r", b" \r\n", b"\t\r\n", b"a:\r\n", b"a: b\r\n", b"a\r\n", b"Host: a\r\n", b" a\r\n")
_BODIES = (b"1\r\na\r\n", b"0\r\n\r\n", b"01\r\na\r\n", b"1;a=b\r\na\r\n")
_MANY = (b"Upgrade: ,\r\n", b"Connection: ,\r\n", b"Cookie: ;=\r\n", b"Sec-WebSocket-Protocol: ,\r\n", b"Origin: a\r\n")


def requests() -> Iterator[Case]:
    """List requests; those that only one way reads are tried by that way alone."""
    for way, places in {"port": [*PLACES], "listener": LISTENER_PLACES, "site": SITE_PLACES}.items():
        for place in places:
            make = PLACES[place]
            for unit in (*(PRINTABLE if way == "port" else PUNCTUATION), *_OF_TWO, b"\x80", b"\xc3\xa9", b"\0"):
                yield Case(place, repr(unit), way, REQUEST_BYTES, lambda n, m=make, u=unit: [m(filled(u, n))])
    for unit in (*_LINES, *_MANY):
        for name, head in (("headers", plain()), ("headers of an upgrade", request()), ("a first line", b"\r\n")):
            make_lines = lambda n, u=unit, h=head: [h[:-2] + filled(u, n) + b"\r\n"]  # noqa: E731
            yield Case(name, repr(unit), "port", REQUEST_BYTES, make_lines)
    for unit in _BODIES:
        head = plain(lines=b"Transfer-Encoding: chunked\r\n")
        yield Case("chunks", repr(unit), "port", REQUEST_BYTES, lambda n, u=unit, h=head: [h + filled(u, n)])
    for target in (b"/healthz", b"/ws/a", b"/signaling.js"):
        make_many = lambda n, t=target: [filled(plain(t), n)]  # noqa: E731
        yield Case("a connection", f"requests of {target!r}", "port", REQUEST_BYTES, make_many)
    trickled = lambda n: [bytes([byte]) for byte in plain(b"/" + filled(b"a", n))]  # noqa: E731
    yield Case("a request", "single bytes", "port", REQUEST_BYTES, trickled)
    second = lambda n: [plain() + b"G", *trickled(n)[1:]]  # noqa: E731
    yield Case("a second request", "single bytes", "port", REQUEST_BYTES, second)


LISTENER_PLACES = [
    *("the first line", "the method", "the target", "the authority", "an unknown path", "the mount", "the topic"),
    *("the topic of a plain request", "the query", "the query of a plain request", "Upgrade of an upgrade"),
]
"""What the listener of workers reads; a worker reads the rest like any server."""
SITE_PLACES = [
    *("the topic", "metadata in the query", "resume", "seen", "token", "Authorization: Bearer"),
    *(f"{name} of an upgrade" for name in (*_HEADERS, *_MORE_HEADERS) if name != "Cookie"),
    *("another Upgrade", "Connection of a refused upgrade", "a subprotocol with a token"),
]
"""What our resource reads in a foreign site; twisted.web reads the rest of a request."""


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """Frame a client's data, under a mask of zeros."""
    return masked(first, payload)


_OFFER = b'{"type":"offer","to":"nobody","msgId":"1","payload":'
_SURROGATE = rb'"\ud800"'
TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "a message": lambda text: text,
    "an object": lambda text: b"{" + text,
    "an object that ends": lambda text: b"{" + text + b'"a":0}',
    "an object with a surrogate": lambda text: b"{" + text + b'"a":' + _SURROGATE + b"}",
    "a payload": lambda text: _OFFER + text + b"}",
    "a payload with a surrogate": lambda text: _OFFER + b"[" + text + _SURROGATE + b"]}",
    "a string": lambda text: _OFFER + b'"' + text + b'"}',
    "a string with a surrogate": lambda text: _OFFER + b'"' + text + rb'\ud800"}',
    "a string in an array": lambda text: _OFFER + b"[" + b'"",' * 100 + b'"' + text + b"}",
    "type": lambda text: b'{"type":"' + text + b'","to":"a"}',
    "to": lambda text: b'{"type":"offer","to":"' + text + b'"}',
    "msgId": lambda text: b'{"type":"offer","to":"a","msgId":"' + text + b'"}',
    "token": lambda text: b'{"type":"token","token":"' + text + b'"}',
    "metadata": lambda text: b'{"type":"metadata","metadata":{' + text + b'"a":0}}',
    "msgId with a wrong type": lambda text: b'{"type":1,"msgId":"' + text + b'"}',
    "an array behind a wrong type": lambda text: b'{"type":1,"payload":[' + text + b"0]}",
    "a nested payload": lambda text: _OFFER + text + b"0" + text.translate(_CLOSING) + b"}",
}
_CLOSING = bytes.maketrans(b"[{", b"]}")
UNITS = (
    *(b'"":0,', b'"a":0,', b'"":"",', b'"a":{},', b'"a":[],', b'"type":"offer",', b'"msgId":"",', b'"":{"":'),
    *(b"[", b"{", b"]", b"[]", b"{}", b"[[", b"[],", b"{},", b'{"":0},', b'{"":', b"[[],", b'"",', b'""', b'"\\"'),
    *(b"\\", b'\\"', b"\\\\", b"\\u0000", b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\u", b"\\n", b"\\x"),
    *(b"0", b"1", b"0,", b"1,", b"-1,", b"1e9,", b"1e", b"-", b".", b"1.5,", b"123456789"),
    *(
        b" ",
        b"\t",
        b"\n",
        b" \n",
        b" ,",
        b"0 ,",
        b" 0,",
        b'"" : 0 , ',
        b"null,",
        b"true,",
        b"nul",
        b"NaN,",
        b"Infinity",
    ),
    *(b"\xc3\xa9", b"\xf0\x9f\x98\x80", b"\xff", b"\x00", b"/*", b"//", b"'"),
)


def messages() -> Iterator[Case]:
    """List messages, sent whole. The other ways in read the same JSON, so a few places are tried there."""
    for place, make in TEXTS.items():
        for unit in (*PRINTABLE, *UNITS) if place in _PLACES_OF_ALL_READERS else UNITS:
            yield _message(place, repr(unit), "port", b"sends", lambda n, m=make, u=unit: [frame(m(filled(u, n)))])
    for way, token in (("autobahn", b"sends"), ("limited", b"sends"), ("port", b"receives")):
        for place in _PLACES_OF_ALL_READERS:
            where = place + (" of a peer that only receives" if token == b"receives" else "")
            make = TEXTS[place]
            for unit in UNITS:
                yield _message(where, repr(unit), way, token, lambda n, m=make, u=unit: [frame(m(filled(u, n)))])


_PLACES_OF_ALL_READERS = ("a message", "an object with a surrogate", "a string with a surrogate")


def fragments() -> Iterator[Case]:
    """List messages in fragments, and in single reads."""
    for way in ("port", "autobahn"):
        for size in (0, 1, 125, 1000):
            make = lambda n, size=size: [_fragmented(filled(b"a", n), size)]  # noqa: E731
            yield _message("a message", f"fragments of {size} bytes", way, b"sends", make)
        for opcode, name in ((0x82, "binary messages"), (0x89, "pings"), (0x8A, "pongs"), (0x81, "texts")):
            many = lambda n, opcode=opcode: [filled(frame(b"", opcode), n)]  # noqa: E731
            # Many messages, not one: half as much shows the growth as well.
            yield replace(_message("a connection", f"empty {name}", way, b"sends", many), size=MESSAGE_BYTES // 2)
        for name, whole in (("ASCII", b"a"), ("UTF-8", "é".encode()), ("no UTF-8", b"\xc3")):
            yield _message("a message", f"{name}, cut in two", way, b"sends", lambda n, w=whole: _halves(filled(w, n)))
        trickle = lambda n: [bytes([byte]) for byte in frame(filled(b"a", n))]  # noqa: E731
        yield replace(_message("a message", "single bytes", way, b"sends", trickle), size=REQUEST_BYTES)


def _halves(text: bytes) -> Pieces:
    data = frame(text)
    return [data[: len(data) // 2], data[len(data) // 2 :]]


def _fragmented(text: bytes, size: int) -> bytes:
    if not size:
        return frame(b"", 0x01) + filled(frame(b"", 0x00), len(text)) + frame(b"", 0x80)
    pieces = [text[at : at + size] for at in range(0, len(text), size + 6)]
    return frame(b"", 0x01) + b"".join(frame(piece, 0x00) for piece in pieces) + frame(b"", 0x80)


def metadata() -> Iterator[Case]:
    """List metadata, percent-encoded as a client would."""
    shapes: dict[str, Callable[[bytes], bytes]] = {
        "metadata": lambda text: b"{" + text + b'"a":0}',
        "a value of metadata": lambda text: b'{"a":' + text + b"}",
        "a string of metadata": lambda text: b'{"a":"' + text + b'"}',
        "an array of metadata": lambda text: b'{"a":[' + text + b"0]}",
    }
    for place, shape in shapes.items():
        for unit in UNITS:
            make = lambda n, s=shape, u=unit: [request(b"/ws/a?metadata=" + _quoted(s(filled(u, n))))]  # noqa: E731
            yield Case(place, repr(unit), "port", METADATA_BYTES, make)


def _quoted(text: bytes) -> bytes:
    return quote_from_bytes(text, safe='{}[]":,\\').encode()


def _message(place: str, what: str, way: str, token: bytes, make: Callable[[int], Pieces]) -> Case:
    joined = request(b"/ws/a?token=" + token)
    used_up = (frame(b"{}"), frame(b"{}")) if way == "limited" else ()
    return Case(place, what, way, MESSAGE_BYTES, make, (joined, *used_up))


def ordinary(group: str) -> Case:
    """Return a case of a group in which nothing is special."""
    if group in ("requests", "metadata"):
        return Case("a request", "nothing special", "port", REQUEST_BYTES, lambda n: [request()])
    return _message("a message", "nothing special", "port", b"sends", lambda n: [frame(TEXTS["a string"](b"a" * n))])


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "requests": requests,
    "metadata": metadata,
    "messages": messages,
    "fragments": fragments,
}


def worst(cases: Sequence[Case], repeats: int) -> dict[tuple[str, str], tuple[float, Case]]:
    """Find the most expensive case of each place by each way; of several measurements the least counts."""
    found: dict[tuple[str, str], tuple[float, Case]] = {}
    for case in cases:
        key, cost = (case.way, case.place), case.cost(case.size)
        # Noise only adds: a case that is not the worst so far needs no second measurement.
        for _ in range(repeats - 1):
            if cost <= found.get(key, (0.0,))[0]:
                break
            cost = min(cost, case.cost(case.size))
        if cost > found.get(key, (0.0,))[0]:
            found[key] = cost, case
    return found


def main() -> None:
    """Print the worst case of each place."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worst_case", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="which cases; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each; default: %(default)s")
    parser.add_argument("--least", type=float, default=0.0, help="milliseconds below which a place is not listed")
    options = parser.parse_args()
    for group in options.groups or GROUPS:
        print(f"{group}:")
        found = worst(list(GROUPS[group]()), options.repeats)
        for (way, place), (cost, case) in sorted(found.items(), key=lambda item: -item[1][0]):
            if cost * 1000 >= options.least:
                print(f"  {cost * 1000:8.2f} ms  {way:9} {place}: {case.what}")


if __name__ == "__main__":
    main()
