"""Ids, frames, topics and limits."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from unittest.mock import patch

import pytest
from ulid import ULID

from signaling.core.peer_ids import PeerIds
from signaling.core.topics import TopicMap
from signaling.limits import Limits
from signaling.websocket.frames import close_frame, frame, text_frame


def test_ids_increase_within_one_millisecond() -> None:
    ids = PeerIds(lambda: 1_700_000_000_000)
    made = [ids.next() for _ in range(1000)]
    assert made == sorted(set(made))
    assert all(re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", peer_id) for peer_id in made)


def test_ids_increase_when_the_clock_steps_back() -> None:
    times = iter([2_000, 1_000, 1_500, 2_000, 2_001])
    ids = PeerIds(lambda: next(times))
    made = [ids.next() for _ in range(5)]
    assert made == sorted(set(made))


def test_an_id_is_a_ulid_of_its_time() -> None:
    ids = PeerIds(lambda: 1_700_000_000_000)
    first, second = ULID.from_str(ids.next()), ULID.from_str(ids.next())
    assert first.milliseconds == second.milliseconds == 1_700_000_000_000
    assert int(second.hex, 16) - int(first.hex, 16) == 1


def test_ids_of_two_servers_differ_in_the_same_millisecond() -> None:
    one, other = PeerIds(lambda: 5), PeerIds(lambda: 5)
    latest = one.next()
    for ids in (one, other):
        ids.advance_past(latest)
    made = [ids.next() for ids in (one, other)]
    assert latest < min(made)
    assert made[0] != made[1]


def test_ids_go_on_behind_the_last_one_of_a_millisecond() -> None:
    with patch("os.urandom", lambda size: b"\xff" * size):
        ids = PeerIds(lambda: 5)
        made = [ids.next() for _ in range(3)]
    assert made == sorted(set(made))
    assert [ULID.from_str(peer_id).milliseconds for peer_id in made] == [5, 6, 6]


def test_an_id_of_another_node_that_is_behind_changes_nothing() -> None:
    ids = PeerIds(lambda: 9)
    latest = ULID.from_str(ids.next())
    ids.advance_past(str(ULID.from_timestamp(0.007)))
    assert int(ULID.from_str(ids.next()).hex, 16) == int(latest.hex, 16) + 1


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_text_frame_has_the_shortest_header(size: int, header: bytes) -> None:
    assert text_frame(b"x" * size) == header + b"x" * size


def test_a_control_frame_has_its_opcode() -> None:
    assert frame(0x9, b"hi") == b"\x89\x02hi"


def test_a_close_reason_is_cut_between_characters() -> None:
    data = close_frame(1001, "é" * 100)
    assert data[:4] == b"\x88\x7c\x03\xe9"
    assert data[4:].decode() == "é" * 61


class Member:
    def __init__(self, member_id: str) -> None:
        self.id = member_id
        self.listed_bytes = 30


def test_a_topic_keeps_joining_order_and_is_deleted_with_its_last_member() -> None:
    topics: TopicMap[Member] = TopicMap(max_members=10, max_listed_bytes=1000)
    first, second = Member("b"), Member("a")
    topic = topics.join("room", first)
    assert topics.join("room", second) is topic
    assert [member.id for member in topic] == ["b", "a"]
    assert topic.get("a") is second
    assert topic.get("c") is None
    topics.leave(topic, first)
    assert "room" in topics
    topics.leave(topic, second)
    assert "room" not in topics
    assert len(topics) == 0


def test_members_may_leave_during_iteration() -> None:
    topics: TopicMap[Member] = TopicMap(max_members=10, max_listed_bytes=1000)
    members = [Member(str(n)) for n in range(3)]
    for member in members:
        topic = topics.join("room", member)
    for member in topic:
        topics.leave(topic, member)
    assert not topics


def test_limits_are_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().max_message_bytes = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_message_bytes", 0, "max_message_bytes: 0 is not a whole number from 1 up"),
        ("high_water_messages", -1, "high_water_messages: -1 is not"),
        ("high_water_bytes", 1000, "high_water_bytes: 1000 is less than one message of 65536 bytes"),
        ("ping_timeout_seconds", 0, "ping_timeout_seconds: 0 is not more than 0 and at most 86400 seconds"),
        ("ping_interval_seconds", -1, "ping_interval_seconds: -1 is not from 0 to 86400 seconds"),
        ("write_timeout_seconds", float("nan"), "write_timeout_seconds: nan is not"),
        ("shutdown_timeout_seconds", float("inf"), "shutdown_timeout_seconds: inf is not"),
    ],
)
def test_invalid_limits_are_named(name: str, value: float, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        Limits(**{name: value})
