"""Fixtures of the tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium import webdriver

from tests.harness.server import forking
from tests.system.browser import chromium


@pytest.fixture(scope="session", autouse=True)
def _forking() -> Iterator[None]:
    """Start the servers of all tests here as forks of one process: the imports are most of a start's CPU."""
    with forking():
        yield


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Run a Chromium for the tests of a module."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
