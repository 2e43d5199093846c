"""Keeping alive, and every way in which a connection ends."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from websockets.frames import Frame, Opcode

from tests.integration.harness import Harness, upgrade

pytestmark = pytest.mark.unmeasured

MakeHarness = Callable[..., Harness]


def test_a_ping_goes_out_every_20_seconds(harness: Harness) -> None:
    peer = harness.join("room")
    harness.advance(19.75)
    assert peer.pings == 0
    harness.advance(0.25)
    assert peer.pings == 1
    harness.advance(40)
    assert peer.pings == 3
    assert not peer.lost


def test_a_peer_that_vanished_is_gone_and_told_within_35_seconds(harness: Harness) -> None:
    observer, silent = harness.join("room"), harness.join("room")
    observer.heard()
    harness.advance(20)
    silent.go_silent()
    harness.advance(34.75)
    assert observer.heard() == []
    harness.advance(0.25)
    assert observer.heard() == [{"type": "peer-left", "peerId": silent.id}]
    assert silent.lost


def test_ping_interval_and_timeout_are_options(make_harness: MakeHarness) -> None:
    harness = make_harness(ping_interval_seconds=2.0, ping_timeout_seconds=1.0)
    observer, silent = harness.join("room"), harness.join("room")
    observer.heard()
    silent.go_silent()
    harness.advance(2.75)
    assert observer.heard() == []
    harness.advance(0.25)
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


def test_an_interval_of_0_sends_no_pings(make_harness: MakeHarness) -> None:
    harness = make_harness(ping_interval_seconds=0)
    peer = harness.join("room")
    harness.advance(100)
    assert peer.pings == 0
    assert not peer.lost


def test_pings_that_are_due_while_a_pong_is_awaited_do_not_prolong_the_wait(make_harness: MakeHarness) -> None:
    harness = make_harness(ping_interval_seconds=2.0, ping_timeout_seconds=5.0)
    silent = harness.join("room")
    silent.go_silent()
    harness.advance(7)
    assert silent.lost


def test_a_client_may_ping(harness: Harness) -> None:
    peer = harness.join("room")
    peer.say_frame(Frame(Opcode.PING, b"hello"), Frame(Opcode.PING, b""))
    assert peer.pongs == [b"hello", b""]


def test_a_close_frame_is_echoed_and_the_connection_closed(harness: Harness) -> None:
    peer = harness.join("room")
    peer.leave(4321)
    assert peer.closed == 4321
    assert peer.lost
    assert not peer.transport.aborted


def test_a_close_frame_without_a_code_is_echoed_too(harness: Harness) -> None:
    peer = harness.join("room")
    peer.say_frame(Frame(Opcode.CLOSE, b""))
    assert peer.received.endswith(b"\x88\x00")
    assert peer.lost


def test_what_comes_after_a_close_frame_is_not_looked_at(harness: Harness) -> None:
    peer, observer = harness.join("room"), harness.join("room")
    late = b'{"type":"offer","to":"%b"}' % observer.id.encode()
    peer.say_frame(Frame(Opcode.CLOSE, b""), Frame(Opcode.TEXT, late))
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


OVERSIZED = Frame(Opcode.TEXT, b"x" * 65_537)


class Raw:
    """A frame that no library writes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self, *, mask: bool) -> bytes:
        return self._data


