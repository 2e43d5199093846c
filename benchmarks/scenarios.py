"""What the soak does to a server: peers that join and leave, calls, readers that stall, and garbage.

Each scenario is one coroutine from its first connection to its last. It ends when all that it sent has an end, and it
fails if the server does not do what the protocol says.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from benchmarks.client import BINARY, TEXT, Client, LoggedClient, Message, frame, text_frame
from tests.harness.delivery_log import DeliveryLog
from tests.harness.raw_client import upgrade
from tests.harness.server import HOST

_LINE = b"a=rtpmap:111 opus/48000/2 \\r\\n"
SDP = b'{"type":"offer","sdp":"%b"}' % (_LINE * 84)
# The kernel takes some megabytes before a reader stalls.
_LARGE_SDP = b'{"type":"offer","sdp":"%b"}' % (_LINE * 840)
CANDIDATE = b'{"candidate":"candidate:842163049 1 udp 1677729535 203.0.113.9 46154 typ srflx","sdpMLineIndex":0}'

_ROOMS = 10
_SECONDS_IN_ROOM = 1.0
_CANDIDATES = 20
_SMALL_BUFFER = 4096
_BURST = 20
_DROPS_OF_A_STALL = 40
_PATIENCE_SECONDS = 60.0


class UnexpectedError(Exception):
    """The server did not do what the protocol says."""


@dataclass
class Run:
    """What the scenarios of one run share."""

    port: int
    log: DeliveryLog
    handshake_seconds: float
    write_seconds: float
    random: random.Random = field(default_factory=lambda: random.Random(1))
    numbers: count[int] = field(default_factory=count)

    def topic(self, name: str) -> str:
        """Return a topic of its own."""
        return f"{name}-{next(self.numbers)}"

    async def join(self, topic: str, receive_buffer: int = 0) -> LoggedClient:
        """Join with the delivery log."""
        return await LoggedClient.join(self.port, topic, self.log, receive_buffer=receive_buffer)


# Churn


async def churn(run: Run) -> None:
    """Join a topic with others, relay to some of them, and leave in one of the ways in which peers leave."""
    peer = await run.join(f"room-{run.random.randrange(_ROOMS)}")
    for _ in range(run.random.randrange(4)):
        await asyncio.sleep(run.random.expovariate(3 / _SECONDS_IN_ROOM))
        if peer.peers:
            peer.relay("offer", run.random.choice(peer.peers), CANDIDATE)
    await asyncio.sleep(run.random.expovariate(2 / _SECONDS_IN_ROOM))
    await _leave(run, peer)


async def _leave(run: Run, peer: LoggedClient) -> None:
    way = run.random.random()
    if way < 0.1 and peer.peers:
        peer.relay("offer", run.random.choice(peer.peers), CANDIDATE)
        peer.leave_early()
        return
    await peer.all_ended()
    if way < 0.2:
        peer.reset()
    elif way < 0.3:
        peer.half_close()
    else:
        await peer.close()
    await peer.ended


# Calls


def _is_from(peer: Client) -> Callable[[Message], bool]:
    return lambda message: message.sender == peer.id


async def call(run: Run) -> None:
    """Two peers meet, exchange an offer, an answer and their candidates, and leave."""
    topic = run.topic("call")
    callee = await run.join(topic)
    caller = await run.join(topic)
    offered = callee.next_message(_is_from(caller))
    caller.relay("offer", callee.id, SDP)
    await offered
    callee.relay("answer", caller.id, SDP)
    for number in range(_CANDIDATES):
        sender, target = (caller, callee) if number % 2 else (callee, caller)
        sender.relay("ice-candidate", target.id, CANDIDATE)
        await asyncio.sleep(0.005)
    await caller.all_ended()
    await callee.all_ended()
    await caller.close()
    await callee.close()


# Stalls


async def stall_and_resume(run: Run) -> None:
    """A reader stops until its queue is full, and then reads all that was accepted for it."""
    sender, reader = await _stalled(run)
    await asyncio.sleep(run.random.uniform(0.1, 0.3) * run.write_seconds)
    sender.relay("offer", reader.id, _LARGE_SDP)
    reader.resume_reading()
    await sender.all_ended()
    await reader.close()
    await sender.close()


async def stall_until_cut_off(run: Run) -> None:
    """A reader stops and is cut off in the end; every message of its sender is answered or was cut."""
    sender, reader = await _stalled(run)
    left = sender.next_message(lambda message: message.type == "peer-left" and message.peer_id == reader.id)
    # Progress just before the server's check gives the reader the whole time once more.
    async with asyncio.timeout(2 * run.write_seconds + 5):
        while not left.done():
            # The kernel's buffers grow meanwhile; as long as they take all, nobody stalls.
            sender.relay("offer", reader.id, _LARGE_SDP)
            await asyncio.wait([left], timeout=0.05)
    await left
    reader.reset()
    await sender.all_ended()
    await sender.close()


async def _stalled(run: Run) -> tuple[LoggedClient, LoggedClient]:
    """Return a sender and a reader that takes nothing, and whose queue is full."""
    topic = run.topic("stall")
    reader = await run.join(topic, receive_buffer=_SMALL_BUFFER)
    sender = await run.join(topic)
    reader.stop_reading()
    drops = _DROPS_OF_A_STALL
    codes: Counter[str] = Counter()

    def is_last_drop(message: Message) -> bool:
        codes[message.code] += 1
        return codes["dropped"] >= drops

    full = sender.next_message(is_last_drop)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not full.done():
            sender.send(b"".join(sender.relay_frame("offer", reader.id, _LARGE_SDP) for _ in range(_BURST)))
            await asyncio.wait([full], timeout=0.02)
            await sender.drain()
    await full
    return sender, reader


# Garbage


async def unreadable(run: Run) -> None:
    """Messages that are no messages are answered, and the connection stays."""
    peer = await run.join(run.topic("garbage"))
    for data in (text_frame(b"nonsense"), text_frame(b'{"type":NaN}'), frame(BINARY, b"\x00"), text_frame(b"[" * 5000)):
        peer.send_unreadable(data)
    peer.relay("offer", "nobody", CANDIDATE)
    await peer.all_ended()
    await peer.close()


def _bad_frame(data: bytes, code: int) -> Callable[[Run], Awaitable[None]]:
    async def send_bad_frame(run: Run) -> None:
        peer = await Client.join(run.port, run.topic("garbage"))
        peer.send(data)
        end = await peer.ended
        if end.code != code:
            raise UnexpectedError(f"a frame that starts with {data[:4].hex(' ')} was closed with {end.code}")

    return send_bad_frame


async def cut_while_it_sends(run: Run) -> None:
    """A frame that never comes to its end."""
    peer = await Client.join(run.port, run.topic("garbage"))
    peer.send(text_frame(bytes(1000))[:-1])
    await asyncio.sleep(run.random.random())
    peer.reset()


async def close_half(run: Run) -> None:
    """A peer that ends its half of the connection, and reads on."""
    peer = await Client.join(run.port, run.topic("garbage"))
    peer.half_close()
    await peer.ended


async def half_a_handshake(run: Run) -> None:
    """A request that stays incomplete is cut off, however slowly it trickles."""
    request = upgrade("slow")
    step = len(request) // 2 if run.random.random() < 0.5 else 1
    reader, writer = await asyncio.open_connection(HOST, run.port)
    try:
        writer.write(request[:step])
        reading = asyncio.create_task(reader.read())
        deadline = asyncio.get_running_loop().time() + run.handshake_seconds + 5
        sent = step
        while not reading.done() and asyncio.get_running_loop().time() < deadline:
            if step == 1 and sent < len(request) // 2:
                writer.write(request[sent : sent + 1])
                sent += 1
            await asyncio.wait([reading], timeout=0.2)
        await _must_be_cut(reading)
    finally:
        await _shut(writer)


async def _must_be_cut(reading: asyncio.Task[bytes]) -> None:
    if not reading.done():
        reading.cancel()
        raise UnexpectedError("half a handshake was not cut in time")
    with suppress(ConnectionError):
        await reading


async def reset_in_the_handshake(run: Run) -> None:
    """A request that is reset in its middle."""
    _, writer = await asyncio.open_connection(HOST, run.port)
    writer.write(upgrade("reset")[: run.random.randrange(40)])
    await asyncio.sleep(0.05)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _http(path: str, status: int) -> Callable[[Run], Awaitable[None]]:
    async def get(run: Run) -> None:
        reader, writer = await asyncio.open_connection(HOST, run.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            await _shut(writer)
        if not answer.startswith(f"HTTP/1.1 {status} ".encode()):
            raise UnexpectedError(f"GET {path} was answered {answer[:40]!r}")

    return get


async def _shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


_GARBAGE: tuple[Callable[[Run], Awaitable[None]], ...] = (
    unreadable,
    unreadable,
    _bad_frame(b"\x81\x01x", 1002),
    _bad_frame(frame(0x3, b"x"), 1002),
    _bad_frame(frame(TEXT, b"x", 0xF0), 1002),
    _bad_frame(text_frame(b"\xff\xfe"), 1007),
    _bad_frame(text_frame(b" " * 70_000), 1009),
    cut_while_it_sends,
    close_half,
    half_a_handshake,
    reset_in_the_handshake,
    _http("/healthz", 200),
    _http("/nothing", 404),
    _http("/ws/room", 426),
)


async def garbage(run: Run) -> None:
    """Send one of many kinds of what no good client sends."""
    await run.random.choice(_GARBAGE)(run)


async def stall(run: Run) -> None:
    """Stop reading, and in two cases of three read again."""
    await (stall_until_cut_off if run.random.random() < 1 / 3 else stall_and_resume)(run)


# How many start in a second at load 1.
RATES: dict[Callable[[Run], Awaitable[None]], float] = {churn: 40.0, call: 25.0, stall: 0.5, garbage: 20.0}
