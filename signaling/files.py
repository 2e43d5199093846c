"""Reads files that an operator names: at the start, and again while the server runs.

While the server runs, only regular files are read. Reading anything else may wait for somebody to write it, and the
server would stand still meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from errno import EFBIG, EINVAL, EPIPE
from pathlib import Path

# The largest files, sets of keys and chains of certificates, have some kilobytes. /dev/zero has no end.
_MAX_BYTES = 16_777_216
_pipes_are_read: ContextVar[bool] = ContextVar("_pipes_are_read", default=False)


@contextmanager
def reading_pipes() -> Iterator[None]:
    """Let ``read_file`` read pipes to their end, too, as long as that takes: for the start of a process."""
    token = _pipes_are_read.set(True)
    try:
        yield
    finally:
        _pipes_are_read.reset(token)


def read_file(path: str | Path) -> bytes:
    """Return the content of a regular file; inside of ``reading_pipes``, also of a pipe that has a writer.

    A shell makes such a pipe for ``<(command)``. It can be read once.

    Raises:
        OSError: it cannot be read, is too large, or is no regular file.
        ValueError: no file can have this name.
    """
    return _read(path, reads_pipes=_pipes_are_read.get())


def read_regular_file(path: str | Path) -> bytes:
    """Return the content of a file that will be read again later, and so cannot be a pipe; raises as ``read_file``."""
    return _read(path, reads_pipes=False)


def _read(path: str | Path, *, reads_pipes: bool) -> bytes:
    # Otherwise a pipe is not opened before somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        # The error for a folder is read's own.
        if not (reads_pipes or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(EINVAL, "not a regular file; a pipe can be read once, when the server starts")
        os.set_blocking(descriptor, True)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(_MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > _MAX_BYTES:
        raise OSError(EFBIG, f"longer than {_MAX_BYTES} bytes")
    if stat.S_ISFIFO(mode) and not data:
        raise OSError(EPIPE, "a pipe that nobody writes to; a pipe can be read once")
    return data