RESERVED_BIT = Raw(bytes([0xC1, 0x81, 0, 0, 0, 0]) + b"x")
RESERVED_OPCODE = Raw(bytes([0x83, 0x80, 0, 0, 0, 0]))
LONG_CONTROL_FRAME = Raw(bytes([0x89, 0xFE, 0, 126, 0, 0, 0, 0]) + bytes(126))
FRAGMENTED_CONTROL_FRAME = Raw(bytes([0x09, 0x80, 0, 0, 0, 0]))
LENGTH_NOT_MINIMAL = Raw(bytes([0x81, 0xFE, 0, 1, 0, 0, 0, 0]) + b"x")


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([OVERSIZED], 1009),
        ([Frame(Opcode.TEXT, b"x" * 40_000, fin=False), Frame(Opcode.CONT, b"x" * 25_537)], 1009),
        ([Frame(Opcode.TEXT, b"\xff")], 1007),
        ([Frame(Opcode.TEXT, b"\xc3", fin=False), Frame(Opcode.CONT, b"(")], 1007),
        ([Frame(Opcode.TEXT, b"\xc3")], 1007),
        ([RESERVED_BIT], 1002),
        ([RESERVED_OPCODE], 1002),
        ([LONG_CONTROL_FRAME], 1002),
        ([FRAGMENTED_CONTROL_FRAME], 1002),
        ([LENGTH_NOT_MINIMAL], 1002),
        ([Frame(Opcode.CONT, b"x")], 1002),
        ([Frame(Opcode.TEXT, b"x", fin=False), Frame(Opcode.TEXT, b"y")], 1002),
        ([Frame(Opcode.CLOSE, b"\x03")], 1002),
        ([Frame(Opcode.CLOSE, b"\x03\xed")], 1002),
        ([Frame(Opcode.CLOSE, b"\x03\xe8\xff")], 1007),
    ],
)
def test_a_framing_error_closes_with_the_code_of_the_rfc(harness: Harness, frames: list[Frame], code: int) -> None:
    peer, observer = harness.join("room"), harness.join("room")
    peer.heard()
    follow_up = Frame(Opcode.TEXT, b'{"type":"offer","to":"%b"}' % observer.id.encode())
    peer.say_frame(*frames, follow_up)
    assert peer.closed == code
    assert peer.close_reason
    assert not peer.transport.aborted
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


def test_an_unmasked_frame_is_a_protocol_error(harness: Harness) -> None:
    peer = harness.join("room")
    peer.send(Frame(Opcode.TEXT, b"x").serialize(mask=False))
    assert peer.closed == 1002


def test_an_oversized_message_is_refused_before_it_is_read(harness: Harness) -> None:
    peer = harness.join("room")
    peer.send(OVERSIZED.serialize(mask=True)[:14])
    assert peer.closed == 1009


def test_fragments_with_a_ping_between_make_one_message(harness: Harness) -> None:
    peer = harness.join("room")
    text = b'{"type":"offer","to":"%b","payload":"\xc3\xa9"}' % peer.id.encode()
    cut = text.index(b"\xa9")
    peer.say_frame(
        Frame(Opcode.TEXT, text[:cut], fin=False),
        Frame(Opcode.PING, b"between"),
        Frame(Opcode.CONT, b"", fin=False),
        Frame(Opcode.CONT, text[cut:]),
    )
    assert peer.pongs == [b"between"]
    assert peer.heard() == [{"type": "offer", "from": peer.id, "payload": "é"}]


def test_a_message_of_empty_fragments_takes_no_memory(server: Harness) -> None:
    connection = server.connect()
    connection.send(upgrade("/ws/room").encode())
    connection.send(bytes([0x01, 0x80, 0, 0, 0, 0]))
    fragments = bytes([0x00, 0x80, 0, 0, 0, 0]) * 100
    assert held_bytes(lambda: connection.send(fragments), times=100) < 40_000
    assert not connection.lost


def test_a_message_in_small_pieces_takes_no_more_memory_than_a_whole_one(server: Harness) -> None:
    connection = server.connect()
    connection.send(upgrade("/ws/room").encode())
    connection.send(bytes([0x81, 0xFE, 0xFF, 0xFF, 0, 0, 0, 0]))
    assert held_bytes(lambda: connection.transport.protocol.dataReceived(b"??"), times=10_000) < 50_000
    assert not connection.lost


def held_bytes(call: Callable[[], object], times: int) -> int:
    """Return how much memory is held after some calls."""
    tracemalloc.start()
    try:
        for _ in range(times):
            call()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_violator_that_stays_connected_is_aborted_after_the_close_timeout(harness: Harness) -> None:
    peer, observer = harness.connect(), harness.join("room")
    peer.send(upgrade("/ws/room").encode())
    observer.heard()
    peer.send(b"\x81\x01x")
    assert peer.ended
    assert not peer.lost
    harness.advance(4.75)
    peer.send(b"more of it")
    assert not peer.lost
    harness.advance(0.25)
    assert peer.lost
    assert [event["type"] for event in observer.heard()] == ["peer-left"]


def test_a_relay_to_a_closing_peer_is_dropped(harness: Harness) -> None:
    sender, closing = harness.join("room"), harness.connect()
    closing.send(upgrade("/ws/room").encode())
    target = sender.heard()[0]["peerId"]
    closing.send(b"\x81\x01x")
    sender.offer(target, "m")
    assert [(answer["code"], answer["msgId"]) for answer in sender.heard()] == [("dropped", "m")]


