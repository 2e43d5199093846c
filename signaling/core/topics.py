"""The topic map: which peers are in which topic, in joining order, and how many a topic takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from signaling.core.topic_rules import TopicRules
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


class MaxPeers(NamedTuple):
    """How many peers a topic may have before one more joins.

    Args:
        number: with as many, it takes no more.
        by_token: whether the bound is that of the joining client's token; others may still join.
    """

    number: int
    by_token: bool = False

    @property
    def reached(self) -> str:
        """Why a client that meets the bound cannot join."""
        if self.by_token:
            return f"the topic has {self.number} peers or more, which is too many for the token"
        return f"the topic has {self.number} peers, which is the most"


class TopicMap(Generic[M]):
    """All topics that have a member: a topic is made by its first member and deleted with its last.

    Args:
        max_members: of one topic, unless ``rules`` have another number.
        max_listed_bytes: of one topic's ``peer-list``, which every client that joins is sent and may leave unread.
        rules: bounds of topics by their names; None means none.

    Attributes:
        max_members: another value counts from the next join on.
        rules: the same.
    """

    def __init__(self, max_members: int, max_listed_bytes: int, rules: TopicRules | None = None) -> None:
        self.max_members = max_members
        self._max_listed_bytes = max_listed_bytes
        self.rules = rules
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

    def max_peers(self, name: str, by_token: int | None = None) -> MaxPeers:
        """Return how many peers a topic may have.

        Args:
            by_token: the bound of the joining client's token; None if it has none.
        """
        of_rule = self.rules.max_peers(name) if self.rules else None
        most = self.max_members if of_rule is None else of_rule
        return MaxPeers(most) if by_token is None or by_token >= most else MaxPeers(by_token, by_token=True)

    def join(self, name: str, member: M, max_peers: MaxPeers | None = None) -> Topic[M]:
        """Add ``member`` to the topic, which is made if it does not exist.

        Args:
            max_peers: how many peers the topic may have; None means as many as for a client without a token.

        Raises:
            Rejected: ``topic_full``.
        """
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name)
        elif len(topic) >= (bound := max_peers or self.max_peers(name)).number:
            raise Rejected(ErrorCode.TOPIC_FULL, bound.reached)
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
