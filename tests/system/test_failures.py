"""One client that fails, on purpose and in every way it can: what the others see, and that the server serves on."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.harness.frames import masked
from tests.harness.peer import Observers, joined_id, observed, receive
from tests.harness.raw_client import (
    BODY_TO_COME,
    MIB,
    REQUEST,
    STAYS,
    assert_open_files,
    dial,
    join_raw,
    read_to_the_end,
    read_until,
    relay,
    reset,
    upgrade,
)
from tests.harness.server import Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the default bounds; it has to survive all tests together."""
    with serving() as server:
        yield server


# Gone without a word


def test_a_stopped_client_is_told_gone() -> None:
    # The observers need time to answer on a slow machine.
    with serving("--ping-interval=1", "--ping-timeout=4") as server, observed(server) as observers:
        with subprocess.Popen([sys.executable, "-c", STAYS, server.url + observers.topic]) as client:
            try:
                peer = observers.sees_joining()
                client.send_signal(signal.SIGSTOP)
                observers.first.event("peer-left", peer)
            finally:
                client.kill()
        server.wait_for(f"{peer} left '{observers.topic}': aborted: no pong within 4 s")


# Resets and half-closes


@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_an_end_at_any_point_of_the_handshake_disturbs_nobody(server: Server, end: Callable) -> None:
    with observed(server) as observers:
        before = server.open_files()
        for data in (b"", b"G", upgrade("other")[:-1], REQUEST, BODY_TO_COME):
            for _ in range(20):
                end(dial(server, data))
        for _ in range(20):
            end(dial(server, upgrade(observers.topic) + masked(0x81, b"?") * 50))
        observers.goes_on()
        assert_open_files(server, before)


@pytest.mark.parametrize("end", [reset, socket.socket.close, lambda client: client.shutdown(socket.SHUT_WR)])
def test_a_peer_that_ends_its_connection_is_told_gone(server: Server, end: Callable) -> None:
    with observed(server) as observers:
        client, peer = join_raw(server, observers.topic)
        with client:
            end(client)
            observers.first.event("peer-left", peer)


def test_a_half_close_ends_the_other_half(server: Server) -> None:
    before = server.open_files()
    for data in (b"", b"G", upgrade()[:-1], b"GET /ws/room HTTP/1.1\r\nHost", upgrade()):
        with dial(server, data) as client:
            client.shutdown(socket.SHUT_WR)
            read_to_the_end(client)
            assert_open_files(server, before)


# Slow senders


def test_a_trickled_request_is_cut_although_bytes_keep_coming() -> None:
    with serving("--handshake-timeout=1") as server, observed(server), ExitStack() as stack:
        started = time.monotonic()
        starts = (b"G", b"GET /ws/room HTTP/1.1\r\nX: ", upgrade()[:-4], BODY_TO_COME)
        trickling = [stack.enter_context(dial(server, start)) for start in starts]
        while trickling:
            for client in select.select(trickling, [], [], 0.05)[0]:
                assert read_to_the_end(client) == b""
                trickling.remove(client)
            for client in trickling:
                with suppress(ConnectionError):
                    client.sendall(b"x")
        # Not before.
        assert time.monotonic() - started > 0.9


def test_a_client_that_sends_one_byte_at_a_time_is_served(server: Server) -> None:
    with connect(server.url + "trickle") as other:
        joined_id(other)
        with dial(server) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def trickle(data: bytes) -> None:
                for byte in data:
                    client.sendall(bytes([byte]))

            trickle(upgrade("trickle"))
            read_until(client, b'"peers":[{')
            peer = receive(other)["peerId"]
            trickle(masked(0x81, relay(peer, "to myself")) + masked(0x89, b"ping") + masked(0x81, b"nonsense"))
            received = read_until(client, b"invalid_message")
            assert b'"payload":"to myself"' in received
            assert b"\x8a\x04ping" in received
            trickle(masked(0x88, b"\x03\xe8"))
            assert read_to_the_end(client).endswith(b"\x88\x02\x03\xe8")
        assert receive(other) == {"type": "peer-left", "peerId": peer}


