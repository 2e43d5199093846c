"""Imports point one way between packages, as docs/architecture.md draws them, and none installs the reactor."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import signaling

pytestmark = pytest.mark.unmeasured

PACKAGE = Path(signaling.__file__).parent
TREE = PACKAGE.parent

# Each package imports only itself and those above it.
RULES = (
    ("errors limits server_identity _version", "what everybody may use: clients the error codes, and the check of TLS"),
    ("files standard_output", "read and write for whatever asks"),
    ("bounded_endpoint", "bounds answers for every HTTP client of the server"),
    ("timing", "timers work with any clock, so that tests can set the time"),
    ("transport", "what is private in Twisted and Autobahn is used in one place, for any protocol"),
    ("websocket", "a WebSocket connection for any application: it knows no topics"),
    ("admission", "limits count connections, whatever these are for"),
    ("core", "the signaling logic has no I/O, so that the simulator can run it"),
    ("web", "HTTP reads requests; what becomes of a join is for the server"),
    ("log", "events are about the core and connections; the core itself does not log"),
    ("auth", "tokens are read from requests, and become grants of the core"),
    ("backplane", "a cluster knows its node only through an interface of the core"),
    ("ice_source", "asks a provider for ICE servers; it knows no peers"),
    ("server", "puts all of the above together, in one process"),
    ("webhooks", "deliver what an observer is told; a server works without them"),
    ("workers", "run servers in processes; a server works without them"),
    ("metrics", "read counters; nothing depends on being measured"),
    ("admin", "answers operators; nothing depends on being administered"),
    ("app", "parses options; everything else takes arguments, so that applications can embed it"),
    ("tools", "commands beside the server"),
)
RANK = {name: rank for rank, (names, _) in enumerate(RULES) for name in names.split()}
WITHOUT_TWISTED = ("timing", "admission", "core")
OUTSIDE = ("client", "__init__.py", "__main__.py")
SERVER = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in OUTSIDE]
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in SERVER}
CLIENT = sorted((PACKAGE / "client").glob("*.py"))
OF_THE_SERVER_FOR_CLIENTS = {"errors", "server_identity"}


@cache
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
    reason = RULES[own][1]
    for imported in imports(MODULES[name]):
        package, _, module = imported.partition(".")
        if package == "signaling" and module:
            assert RANK[module.partition(".")[0]] <= own, f"{name} imports {module}: {reason}"


def reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the edges that no path of others replaces."""

    def reached(start: str) -> set[str]:
        following = {to for frm, to in edges if frm == start}
        return following.union(*(reached(to) for to in following))

    return {
        (frm, to)
        for frm, to in edges
        if not any(to in reached(via) for other, via in edges if other == frm and via != to)
    }


def test_the_diagram_in_the_documents_shows_the_imports_between_packages() -> None:
    found = set()
    for path in (*SERVER, *CLIENT):
        package = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name in imports(path):
            of, _, module = name.partition(".")
            to = module.partition(".")[0]
            if of == "signaling" and to not in ("", package):
                found.add((package, to))
    text = (TREE / "docs" / "architecture.md").read_text()
    [diagram] = re.findall(r"```mermaid\nflowchart.*?```", text, re.DOTALL)
    arrows = re.findall(r"^ *([\w &]+) --> ([\w &]+)$", diagram, re.MULTILINE)
    drawn = {(frm, to) for left, right in arrows for frm in left.split(" & ") for to in right.split(" & ")}
    assert len(arrows) == diagram.count("--")
    assert drawn == reduced(found)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("backplane.")])
def test_the_backplane_knows_its_engines_in_one_place(name: str) -> None:
    if not name.startswith(("backplane.redis", "backplane.engines")):
        assert not [imported for imported in imports(MODULES[name]) if imported.startswith("signaling.backplane.redis")]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(WITHOUT_TWISTED)])
def test_the_core_knows_no_twisted(name: str) -> None:
    known = {imported.partition(".")[0] for imported in imports(MODULES[name])}
    assert not known & {"twisted", "autobahn", "txaio", "zope"}


@pytest.mark.parametrize("path", CLIENT, ids=lambda path: path.stem)
def test_the_client_knows_nothing_of_the_server_but_what_everybody_may_use(path: Path) -> None:
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
