"""What a sender is told when its target takes nothing, and how long that may last."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from websockets.frames import Frame, Opcode

from signaling.transport.private_api import FITS
from tests.integration.harness import Harness, Peer

pytestmark = pytest.mark.unmeasured

MakeHarness = Callable[..., Harness]

# More than a transport's own buffer: the first of these makes it push back.
FILLING = "x" * 60_000
HIGH_WATER_MARK = 16


def stall(target: Peer, sender: Peer) -> None:
    """Let ``target`` take nothing, and fill its transport until that pushes back."""
    target.heard()
    target.stall()
    for _ in range(2):
        sender.offer(target, payload=FILLING)
    assert sender.heard() == []


def test_relays_wait_up_to_the_high_water_mark(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    stall(target, sender)
    for n in range(HIGH_WATER_MARK):
        sender.offer(target, str(n))
    assert sender.heard() == []
    sender.offer(target, "one too many")
    [answer] = sender.heard()
    assert (answer["type"], answer["code"], answer["msgId"]) == ("error", "dropped", "one too many")
    assert "not delivered" in answer["message"]


def test_the_mark_is_an_option(make_harness: MakeHarness) -> None:
    harness = make_harness(high_water_messages=1)
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    stall(target, sender)
    sender.offer(target, "fits")
    sender.offer(target, "full")
    assert [answer["msgId"] for answer in sender.heard()] == ["full"]


def test_bytes_have_a_mark_too(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    stall(target, sender)
    for n in range(3):
        sender.offer(target, str(n), payload=FILLING)
    assert [(answer["code"], answer["msgId"]) for answer in sender.heard()] == [("dropped", "2")]


def test_what_waited_arrives_in_order_and_relays_go_on(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    stall(target, sender)
    for n in range(HIGH_WATER_MARK + 3):
        sender.offer(target, str(n), payload=n)
    refused = {answer["msgId"] for answer in sender.heard()}
    target.resume()
    sender.offer(target, "after", payload="after")
    arrived = [message.get("msgId") for message in target.heard()]
    assert refused == {"16", "17", "18"}
    assert arrived == [None, None, *map(str, range(HIGH_WATER_MARK)), "after"]


def test_a_burst_in_one_segment_is_no_reason_to_drop(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    sender.say_many([{"type": "offer", "to": target.id, "payload": n} for n in range(200)])
    assert sender.heard() == []
    assert len(target.heard()) == 200


def test_events_to_a_full_queue_are_dropped_silently_and_counted(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    stall(target, sender)
    for n in range(HIGH_WATER_MARK):
        sender.offer(target, str(n))
    harness.join("room").leave()
    assert harness.counters.events_dropped == 2
    target.resume()
    assert {message["type"] for message in target.heard()} == {"offer"}
    assert [event["type"] for event in sender.heard()] == ["peer-joined", "peer-left"]


def test_one_slow_peer_does_not_delay_another(harness: Harness) -> None:
    sender, slow, quick = (harness.join("room") for _ in range(3))
    sender.heard()
    stall(slow, sender)
    for n in range(HIGH_WATER_MARK + 1):
        sender.offer(slow, str(n))
    quick.heard()
    sender.offer(quick, "q")
    assert [message["msgId"] for message in quick.heard()] == ["q"]


def test_a_relay_that_waited_for_a_peer_that_goes_is_answered_dropped(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    stall(target, sender)
    sender.offer(target, "a")
    sender.offer(target, "b")
    target.reset()
    # Of another node's peer one may hear first that it left.
    answers = sorted(sender.heard(), key=lambda answer: answer["type"])
    assert [answer.get("code", answer["type"]) for answer in answers] == ["dropped", "dropped", "peer-left"]
    assert [answer.get("msgId") for answer in answers] == ["a", "b", None]
    assert harness.relays_written == 2


def test_who_takes_nothing_is_cut_off_and_its_topic_told(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    stall(target, sender)
    harness.advance(9.75)
    assert not target.lost
    assert sender.heard() == []
    harness.advance(0.25)
    assert target.lost
    assert [event["type"] for event in sender.heard()] == ["peer-left"]


def test_who_takes_a_little_is_not_cut_off(harness: Harness) -> None:
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    stall(target, sender)
    for _ in range(5):
        harness.advance(9)
        target.receive(target.transport.take(100))
    assert not target.lost
    harness.advance(20)
    assert target.lost


def test_a_slow_peer_is_not_blamed_for_a_pong_stuck_behind_its_data(make_harness: MakeHarness) -> None:
    harness = make_harness(write_timeout_seconds=60.0)
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    harness.advance(19)
    stall(target, sender)
    harness.advance(40)
    assert not target.lost
    target.resume()
    harness.advance(40)
    assert not target.lost


def test_a_slow_peer_is_cut_off_even_if_nothing_says_what_its_transport_holds(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FITS, "buffers", False)
    harness = make_harness(write_timeout_seconds=10.0)
    sender, target = harness.join("room"), harness.join("room")
    sender.heard()
    stall(target, sender)
    harness.advance(9)
    assert not target.lost
    harness.advance(2)
    assert target.lost


def test_a_client_that_reads_no_answers_is_not_read(harness: Harness) -> None:
    flood = harness.join("room")
    flood.stall()
    nonsense = "?" * 50
    for _ in range(2000):
        flood.client.send_text(nonsense.encode())
    flood.send_together(*flood.client.data_to_send())
    harness.run()
    assert len(flood.transport.dataBuffer) < 2 * 65_536
    assert not flood.transport.reading
    flood.resume()
    assert [answer["code"] for answer in flood.heard()] == ["invalid_message"] * 2000
    assert flood.transport.reading


def test_pongs_to_a_client_that_reads_nothing_are_bounded(harness: Harness) -> None:
    flood = harness.join("room")
    flood.stall()
    flood.send_together(*[Frame(Opcode.PING, b"x" * 125).serialize(mask=True)] * 5000)
    harness.run()
    assert len(flood.transport.dataBuffer) < 2 * 65_536
    assert not flood.transport.reading
    flood.resume()
    assert len(flood.pongs) == 5000


def test_a_client_that_stops_reading_can_still_send_while_there_is_room(harness: Harness) -> None:
    target, stalled = harness.join("room"), harness.join("room")
    target.heard()
    stall(stalled, target)
    stalled.offer(target, "heard")
    assert [message["msgId"] for message in target.heard()] == ["heard"]


def test_who_takes_nothing_is_cut_off_also_while_the_transport_has_room(make_harness: MakeHarness) -> None:
    harness = make_harness(ping_interval_seconds=0)
    sender, target = harness.join("room"), harness.join("room")
    harness.advance(100)
    target.stall()
    for n in range(10):
        sender.offer(target, str(n), payload="x" * 1000)
    harness.advance(9.75)
    assert not target.lost
    harness.advance(0.25)
    assert target.lost


def test_who_reads_on_is_not_cut_off_by_what_it_is_sent(make_harness: MakeHarness) -> None:
    harness = make_harness(ping_interval_seconds=0)
    sender, target = harness.join("room"), harness.join("room")
    for _ in range(60):
        target.stall()
        sender.offer(target, payload="x" * 1000)
        harness.advance(5)
        target.resume()
        harness.advance(1)
    assert not target.lost