# Clients that do not read


def test_a_target_that_never_reads_costs_its_sender_dropped_and_itself_the_connection() -> None:
    # On a slow machine, the queue has to be full before the time is up.
    with serving("--write-timeout=5") as server, observed(server) as observers:
        before = server.memory_bytes("VmHWM")
        with ExitStack() as stack:
            stuck, target = join_raw(server, observers.topic, receive_buffer=4096)
            stack.enter_context(stuck)
            sender = stack.enter_context(connect(server.url + observers.topic))
            joined_id(sender)
            answers: list[str] = []
            while "dropped" not in answers:
                answers = answers_to_ten(sender, target)
            assert "peer-left" not in answers
            observers.first.event("peer-left", target)
            answers = answers_to_ten(sender, target)
            # Before it come the answers to what was queued.
            assert set(answers[answers.index("peer-left") + 1 :]) == {"target_not_found"}
            server.wait_for(f"{target} left '{observers.topic}': aborted: it read nothing for 5 s")
        assert server.memory_bytes("VmHWM") - before < 16 * MIB


def answers_to_ten(sender: ClientConnection, target: str) -> list[str]:
    """Send ten long relays; returns what the sender received until the last of them was handled."""
    for _ in range(10):
        sender.send(relay(target, "x" * 60_000).decode())
    sender.send('{"type":"nope","msgId":"end"}')
    answers = []
    while (answer := receive(sender)).get("msgId") != "end":
        answers.append(answer.get("code", answer["type"]))
    return answers


@pytest.mark.parametrize("frame", [masked(0x81, b"nonsense"), masked(0x89, b"x" * 125)], ids=["answers", "pongs"])
def test_a_client_that_never_reads_its_answers_is_not_read_and_then_cut(frame: bytes) -> None:
    with serving("--write-timeout=0.5") as server, observed(server) as observers:
        stuck, peer = join_raw(server, observers.topic, receive_buffer=4096)
        with stuck:
            before = server.memory_bytes("VmHWM")
            stuck.settimeout(None)
            with suppress(ConnectionError):
                while True:
                    stuck.sendall(frame * 10_000)
            observers.first.event("peer-left", peer)
            server.wait_for(f"{peer} left '{observers.topic}': aborted: it read nothing for 0.5 s")
        assert server.memory_bytes("VmHWM") - before < 8 * MIB


# Restless clients


def come_and_go(server: Server, observers: Observers, times: int) -> None:
    """Join and leave at once, by a reset every other time, and check that the observers are informed of both."""
    peers, before = [], len(observers.events)
    for n in range(times):
        client, peer = join_raw(server, observers.topic)
        reset(client) if n % 2 else client.close()
        peers.append(peer)
    observers.sees_leaving(before // 2 + times)
    events = observers.events[before:]
    for peer in peers:
        assert [event["type"] for event in events if event["peerId"] == peer] == ["peer-joined", "peer-left"]


def test_a_client_that_joins_and_leaves_as_fast_as_it_can_leaves_nothing_behind() -> None:
    with serving() as server, observed(server) as observers:
        files = server.open_files()
        come_and_go(server, observers, 100)
        peak = server.memory_bytes("VmHWM")
        come_and_go(server, observers, 300)
        assert_open_files(server, files)
        assert server.memory_bytes("VmHWM") - peak < 2 * MIB


def test_topics_that_come_and_go_leave_nothing_behind() -> None:
    with serving("--max-connections=20") as server:
        visit_topics(server, 100)
        files, peak = server.open_files(), server.memory_bytes("VmHWM")
        visit_topics(server, 300)
        assert_open_files(server, files)
        assert server.memory_bytes("VmHWM") - peak < 2 * MIB


def visit_topics(server: Server, count: int) -> None:
    """Join so many topics and leave each, the last of them surely."""
    for n in range(count):
        client, peer = join_raw(server, f"topic-{n}")
        client.close()
    server.wait_for(f"{peer} left")
