"""The package for npm, built and installed for an application, and the packages of others that its tests need."""

from __future__ import annotations

import fcntl
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.programs import need

PACKAGE = Path(__file__).parents[2] / "npm"
NAME = "twisted-signaling-client"
_MODULES = PACKAGE / "node_modules"
INSTALL_SECONDS = 280


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program that has to succeed; returns what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(name: str) -> Path:
    """Return the path of a program of npm/package.json's devDependencies."""
    return _MODULES / ".bin" / name


def install(folder: Path) -> dict[str, Any]:
    """Pack the package, and install it into an application, together with what its tests need.

    Args:
        folder: of the application.

    Returns:
        What ``npm pack`` says of the package; ``path`` is added, the path of its file.
    """
    npm = need("npm")
    with (PACKAGE / "package-lock.json").open() as lock:
        # Parts of the tests run at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        install_others(npm)
        output = run(npm, "pack", "--json", "--loglevel=error", f"--pack-destination={folder}", cwd=PACKAGE)
    # The output of `prepack` comes first.
    [packed] = json.loads(output[output.index("[\n") :])
    packed["path"] = folder / packed["filename"]
    modules = folder / "node_modules"
    modules.mkdir()
    for path in _MODULES.iterdir():
        (modules / path.name).symlink_to(path)
    run("tar", "-xf", packed["path"], cwd=folder)
    (folder / "package").rename(modules / NAME)
    return dict(packed)


def install_others(npm: str) -> None:
    """Install what package-lock.json names, unless that was done."""
    done = _MODULES / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < (PACKAGE / "package-lock.json").stat().st_mtime:
        run(npm, "ci", "--ignore-scripts", cwd=PACKAGE)
