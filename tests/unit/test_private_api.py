"""Private names of libraries stand in two modules, and the server works without those of Twisted and Autobahn."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import signaling

pytestmark = pytest.mark.unmeasured

PACKAGE = Path(signaling.__file__).parent
ALLOWED = (PACKAGE / "transport" / "private_api.py", PACKAGE / "client" / "private_aiortc.py")
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path not in ALLOWED]
# Of a namedtuple; its underscore keeps it apart from the fields.
PUBLIC = {"_replace"}
LIBRARIES = ("twisted", "autobahn", "txaio")
OF_CLASSES = """
import ast, functools, importlib, inspect, sys, textwrap

def private_names(tree):
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in defined | used if name.startswith("_") and not name.startswith("__")}

@functools.cache
def names_in(cls):
    return private_names(ast.parse(textwrap.dedent(inspect.getsource(cls))))

for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == name:
            foreign = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in LIBRARIES]
            theirs = set().union(*map(names_in, foreign))
            for used in sorted(theirs & names_in(cls)) if theirs else ():
                print(f"{name}.{cls.__name__}: {used}")
""".replace("LIBRARIES", repr(LIBRARIES))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def uses(path: Path) -> list[str]:
    """Return the private attributes of others, and the private imports, that a module uses."""
    found = []
    nodes = list(ast.walk(ast.parse(path.read_text())))
    own_names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own_names:
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            through_super = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
            if not (own or through_super):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"import {name}" for name in names if is_private(name)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            found += [
                ast.unparse(node)
                for name in node.args
                if isinstance(name, ast.Constant) and is_private(str(name.value))
            ]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_uses_private_names_of_others(path: Path) -> None:
    assert not uses(path)


def test_a_class_uses_no_private_name_of_a_library_that_it_inherits_from() -> None:
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES]
    names = [name for name in names if not name.endswith("__init__")]
    run = subprocess.run(
        [sys.executable, "-c", OF_CLASSES, *names], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout == ""


def printed(code: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    return run.stdout.strip()


def test_the_private_names_are_those_of_the_installed_versions() -> None:
    assert printed("from signaling.transport.private_api import MISFITS; print(MISFITS)") == "[]"


BROKEN = {
    "frames": "from autobahn.websocket.protocol import WebSocketProtocol as p; del p.processControlFrame",
    "buffers": "from twisted.internet.abstract import FileDescriptor as f; f.write = lambda self, data: None",
    "endpoints": "from twisted.internet.endpoints import SSL4ServerEndpoint as e; e.__init__ = lambda *_: None",
    "exit signal": "from twisted.internet.base import ReactorBase as r; del r._exitSignal",
    "twistd's log": "from twisted.scripts._twistd_unix import UnixAppLogger as l; del l._getLogObserver",
}


@pytest.mark.parametrize("misfit", BROKEN)
def test_another_version_is_noticed_and_logged(misfit: str) -> None:
    code = f"""
from twisted.logger import globalLogBeginner, formatEvent
lines = []
globalLogBeginner.beginLoggingTo([lambda event: lines.append(formatEvent(event))], redirectStandardIO=False)
{BROKEN[misfit]}
from signaling.transport.private_api import MISFITS
print(*MISFITS, lines[-1].endswith(": " + MISFITS[0]))
"""
    assert printed(code) == f"{misfit} True"
