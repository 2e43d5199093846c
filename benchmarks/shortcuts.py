"""What code that could be plainer saves, beside the plainer way: ``python -m benchmarks.shortcuts``.

Both ways take turns in one process, and the best of the rounds counts for each. Each saving is also shown as a share of
its whole operation without the shortcut, which is measured in the same run over real sockets, the kernel's part
included.
"""

from __future__ import annotations

import argparse
import re
import select
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

from ulid import ULIDGenerator

from benchmarks.client import text_frame as masked_text_frame
from benchmarks.compare.payloads import mix
from benchmarks.relay_steps import (
    AT_ONCE,
    CHROMIUM_REQUEST,
    SHORT_REQUEST,
    SOME_ID,
    Clients,
    OurServer,
    Work,
    lives,
    read_head,
    relay_messages,
    steps,
)
from signaling import Limits
from signaling.core import announcer, messages
from signaling.core.peer import Peer
from signaling.core.peer_ids import PeerIds
from signaling.transport import private_api, tcp_connection
from signaling.transport.tcp_connection import to_address
from signaling.websocket import frames, protocol, request_head
from signaling.websocket.frames import text_frame

_ROUNDS = 40
_ONE_ROOM = SHORT_REQUEST.replace(b"/ws/%b", b"/ws/room?%b")
_NO_HEAD = re.compile(rb"(?!)")
_MANY_OBJECTS = 2_000
_EVENT = text_frame(messages.peer_left(SOME_ID))

Way = Callable[[int], object]


class Shortcut(NamedTuple):
    """What a piece of code takes, and what a plainer one would.

    Args:
        operation: what it is a part of.
        plain: as it could be.
        fast: as it is.
        whole: the operation, as it is.
        unit: of the three.
    """

    name: str
    operation: str
    plain: float
    fast: float
    whole: float
    unit: str = "µs"

    def __str__(self) -> str:
        saved = self.plain - self.fast
        share = saved / (self.whole + saved)
        digits = 2 if self.unit == "µs" else 0
        cells = (f"{value:,.{digits}f}" for value in (self.plain, self.fast, saved))
        return f"| {self.name} | {self.unit} | {' | '.join(cells)} | {share:.1%} of {self.operation} |"


def _compared(plain: Callable[[], float], fast: Callable[[], float]) -> tuple[float, float]:
    rounds = [(plain(), fast()) for _ in range(_ROUNDS)]
    return min(one for one, _ in rounds), min(other for _, other in rounds)


def _timed(plain: Way, fast: Way, repeats: int) -> tuple[float, float]:
    return _compared(partial(_microseconds, plain, repeats), partial(_microseconds, fast, repeats))


def _microseconds(way: Way, repeats: int) -> float:
    start = time.thread_time()
    for number in range(repeats):
        way(number)
    return 1e6 * (time.thread_time() - start) / repeats


# A relay


def _relayed_in_pieces(message: messages.ClientMessage, sender_id: str) -> bytes:
    pieces: list[Any] = [b'{"type":"%b","from":"%b"' % (message.type.encode(), sender_id.encode())]
    if message.payload:
        pieces += (b',"payload":', message.payload)
    if message.msg_id_text:
        pieces += (b',"msgId":', message.msg_id_text)
    return b"".join([*pieces, b"}"])


def _nothing_sent() -> AbstractContextManager[object]:
    # The kernel has no part in what is compared.
    return patch.object(tcp_connection, "_write", lambda _, piece: len(piece))


def _handle_frame(connection: Any, data: bytes) -> None:
    """Handle one frame that the connection has read, by the function that reads every kind."""
    found = frames.masked_frame_at(data, 0, connection.maxMessagePayloadSize) if connection._reads_directly else None
    if found is not None:
        opcode, message, end = found
        if end == len(data) and opcode == frames.TEXT:
            connection.onMessage(message, False)
            return
    raise ValueError("not one whole message")


def _members(server: OurServer) -> tuple[Clients, dict[str, Peer]]:
    """Let 16 clients join one topic."""
    clients = Clients(server)
    clients.connect()
    clients.join(_ONE_ROOM)
    _drain(clients)
    topic = server.factory.topics.find("room")
    assert topic is not None
    return clients, topic.members


