"""The members of topics, and when a topic is deleted."""

from __future__ import annotations

from signaling.core.topics import TopicMap


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
