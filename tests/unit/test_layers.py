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
        "deadlines",
        "descriptors",
        "expiries",
        "frames",
        "heads",
        "backplane.scripts",
        "backplane.urls",
        "backplane.watch",
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
    {"admission", "announcer", "backplane.messages", "backplane.resp", "counters", "keys", "ports", "upgrade"},
    {
        "backplane.links",
        "backplane.memory",
        "backplane.registration",
        "backplane.view",
        "peer",
        "presented",
        "routing",
        "signing",
    },
    {"backplane.store", "local"},
    {"backplane.presence"},
    {"backplane.relaying"},
    {"backplane.handoffs"},
    {"backplane.arrivals"},
    {"backplane.cluster"},
    {
        "auth",
        "backplane.connections",
        "backplane.trust",
        "channel",
        "events",
        "reactor",
        "sessions",
        "web",
        "websocket",
    },
    {"backplane.dialing", "protocol", "relayed_log", "tokens"},
    {"backplane.redis", "listening", "metrics", "minting", "options", "health", "probe", "workers"},
    {"backplane.engines", "dispatch"},
    {"totals"},
    {"service"},
    {"worker"},
    {"__init__"},
]
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
HIGHEST_WITHOUT_TWISTED = 9
SERVER = sorted([*PACKAGE.glob("*.py"), *(path for path in PACKAGE.glob("backplane/*.py") if path.stem != "__init__")])
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in SERVER}
CLIENT = sorted((PACKAGE / "client").glob("*.py"))
OF_THE_SERVER_FOR_CLIENTS = {"errors"}
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


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_strictly_downward(name: str) -> None:
    for imported in imports(MODULES[name]):
        package, _, module = imported.partition(".")
        if package == "signaling":
            assert LAYER[module] < LAYER[name], f"{name} imports {module}"


@pytest.mark.parametrize("name", MODULES)
def test_the_domain_knows_no_twisted(name: str) -> None:
    if LAYER[name] <= HIGHEST_WITHOUT_TWISTED:
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
    code = f"import sys, {module}; sys.exit(bool({{'twisted', 'autobahn', 'signaling.protocol'}} & set(sys.modules)))"
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


def test_no_function_is_longer_than_a_screen() -> None:
    for path in (*SERVER, *CLIENT):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{path.stem}.{node.name}"
