"""Where the Autobahn|Testsuite is installed. It runs on Python 2.7 only.

It is installed once for each user, into ``$XDG_CACHE_HOME/twisted-signaling`` (``~/.cache/twisted-signaling`` where
that is not set): every later run finds it there, whatever environment it runs in.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

_REQUIREMENT = "autobahntestsuite==0.8.2"
_INSTALL_SECONDS = 300.0


class NotInstalled(Exception):
    """The suite could not be installed; says why."""


def find_python() -> Path | None:
    """Return a Python 2.7 that works and has pip; None where there is none.

    Looks on the PATH and at pyenv's versions: its shim on the PATH refuses to run a version that was not chosen.
    """
    on_path = (Path(folder) / "python2.7" for folder in os.get_exec_path())
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    in_pyenv = sorted(pyenv.glob("versions/2.7*/bin/python2.7"))
    return next((python for python in (*on_path, *in_pyenv) if _works(python)), None)


def install(python: Path) -> Path:
    """Return the folder that the suite is installed in, after installing it where it was not.

    Raises:
        NotInstalled: with pip's own words.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twisted-signaling"
    folder = cache / _REQUIREMENT.replace("==", "-")
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as unfinished:
        made = Path(unfinished) / "suite"
        _pip_install(python, made)
        # Only in site-packages would pip's .pth file make a package of this namespace.
        (made / "zope" / "__init__.py").touch()
        # Of two runs that install at once, the first one's folder stays.
        if not folder.exists():
            made.rename(folder)
    return folder


def python2_environment() -> dict[str, str]:
    """Return this process's environment without what is meant for its own Python."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _works(python: Path) -> bool:
    command = [python, "-c", "import pip, sys; sys.exit(sys.version_info[:2] != (2, 7))"]
    try:
        return subprocess.run(command, env=python2_environment(), capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _pip_install(python: Path, folder: Path) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--target", folder, _REQUIREMENT]
    try:
        subprocess.run(
            command, env=python2_environment(), capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        raise NotInstalled(f"pip could not install {_REQUIREMENT}:\n{error.stderr}") from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"pip did not install {_REQUIREMENT} within {_INSTALL_SECONDS:g} s") from None
