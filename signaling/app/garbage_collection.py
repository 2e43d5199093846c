"""The settings of Python's garbage collector for a process that is a server and nothing else."""

from __future__ import annotations

import gc

# Python's own value is 10.
_MIDDLE_COLLECTIONS_BEFORE_A_FULL_ONE = 100


def tune_garbage_collector() -> None:
    """Leave what is here now out of all collections, and let full ones be rare; call it when the server is complete.

    A full collection visits each object of each connection, and the server does nothing meanwhile. An ordinary
    connection leaves nothing for it. What an error leaves is found by a young collection, and those stay as frequent as
    they are. If something else should leave garbage that has grown old, a full collection comes at the latest when
    700,000 objects have been made and not freed (2,000,000 since Python 3.13).
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _MIDDLE_COLLECTIONS_BEFORE_A_FULL_ONE)
    gc.collect()
    gc.freeze()
