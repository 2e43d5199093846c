"""The topic map: which peers are in which topic, in joining order, and how many a topic takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from signaling.errors import ErrorCode, Rejected

LIST_FULL = "the list of the topic's peers is as long as is allowed"
"""The text of ``topic_full`` if a ``peer-list`` would be too long, whatever node counts its bytes."""


class Member(Protocol):
    """A member of a topic."""

    @property
    def id(self) -> str:
        """Unique in the process."""

    @property
    def listed_bytes(self) -> int:
        """The length of its entry in a ``peer-list``."""


M = TypeVar("M", bound=Member)


class Topic(Generic[M]):
    """The members of one topic, in joining order.

    Attributes:
        members: by id; only a topic changes its own.
        listed_bytes: of all members.
    """

    __slots__ = ("listed_bytes", "members", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.listed_bytes = 0
        self.members: dict[str, M] = {}

    def __iter__(self) -> Iterator[M]:
        """Iterate over the members as they are now; members may leave during the iteration."""
        return iter(tuple(self.members.values()))

    def __len__(self) -> int:
        return len(self.members)

    def get(self, member_id: str) -> M | None:
        """Return the member with that id, or None."""
        return self.members.get(member_id)

    def add(self, member: M) -> None:
        """Append ``member``."""
        self.members[member.id] = member
        self.listed_bytes += member.listed_bytes

    def remove(self, member: M) -> None:
        """Remove ``member``."""
        del self.members[member.id]
        self.listed_bytes -= member.listed_bytes

    def lengthen(self, by: int) -> None:
        """Count so many bytes more for the entry of a member, or fewer if ``by`` is negative."""
        self.listed_bytes += by


class TopicMap(Generic[M]):
    """All topics that have a member: a topic is made by its first member and deleted with its last.

    Args:
        max_members: of one topic.
        max_listed_bytes: of one topic's ``peer-list``, which every client that joins is sent and may leave unread.
    """

    def __init__(self, max_members: int, max_listed_bytes: int) -> None:
        self._max_members = max_members
        self._max_listed_bytes = max_listed_bytes
        self._topics: dict[str, Topic[M]] = {}

    def __iter__(self) -> Iterator[Topic[M]]:
        return iter(tuple(self._topics.values()))

    def __len__(self) -> int:
        return len(self._topics)

    def __contains__(self, name: str) -> bool:
        return name in self._topics

    def names(self) -> tuple[str, ...]:
        """Return the names of all topics, in no particular order."""
        return tuple(self._topics)

    def find(self, name: str) -> Topic[M] | None:
        """Return the topic of that name, or None."""
        return self._topics.get(name)

    def size(self, name: str) -> int:
        """Return how many members the topic has."""
        topic = self._topics.get(name)
        return len(topic) if topic is not None else 0

    def join(self, name: str, member: M) -> Topic[M]:
        """Add ``member`` to the topic, which is made if it does not exist.

        Raises:
            Rejected: ``topic_full``.
        """
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name)
        elif len(topic) >= self._max_members:
            raise Rejected(ErrorCode.TOPIC_FULL, f"the topic has {self._max_members} peers, which is the most")
        elif topic.listed_bytes + member.listed_bytes > self._max_listed_bytes:
            raise Rejected(ErrorCode.TOPIC_FULL, LIST_FULL)
        topic.add(member)
        return topic

    def check_room(self, topic: Topic[M], by: int) -> None:
        """Check whether the entry of a member may become so many bytes longer.

        Raises:
            Rejected: ``topic_full``.
        """
        if by > 0 and topic.listed_bytes + by > self._max_listed_bytes:
            raise Rejected(ErrorCode.TOPIC_FULL, LIST_FULL)

    def leave(self, topic: Topic[M], member: M) -> None:
        """Remove ``member`` from the topic; an empty topic is deleted at once."""
        topic.remove(member)
        if not topic:
            del self._topics[topic.name]
