"""What runs where there is no POSIX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.harness.server import start

TREE = Path(__file__).parents[2]

# Finds none of the modules that only POSIX systems have, as on Windows.
WITHOUT_POSIX = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "grp", "pwd", "resource", "termios"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in sys.argv[1:]:
    sys.modules.pop(name, None)
    importlib.import_module(name)
"""


def test_the_clients_are_imported_where_there_is_no_posix() -> None:
    clients = sorted(
        ".".join(path.relative_to(TREE).with_suffix("").parts) for path in (TREE / "signaling" / "client").glob("*.py")
    )
    others = [
        "signaling",
        "signaling.client",
        "signaling.tools.probe",
        "signaling.tools.mint_token",
        "twisted.plugins.signaling_auth",
    ]
    command = [sys.executable, "-c", WITHOUT_POSIX, *others, *clients]
    subprocess.run(command, cwd=TREE, check=True, timeout=60)


def test_a_server_where_there_is_no_posix_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "resource.py").write_text("raise ModuleNotFoundError(\"No module named 'resource'\", name='resource')")
    server = start(env={"PYTHONPATH": str(tmp_path)})
    assert server.process.wait(60) == 1
    server.join()
    needed = "the server needs a POSIX system, for example Linux: Python has no module 'resource' here"
    assert server.log == f"signaling: {needed}; the clients (signaling.client) run anywhere"
