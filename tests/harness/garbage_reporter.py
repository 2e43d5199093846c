"""``twistd`` that prints on SIGUSR2, as JSON, what cyclic garbage there is: how many objects of each class.

First what a young collection finds, then what only a full one does. Run it by
``python -m tests.harness.garbage_reporter``.
"""

from __future__ import annotations

import gc
import json
import os
import signal
from collections import Counter
from collections.abc import Iterable
from typing import Any

from twisted.scripts.twistd import run


def _count(objects: Iterable[Any]) -> Counter[str]:
    return Counter(type(each).__qualname__ for each in objects)


def _report_soon(*_: Any) -> None:
    from twisted.internet import reactor

    # A signal may interrupt the very end of a connection, after its file was closed. What the running functions, or
    # Twisted's TLS in a call of the next turn, still hold would survive this report, and be found old by the next one.
    reactor.callFromThread(reactor.callLater, 0, _report)  # type: ignore[attr-defined]


def _report() -> None:
    gc.collect(0)
    # They stay, so that what they hold is not found by the full collection.
    young = gc.garbage[:]
    gc.garbage.clear()
    gc.collect()
    found = {"young": _count(young), "full": _count(gc.garbage), "frozen": gc.get_freeze_count()}
    young.clear()
    gc.garbage.clear()
    gc.set_debug(0)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    # sys.stdout is the log by now.
    os.write(1, f"garbage {json.dumps(found)}\n".encode())


if __name__ == "__main__":
    gc.set_debug(gc.DEBUG_SAVEALL)
    # A collection in the middle of a connection would make what is left of it look old.
    gc.disable()
    signal.signal(signal.SIGUSR2, _report_soon)
    run()
