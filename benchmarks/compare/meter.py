"""What the kernel knows of a server's process."""

from __future__ import annotations

import os
import time
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_POLL_SECONDS = 0.03
_QUIET_CPU_SECONDS = 0.0002


def children(pid: int) -> list[int]:
    """Return the processes that one has started, and that have not ended."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Meter:
    """Measures processes of this machine, all together, with the workers that they have started by now.

    Several share a core, and wait for each other: none of them is starved by strangers.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = [each for pid in pids for each in (pid, *children(pid))]
        # clock_getcpuclockid(3): the clock of a whole process, all its threads together, in nanoseconds.
        self._clocks = [~each << 3 | 2 for each in self._pids]

    def cpu_seconds(self) -> float:
        """Return the CPU time so far of all together, the kernel's part on their behalf included."""
        return sum(map(time.clock_gettime, self._clocks))

    def starved_seconds(self) -> float:
        """Return for how long the first thread of a process that is alone was ready so far, and others had its core."""
        if len(self._pids) > 1:
            return 0.0
        return int(Path(f"/proc/{self._pids[0]}/schedstat").read_text().split()[1]) / 1e9

    def resident_bytes(self) -> int:
        """Return the resident memory; the kernel's socket buffers are no part of it."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._pids) * _PAGE_BYTES

    def wait_until_idle(self, seconds: float = 3.0) -> None:
        """Wait until they have nothing to do, for at most ``seconds``."""
        until = time.monotonic() + seconds
        before = self.cpu_seconds()
        while time.monotonic() < until:
            time.sleep(_POLL_SECONDS)  # There is no event for a process that falls idle.
            after = self.cpu_seconds()
            if after - before < _QUIET_CPU_SECONDS:
                return
            before = after
