"""Every way in: the same scenarios run over the server's own port and mounted in a foreign site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.memory.world import World


@pytest.fixture(params=["port", "site"])
def make_world(request: pytest.FixtureRequest) -> Callable[..., World]:
    """Make a world with the limits that a test needs."""

    def make(**limits: Any) -> World:
        return World(site=request.param == "site", **limits)

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A server with the default limits."""
    return make_world()