def _drain(clients: Clients) -> None:
    # The last one that joined got no event.
    with suppress(BlockingIOError):
        clients.receive()


def _of_a_relay(server: OurServer, whole: float, repeats: int) -> Iterator[Shortcut]:
    clients, members = _members(server)
    sender, target, *_ = members
    connection: Any = members[sender]._outbound
    texts = relay_messages(mix(0), target)
    data = [masked_text_frame(text) for text in texts]
    decoded = [messages.decode(text) for text in texts]
    many = len(texts)

    def read(number: int) -> None:
        connection.dataReceived(data[number % many])

    def read_as_several(number: int) -> None:
        connection._reads_directly = False
        connection.dataReceived(data[number % many])

    def read_by_masked_frame_at() -> float:
        with patch.object(protocol.WebSocketConnection, "dataReceived", _handle_frame):
            return _microseconds(read, repeats)

    ways: dict[str, tuple[Way, Way]] = {
        "`_reads_directly`: a whole message does not pass the buffer and the turns": (read_as_several, read),
        "`relayed` joins at once what most messages have": (
            lambda number: _relayed_in_pieces(decoded[number % many], SOME_ID),
            lambda number: messages.relayed(decoded[number % many], SOME_ID),
        ),
    }

    def decode(number: int) -> None:
        messages.decode(texts[number % many])

    def decode_and_always_count() -> float:
        with patch.object(messages, "_SHALLOW_BYTES", 0):
            return _microseconds(decode, repeats)

    with _nothing_sent():
        for name, (plain, fast) in ways.items():
            yield Shortcut(name, "a relay", *_timed(plain, fast, repeats), whole)
        times = _compared(read_by_masked_frame_at, partial(_microseconds, read, repeats))
    yield Shortcut("`text_at` in place of `masked_frame_at`", "a relay", *times, whole)
    times = _compared(decode_and_always_count, partial(_microseconds, decode, repeats))
    yield Shortcut("`decode` looks for deep nesting only where it can be", "a relay", *times, whole)
    clients.leave()


# An event of a topic


class _GeneratingBacklog(announcer._Backlog):
    """Says what to deliver to whom, and leaves it to its caller."""

    def deliveries(self, topic: announcer.Audience) -> Iterator[tuple[announcer.Member, list[announcer.Block]]]:
        if self._pass is None:
            self._begin_pass(topic)
        assert self._pass is not None
        for member in self._pass:
            received = self._received.get(member, 0)
            if member.topic is topic and received < self._length:
                self._received[member] = self._length
                yield member, announcer._blocks(self.events[received : self._length]) if received else self._blocks
        self._end_pass()

    def deliver(self, topic: announcer.Audience, room: float, on_dropped: Callable[[int], None]) -> float:
        taken = 0.0
        for member, blocks in self.deliveries(topic):
            on_dropped(sum(map(member.take_block, blocks)))
            taken += len(blocks) / self.pace
            if taken >= room:
                break
        return taken


def _of_an_event(server: OurServer, repeats: int) -> Iterator[Shortcut]:
    clients, members = _members(server)
    topic = next(iter(members.values())).topic
    assert topic is not None

    def announce(make: Callable[[], announcer._Backlog], events: int) -> float:
        start = time.thread_time()
        for _ in range(events):
            backlog = make()
            backlog.events.append(_EVENT)
            backlog.deliver(topic, float("inf"), server.factory.counters.count_dropped_events)
        taken = time.thread_time() - start
        _drain(clients)
        return 1e6 * taken / events / AT_ONCE

    # One event at a time: the kernel takes less for several.
    whole = min(announce(announcer._Backlog, 1) for _ in range(_ROUNDS))
    with _nothing_sent():
        times = _compared(*(partial(announce, make, repeats) for make in (_GeneratingBacklog, announcer._Backlog)))
    yield Shortcut("`deliver` is no generator", "an event for a member", *times, whole)
    clients.leave()


# A connection


