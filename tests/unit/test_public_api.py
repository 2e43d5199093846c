"""The public names: one table, and the same names for type checkers and in docs/api.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import signaling

INIT = Path(signaling.__file__)
PAGE = INIT.parents[1] / "docs" / "api.md"
MODULES = {name: getattr(signaling, name).__module__.removeprefix("signaling.") for name in signaling.__all__}


def test_type_checkers_see_the_same_names() -> None:
    imported = {
        alias.asname: (node.module or "").removeprefix("signaling.")
        for node in ast.walk(ast.parse(INIT.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert imported == MODULES


def test_the_page_lists_every_public_name_with_its_module() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| \S", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == MODULES


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'signaling' has no attribute 'Nothing'"):
        signaling.Nothing  # noqa: B018
