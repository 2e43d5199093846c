"""Writes to standard output, which its reader may close early, as in ``signaling --help | head -1``."""

from __future__ import annotations

import os
import sys


def print_line(text: object) -> None:
    """Print ``text`` and a line end; if the reader is gone, nobody needs the rest."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more at its end, and would report the same error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
