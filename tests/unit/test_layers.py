"""The rooms of the house: imports point strictly downward, and nobody installs the reactor."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import signaling

PACKAGE = Path(signaling.__file__).parent
TREE = PACKAGE.parent

LAYERS = [
    {"_version", "clock", "errors", "limits"},
    {
        "access",
        "addresses",
        "counters",
        "deadlines",
        "descriptors",
        "expiries",
        "frames",
        "history",
        "ice",
        "ids",
        "origins",
        "outbound",
        "pages",
        "rates",
        "topics",
        "turns",
        "wire",
    },
    {"admission", "keys", "ports", "upgrade"},
    {"peer", "presented", "signing"},
    {"auth", "reactor", "sessions", "web", "websocket"},
    {"protocol", "tokens"},
    {"listening", "minting", "options"},
    {"service"},
    {"__init__"},
]
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
HIGHEST_WITHOUT_TWISTED = 3
MODULES = sorted(PACKAGE.glob("*.py"))
LONGEST_FUNCTION = 40


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = node.module == "signaling"
            names += [f"signaling.{alias.name}" for alias in node.names] if whole else [node.module or ""]
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_strictly_downward(path: Path) -> None:
    own = LAYER[path.stem]
    for name in imports(path):
        package, _, module = name.partition(".")
        if package == "signaling":
            assert LAYER[module] < own, f"{path.stem} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_domain_knows_no_twisted(path: Path) -> None:
    if LAYER[path.stem] <= HIGHEST_WITHOUT_TWISTED:
        assert not {name.partition(".")[0] for name in imports(path)} & {"twisted", "autobahn", "txaio", "zope"}


def test_importing_the_package_installs_no_reactor() -> None:
    code = "import sys, signaling; sys.exit('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_twisted_stays_a_namespace_that_others_can_share() -> None:
    assert not (TREE / "twisted" / "__init__.py").exists()
    assert not (TREE / "twisted" / "plugins" / "__init__.py").exists()


def test_no_function_is_longer_than_a_screen() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{path.stem}.{node.name}"
