"""``twistd`` with a garbage collector that writes down what it does, for ``benchmarks.garbage``.

``python -m benchmarks.timed_collections FILE SETTINGS OPTION...`` writes its process id and then a line for each
collection into FILE: the generation, the seconds, how many objects of garbage were found. SIGUSR2 asks for a full
collection. SETTINGS are the thresholds (``700,10,10``), and the word ``frozen`` behind them if what was there at the
start is to be frozen; they replace what the server asks for, and a dash leaves that to the server.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from typing import Any

from twisted.scripts.twistd import run


def _time_collections(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(file, f"{os.getpid()}\n".encode())
    started = 0.0

    def note(phase: str, details: dict[str, int]) -> None:
        nonlocal started
        if phase == "start":
            started = time.perf_counter()
        else:
            seconds = time.perf_counter() - started
            os.write(file, f"{details['generation']} {seconds} {details['collected']}\n".encode())

    gc.callbacks.append(note)
    signal.signal(signal.SIGUSR2, lambda *_: gc.collect())


def _replace_settings(settings: str) -> None:
    thresholds, _, frozen = settings.partition(" ")
    collector: Any = gc
    if not frozen:
        collector.freeze = lambda: None
    gc.set_threshold(*map(int, thresholds.split(",")))
    collector.set_threshold = lambda *_: None


def main() -> None:
    """Run ``twistd`` with the rest of the arguments."""
    _, path, settings, *options = sys.argv
    if settings != "-":
        _replace_settings(settings)
    _time_collections(path)
    sys.argv = ["twistd", *options]
    run()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
