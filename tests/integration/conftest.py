"""Every way in: the same scenarios run over the own port, in a foreign site, and over the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engines import Redis
from tests.integration.world import World
from tests.redis_server import redis_server

MakeWorld = Callable[..., World]


@pytest.fixture(scope="session")
def redis_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run one redis-server for all tests."""
    with redis_server(tmp_path_factory.mktemp("redis")) as path:
        yield path


def _make_worlds(**ways: Any) -> Iterator[MakeWorld]:
    worlds: list[World] = []

    def make(**limits: Any) -> World:
        worlds.append(World(**ways, **limits))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture(params=["port", "site"])
def make_server(request: pytest.FixtureRequest) -> Iterator[MakeWorld]:
    """Make a world of one server, for what is each server's own business."""
    yield from _make_worlds(site=request.param == "site")


@pytest.fixture(params=["port", "site", "three nodes", "three nodes on Redis"])
def make_world(request: pytest.FixtureRequest) -> Iterator[MakeWorld]:
    """Make a world with the limits that a test needs."""
    if request.param == "three nodes":
        yield from _make_worlds(nodes=3)
    elif request.param == "three nodes on Redis":
        path = request.getfixturevalue("redis_socket")
        yield from _make_worlds(nodes=3, store=lambda seconds: Redis(path))
    else:
        yield from _make_worlds(site=request.param == "site")


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """A server, or a cluster of them, with the default limits."""
    return make_world()


@pytest.fixture
def server(make_server: MakeWorld) -> World:
    """One server with the default limits."""
    return make_server()