def test_a_close_frame_to_a_client_that_takes_nothing_does_not_wait_for_ever(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    target.stall()
    sender.offer(target, payload="x" * 60_000)
    target.leave()
    assert not target.lost
    harness.advance(5)
    assert target.lost


# The drain


def test_a_stopping_server_sends_1001_to_everyone(harness: Harness) -> None:
    peers = [harness.join(topic) for topic in ("room", "room", "elsewhere")]
    drained: list[None] = []
    harness.drain().addCallback(drained.append)
    harness.run()
    assert [peer.closed for peer in peers] == [1001, 1001, 1001]
    assert drained == [None]
    assert len(harness.topics) == 0


def test_a_drain_waits_for_those_who_take_nothing_but_not_for_ever(make_harness: MakeHarness) -> None:
    harness = make_harness(shutdown_timeout_seconds=3.0)
    peer, reader = harness.join("room"), harness.join("room")
    reader.stall()
    peer.offer(reader, payload="x" * 60_000)
    peer.offer(reader, payload="x" * 60_000)
    peer.offer(reader, "waits")
    drained: list[None] = []
    harness.drain().addCallback(drained.append)
    harness.run()
    assert peer.closed == 1001
    assert drained == []
    harness.advance(3)
    assert drained == [None]
    assert reader.lost


def test_a_drain_with_no_one_there_is_over_at_once(server: Harness) -> None:
    drained: list[None] = []
    server.drain().addCallback(drained.append)
    assert drained == [None]
    assert not [call for call in server.clock.getDelayedCalls() if call.active()]


def test_no_timer_is_left_when_everyone_left(server: Harness) -> None:
    for peer in [server.join("room") for _ in range(3)]:
        peer.leave()
    assert not server.clock.getDelayedCalls()


def test_two_servers_in_one_process_do_not_meet() -> None:
    one, other = Harness(), Harness()
    one.join("room")
    assert other.join("room").peers == []
    one.drain()
    assert len(other.topics) == 1


def test_every_drain_fires(harness: Harness) -> None:
    harness.join("room")
    drains = [harness.drain(), harness.drain()]
    harness.run()
    assert [drained.called for drained in drains] == [True, True]
    assert harness.drain().called


def test_nobody_joins_while_the_server_stops_or_after(harness: Harness) -> None:
    reader = harness.join("room")
    reader.stall()
    reader.offer(reader, payload="x" * 60_000)
    drained = harness.drain()
    status, headers, _ = harness.request(upgrade("/ws/room"))
    assert (status, headers["retry-after"]) == (503, "1")
    harness.advance(10)
    assert drained.called
    assert harness.request(upgrade("/ws/room"))[0] == 503
    assert len(harness.topics) == 0


def test_with_a_spread_peers_are_closed_one_by_one_with_1012(make_harness: MakeHarness) -> None:
    harness = make_harness(drain_spread_seconds=10.0)
    peers = [harness.join(f"room {number}") for number in range(40)]
    drained: list[None] = []
    harness.drain().addCallback(drained.append)
    gone = []
    for _ in range(10):
        harness.advance(1)
        gone.append(sum(peer.closed == 1012 for peer in peers))
    assert gone == sorted(gone)
    assert 0 < gone[4] < 40
    assert gone[-1] == 40
    assert drained == [None]


def test_a_spread_ends_with_its_last_peer(make_server: MakeHarness) -> None:
    harness = make_server(drain_spread_seconds=600.0)
    peer = harness.join("room")
    drained: list[None] = []
    harness.drain().addCallback(drained.append)
    peer.leave()
    assert drained == [None]
    harness.advance(6)
    assert [call for call in harness.clock.getDelayedCalls() if call.active()] == []


def test_a_drain_closes_everybody_in_turns(server: Harness) -> None:
    peers = [server.join(f"room-{number}") for number in range(150)]
    server.drain()
    told = [peer for peer in peers if peer.transport.write_ended]
    assert 0 < len(told) <= 64
    server.run()
    assert {peer.closed for peer in peers} == {1001}
    server.advance(5)
    assert not server.open_connections
    assert not server.clock.getDelayedCalls()
