"""A wall clock of other processes that can be set while they run, and of no others."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

_SECONDS = struct.Struct("d")
# Python imports a module of this name before anything else, so all code finds the changed functions.
_MODULE = "sitecustomize.py"
_TEXT = """\
import mmap, struct, time

with open({path!r}, "r+b") as file:
    shared = mmap.mmap(file.fileno(), 8)
seconds, nanoseconds = time.time, time.time_ns


def ahead():
    return struct.unpack("d", shared[:8])[0]


time.time = lambda: seconds() + ahead()
time.time_ns = lambda: nanoseconds() + int(ahead() * 1e9)
"""


class WallClock:
    """The wall clock of the Python processes that are started with ``environment``, and of their children.

    Args:
        folder: an empty one, to be kept as long as they run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "ahead"
        self._ahead = 0.0
        self._file.write_bytes(_SECONDS.pack(0.0))
        (folder / _MODULE).write_text(_TEXT.format(path=str(self._file)))

    @property
    def environment(self) -> Mapping[str, str]:
        """What makes a process use it."""
        return {"PYTHONPATH": os.pathsep.join(filter(None, (str(self._folder), os.environ.get("PYTHONPATH"))))}

    def step(self, seconds: float) -> None:
        """Set it forward by so many seconds, or back if there are less than 0."""
        self._ahead += seconds
        with self._file.open("r+b") as file:
            file.write(_SECONDS.pack(self._ahead))