def _of_a_connection(server: OurServer, whole: float, passes: int, repeats: int) -> Iterator[Shortcut]:
    name = "a connection"
    for request, sort in ((SHORT_REQUEST, "of seven lines"), (CHROMIUM_REQUEST, "of Chromium")):
        read = partial(read_head, server.factory, request % b"0")

        def by_lines(read: Way = read) -> float:
            with patch.object(request_head, "ORDINARY_UPGRADE", _NO_HEAD):
                return _microseconds(read, repeats)

        times = _compared(by_lines, partial(_microseconds, read, repeats))
        yield Shortcut(f"`ordinary_upgrade` reads and checks a head {sort}", name, *times, whole)

    ulids, ids = ULIDGenerator(), PeerIds()
    times = _timed(lambda _: str(ulids.generate()), lambda _: ids.next(), repeats)
    yield Shortcut("`PeerIds` makes ids without the library", name, *times, whole)

    def close_by_autobahn() -> float:
        with patch.object(protocol, "whole_goodbye", lambda _: None):
            return lives(server, SHORT_REQUEST, passes)[Work.CLOSE]

    def accept_a_socket() -> float:
        with patch.dict(private_api.FITS, {"accept": False}):
            return lives(server, SHORT_REQUEST, passes)[Work.ACCEPT]

    def as_it_is(work: Work) -> float:
        return lives(server, SHORT_REQUEST, passes)[work]

    times = _compared(close_by_autobahn, partial(as_it_is, Work.CLOSE))
    yield Shortcut("`whole_goodbye`: a close frame does not pass Autobahn", name, *times, whole)
    times = _compared(accept_a_socket, partial(as_it_is, Work.ACCEPT))
    yield Shortcut("`accept_descriptor`: no socket object while it is accepted", name, *times, whole)
    times = _no_more_connections(repeats)
    name += " that comes alone"
    yield Shortcut("`TcpPort` asks whether another connection waits; an accept would fail", name, *times, whole)


def _no_more_connections(repeats: int) -> tuple[float, float]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        backlog = select.poll()
        backlog.register(listening.fileno(), select.POLLIN)

        def accept(_: int) -> None:
            with suppress(BlockingIOError):
                private_api.accept_descriptor(listening)

        return _timed(accept, lambda _: backlog.poll(0), repeats)


# An idle peer


def _of_an_idle_peer(whole: float) -> Iterator[Shortcut]:
    with socket.socket() as end:
        number = end.fileno()
        objects: dict[str, Callable[[int], object]] = {
            "`TcpConnection` keeps no socket object": lambda _: socket.socket(
                socket.AF_INET, socket.SOCK_STREAM, 0, number
            ),
            "`forget_address`": lambda port: to_address((f"127.0.0.{port % 200}", 2_000 + port)),
        }
        for name, make in objects.items():
            yield Shortcut(name, "an idle peer", _allocated(make), 0.0, whole, "bytes")


def _allocated(make: Callable[[int], object]) -> float:
    """Return the bytes of each of many objects."""
    kept: list[object] = [None] * _MANY_OBJECTS
    tracemalloc.start()
    for number in range(_MANY_OBJECTS):
        kept[number] = make(number)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for each in kept:
        if isinstance(each, socket.socket):
            each.detach()
    return taken / _MANY_OBJECTS


def shortcuts(passes: int, idle_bytes: float) -> Iterator[Shortcut]:
    """Measure every shortcut.

    Args:
        passes: of the server in each round, as for ``relay_steps.steps``.
        idle_bytes: of an idle peer.
    """
    wholes = {cost.step: cost.whole for cost in steps(passes)}
    few, repeats = max(1, passes // 8), AT_ONCE * passes
    with OurServer(Limits()) as server:
        yield from _of_a_relay(server, wholes["a relay: one SDP to ten candidates"], repeats)
        yield from _of_an_event(server, passes)
        yield from _of_a_connection(server, wholes["a whole connection, with a close frame"], few, repeats)
    yield from _of_an_idle_peer(idle_bytes)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shortcuts", description=__doc__)
    parser.add_argument("--passes", type=int, default=110, help="of each way and round; default: %(default)s")
    parser.add_argument(
        "--idle", type=float, default=900, help="bytes of an idle peer, by benchmarks.compare; default: %(default)s"
    )
    options = parser.parse_args()
    print("| shortcut | | plain | with it | saves | |\n|---|---|--:|--:|--:|---|")
    for shortcut in shortcuts(options.passes, options.idle):
        print(shortcut)


if __name__ == "__main__":
    main()
