"""Programs that a test needs beside Python: without one, it is skipped by name, and fails in CI."""

from __future__ import annotations

import os
import shutil
import socket

import pytest


def need(*names: str) -> str:
    """Return the path of the first program of ``names`` that is installed."""
    # Where Debian keeps servers, which an ordinary user's PATH leaves out.
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
    for name in names:
        path = shutil.which(name, path=folders)
        if path is not None:
            return path
    missing(" or ".join(names))
    raise AssertionError("missing() always raises")


def missing(what: str) -> None:
    """Skip the test by name, or fail it in CI, unless ``INSTALL=no`` says that programs may be missing."""
    if os.environ.get("CI") == "true" and os.environ.get("INSTALL") != "no":
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


def free_port() -> int:
    """Return a port that nobody uses now, for a program that cannot be told to choose one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
