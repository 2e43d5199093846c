"""Programs that a test needs beside Python: without one, it is skipped by name, and fails in CI."""

from __future__ import annotations

import os
import shutil
import socket
from unittest import SkipTest


def need(*names: str) -> str:
    """Return the path of the first program of ``names`` that is installed."""
    # Debian keeps servers in directories that an ordinary user's PATH leaves out.
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
    for name in names:
        path = shutil.which(name, path=folders)
        if path is not None:
            return path
    raise missing(" or ".join(names))


def missing(what: str) -> Exception:
    """Return what to raise: a test without ``what`` is skipped by name on a laptop, and fails in CI.

    With ``INSTALL=no``, CI skips it too. pytest and trial both take ``SkipTest`` for a skip, so that the benchmarks can
    use this without either.
    """
    text = f"{what} is not installed"
    fails = os.environ.get("CI") == "true" and os.environ.get("INSTALL") != "no"
    return AssertionError(text) if fails else SkipTest(text)


def free_port() -> int:
    """Return a port that is free now, for a program that cannot choose one by itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
