"""Fixtures of the tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium import webdriver

from tests.system.browser import chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Run a Chromium for the tests of a module."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
