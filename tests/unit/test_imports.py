"""Imports point one way between packages, and none installs the reactor."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import signaling

PACKAGE = Path(signaling.__file__).parent
TREE = PACKAGE.parent

# Each package imports only itself and what stands before it.
PACKAGES = [
    "errors limits _version",
    "timing",
    "transport",
    "websocket",
    "admission",
    "core",
    "web",
    "log",
    "auth",
    "backplane",
    "server",
    "workers",
    "metrics",
    "app",
    "tools",
]
RANK = {name: rank for rank, names in enumerate(PACKAGES) for name in names.split()}
WITHOUT_TWISTED = ("timing", "admission", "core")
OUTSIDE = ("client", "__init__.py")
SERVER = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in OUTSIDE]
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in SERVER}
CLIENT = sorted((PACKAGE / "client").glob("*.py"))
OF_THE_SERVER_FOR_CLIENTS = {"errors"}


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = node.module == "signaling"
            names += [f"signaling.{alias.name}" for alias in node.names] if whole else [node.module or ""]
    return names


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way_between_packages(name: str) -> None:
    own = RANK[name.partition(".")[0]]
    for imported in imports(MODULES[name]):
        package, _, module = imported.partition(".")
        if package == "signaling" and module:
            assert RANK[module.partition(".")[0]] <= own, f"{name} imports {module}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("backplane.")])
def test_the_backplane_knows_its_engines_in_one_place(name: str) -> None:
    if not name.startswith(("backplane.redis", "backplane.engines")):
        assert not [imported for imported in imports(MODULES[name]) if imported.startswith("signaling.backplane.redis")]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(WITHOUT_TWISTED)])
def test_the_core_knows_no_twisted(name: str) -> None:
    known = {imported.partition(".")[0] for imported in imports(MODULES[name])}
    assert not known & {"twisted", "autobahn", "txaio", "zope"}


@pytest.mark.parametrize("path", CLIENT, ids=lambda path: path.stem)
def test_the_client_knows_nothing_of_the_server_but_its_error_codes(path: Path) -> None:
    for name in imports(path):
        package, _, module = name.partition(".")
        if package == "signaling":
            assert module.startswith("client.") or module in OF_THE_SERVER_FOR_CLIENTS, f"{path.stem} imports {module}"


@pytest.mark.parametrize("path", CLIENT, ids=lambda path: path.stem)
def test_of_the_client_only_the_twisted_one_knows_twisted(path: Path) -> None:
    if path.stem != "twisted":
        assert not {name.partition(".")[0] for name in imports(path)} & {"twisted", "autobahn", "txaio", "zope"}


def test_the_server_never_imports_the_client() -> None:
    for path in SERVER:
        assert not [name for name in imports(path) if name.startswith("signaling.client")], path.stem


@pytest.mark.parametrize("module", ["signaling.client", "signaling.client.session"])
def test_importing_the_client_loads_neither_twisted_nor_the_server(module: str) -> None:
    server = {"twisted", "autobahn", "signaling.server.protocol"}
    code = f"import sys, {module}; sys.exit(bool({server} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_importing_the_twisted_client_installs_no_reactor() -> None:
    code = "import sys, signaling.client.twisted; sys.exit('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_importing_the_package_installs_no_reactor() -> None:
    code = "import sys; from signaling import *; sys.exit('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_twisted_stays_a_namespace_that_others_can_share() -> None:
    assert not (TREE / "twisted" / "__init__.py").exists()
    assert not (TREE / "twisted" / "plugins" / "__init__.py").exists()
