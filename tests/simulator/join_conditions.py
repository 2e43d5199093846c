"""What makes joins of a scenario hard besides faults: limits, logins, turns, and clients that send early."""

from __future__ import annotations

from random import Random
from typing import Any

from signaling.core.grants import Grant
from signaling.limits import Limits

HANDSHAKE_SECONDS = 10.0
SALT = 1494


class JoinConditions:
    """The conditions of one scenario; about a third of the scenarios have none.

    They are drawn from a random generator of their own, so that everything else under a seed stays as it was.

    Args:
        seed: of the scenario.
        any_at_all: False for a scenario without conditions.

    Attributes:
        crowd_size: from how many peers in a topic on joins take turns.
        calm: whether the faults are over: clients that were refused do not come back then.
        turn_seconds: how long a pass of the reactor takes in which joins have their turns.
        handshake_seconds: how long a handshake may take; 0 means any time.
    """

    def __init__(self, seed: str, *, any_at_all: bool = True) -> None:
        # SALT is chosen so that the seeds which test_simulator.py keeps have no such conditions, except t167.
        self.random = random = Random(f"{SALT} {seed}")
        self._tokens = Random(f"tokens {seed}")
        self.active = any_at_all and random.random() < 0.65
        self._limits: dict[str, Any] = {}
        self._addresses = 1
        self._login_seconds: list[float] = []
        self._token_bounds: list[int | None] = []
        self._refused_share = self._early_share = 0.0
        self._drain_seconds = [0.0]
        self.crowd_size = 32
        self.turn_seconds = 0.0
        self.calm = False
        self.handshake_seconds = HANDSHAKE_SECONDS if self.active else 0.0
        if self.active:
            self._draw(random)

    def _draw(self, random: Random) -> None:
        self._addresses = random.choice([1, 2, 4])
        if random.random() < 0.4:
            self._limits["max_connections"] = random.choice([1, 2, 3, 5, 8])
        if random.random() < 0.4:
            self._limits["max_connections_per_address"] = random.choice([1, 2, 4])
        if random.random() < 0.2:
            self._limits["max_connections_per_address_per_second"] = 0.5
            self._limits["connection_burst"] = random.choice([1, 3])
        if random.random() < 0.4:
            self._limits["max_peers_per_topic"] = random.choice([1, 2, 3, 5])
        if random.random() < 0.4:
            self._login_seconds = random.choice([[0.0], [0.0, 0.05, 2.0], [2.0, 9.0, 15.0]])
            self._refused_share = random.choice([0.0, 0.2])
        if self._tokens.random() < 0.4:
            self._token_bounds = [None, 1, 2, 3]
        self._early_share = random.choice([0.0, 0.3, 0.9])
        self._drain_seconds = random.choice([[0.0], [0.0, 0.5, 3.0]])
        self.crowd_size = random.choice([0, 1, 3, 32])
        self.turn_seconds = random.choice([0.0, 0.1, 2.0])

    def limit(self, limits: Limits) -> Limits:
        """Add the conditions to a node's limits."""
        fields = {name: getattr(limits, name) for name in ("high_water_messages", "resume_window_seconds")}
        return Limits(**fields, **self._limits)

    def address(self) -> str:
        """Choose the address of a client."""
        return f"192.0.2.{self.random.randrange(self._addresses)}"

    def login_seconds(self) -> float | None:
        """Choose how long a login takes; None if it takes no time."""
        return (self.random.choice(self._login_seconds) or None) if self._login_seconds else None

    def login_is_refused(self) -> bool:
        """Choose how a login ends."""
        return bool(self._refused_share) and self.random.random() < self._refused_share

    def grant(self) -> Grant | None:
        """Choose what a login grants; None if there are no tokens."""
        return Grant(max_peers=self._tokens.choice(self._token_bounds)) if self._token_bounds else None

    def is_early(self) -> bool:
        """Choose whether a client sends before its welcome."""
        return bool(self._early_share) and self.random.random() < self._early_share

    def comes_back(self) -> bool:
        """Choose whether a client that was refused comes back."""
        return not self.calm and self.random.random() < 0.6

    def drain_seconds(self) -> float:
        """Choose how long a node that stops keeps its connections."""
        return self.random.choice(self._drain_seconds)
