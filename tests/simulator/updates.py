"""Updates of metadata in a scenario: when clients make them, and what has to be true after each quiet moment."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from signaling.limits import Limits

if TYPE_CHECKING:
    from tests.simulator.clients import Client
    from tests.simulator.connections import SimulatedConnection

SALT = 1344


class UpdateConditions:
    """How the clients of one scenario update their metadata; in about half of the scenarios they do not.

    They are drawn from a random generator of their own, so that everything else under a seed stays as it was.

    Args:
        seed: of the scenario.

    Attributes:
        active: whether metadata may be replaced.
    """

    def __init__(self, seed: str) -> None:
        # SALT is chosen so that the seeds which test_simulator.py keeps have no updates.
        self.random = random = Random(f"{SALT} {seed}")
        self.active = random.random() < 0.5
        self._share = random.choice([0.05, 0.3, 0.8])
        self._longest = random.choice([0, 0, 100])
        self._max_bytes = random.choice([None, None, 300, 600])

    def limit(self, limits: Limits) -> Limits:
        """Add the bound on a list to a node's limits."""
        if not self.active or self._max_bytes is None:
            return limits
        return replace(limits, max_peer_list_bytes=self._max_bytes)

    def number(self) -> int:
        """Choose how many updates a client makes now."""
        return self.random.choice([1, 1, 2, 4]) if self.active and self.random.random() < self._share else 0

    def metadata(self, number: int) -> Any:
        """Make metadata that no other update has."""
        padding = "x" * self.random.randint(0, self._longest)
        return {"update": number, **({"padding": padding} if padding else {})}


@dataclass(eq=False)
class SentUpdate:
    """An update that a client sent.

    Attributes:
        connection: on which it was sent.
        lost: whether it never reached its sender's node.
        is_in_force: whether its client received its own ``peer-updated``.
        error: the code that it was answered with; empty if it was not.
    """

    number: int
    sender: Client
    connection: SimulatedConnection
    metadata: Any
    lost: bool = False
    is_in_force: bool = False
    error: str = ""

    @property
    def text(self) -> bytes:
        """The message."""
        message = {"type": "metadata", "metadata": self.metadata, "msgId": f"update {self.number}"}
        return json.dumps(message).encode()


class OwnMetadata:
    """What a client knows of its own metadata.

    Attributes:
        value: what it joined with, or its latest update that is in force, as far as it knows.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self._sent: list[SentUpdate] = []

    def joined(self, value: Any) -> None:
        """Begin as a new peer."""
        self.value = value
        self._sent = []

    def sent(self, update: SentUpdate) -> None:
        """Remember an update."""
        self._sent.append(update)

    def received(self, value: Any) -> str | None:
        """Take the client's own ``peer-updated``; returns what is wrong with it, None if nothing is."""
        for at, update in enumerate(self._sent):
            if update.metadata == value:
                update.is_in_force = True
                self.value = value
                # The latest stays, because a node may announce it again.
                del self._sent[:at]
                return f"its update {update.number} was answered {update.error} before" if update.error else None
        return None if value == self.value else f"it has metadata that it did not send, or that is older: {value}"

    def failed(self, number: int, code: str) -> str | None:
        """Take the error of an update; returns what is wrong with it."""
        for update in self._sent:
            if update.number == number:
                answered, update.error = update.error or update.is_in_force, code
                return f"its update {number} has two outcomes" if answered else None
        return None

    def fault(self, in_force: Any, connection: object) -> str | None:
        """Return what is wrong with the metadata that its node has after a quiet moment, None if nothing is."""
        unanswered = [
            update.number
            for update in self._sent
            if update.connection is connection and not (update.lost or update.error or update.is_in_force)
        ]
        if unanswered:
            return f"its updates {unanswered} have no outcome"
        possible = [self.value, *(update.metadata for update in self._sent if not update.error)]
        return None if in_force in possible else f"it has {in_force}, and should have one of {possible}"
