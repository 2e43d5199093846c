"""What the kernel knows of a server's process."""

from __future__ import annotations

import os
import time
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LOOK_SECONDS = 0.03
_QUIET_CPU_SECONDS = 0.0002


class Meter:
    """Measures processes of this machine, all together."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        # clock_getcpuclockid(3): the clock of a whole process, all its threads together, in nanoseconds.
        self._clocks = [~pid << 3 | 2 for pid in pids]

    def cpu_seconds(self) -> float:
        """Tell the CPU time so far, the kernel's part on its behalf included."""
        return sum(map(time.clock_gettime, self._clocks))

    def starved_seconds(self) -> float:
        """Tell for how long their first threads were ready to run so far, and others had their core."""
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) for pid in self._pids) / 1e9

    def resident_bytes(self) -> int:
        """Tell the resident memory; the kernel's socket buffers are no part of it."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._pids) * _PAGE_BYTES

    def settle(self, seconds: float = 3.0) -> None:
        """Wait until they have nothing to do, for at most ``seconds``."""
        until = time.monotonic() + seconds
        before = self.cpu_seconds()
        while time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)  # A process that falls idle tells nobody.
            after = self.cpu_seconds()
            if after - before < _QUIET_CPU_SECONDS:
                return
            before = after
