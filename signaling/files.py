"""Reads files that an operator names: at the start, and again while the server runs."""

from __future__ import annotations

import os
import stat
from errno import EPIPE
from pathlib import Path


def read_file(path: str | Path) -> bytes:
    """Return the content of a file, without waiting for somebody to write it.

    A pipe is read to its end, if it has a writer: a shell makes one for ``<(command)``. It can be read once.

    Raises:
        OSError: it cannot be read, or is a pipe with nothing in it.
        ValueError: no file can have this name.
    """
    # Otherwise a pipe is not opened before somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        os.set_blocking(descriptor, True)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read()
    finally:
        os.close(descriptor)
    if is_pipe and not data:
        raise OSError(EPIPE, "a pipe that nobody writes to; a pipe can be read once")
    return data
