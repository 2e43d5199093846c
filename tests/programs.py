"""Programs that a test needs beside Python, with or without privileges, and free ports."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
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


_PORTS = range(15_000, 32_000)
"""Below those that Linux gives to whoever asks for port 0 or connects, so nobody takes one by chance."""
_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP and UDP port that is free, for a program that cannot choose one by itself.

    No process of these tests is given the same port while this one runs.
    """
    for port in random.sample(_PORTS, 1_000):
        # An abstract name belongs to one socket, like a port, and is free again when the process ends.
        reservation = socket.socket(socket.AF_UNIX)
        try:
            if sys.platform == "linux":
                reservation.bind(f"\0twisted-signaling-tests-port-{port}")
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(type=kind) as probe:
                    probe.bind(("", port))
        except OSError:
            reservation.close()
        else:
            _reserved.append(reservation)
            return port
    raise AssertionError("no port is free")


def unprivileged() -> list[str]:
    """Return the command in front of another that takes root's privileges from it."""
    return [need("setpriv"), "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
