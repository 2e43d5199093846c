"""How many connections the process's limit on open files allows."""

from __future__ import annotations

import resource

_MAX_FILES = 1 << 20
_MAX_SELECT_FILES = 1024


def file_limit(reactor: object) -> int:
    """Return how many files the process may open, at most a million.

    Args:
        reactor: watches them; ``select`` supports only descriptors below 1,024 (select(2)).
    """
    maximum = _MAX_SELECT_FILES if type(reactor).__name__ == "SelectReactor" else _MAX_FILES
    return min(maximum, _bounded(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


def raise_file_limit() -> None:
    """Raise the soft limit on open files to the hard one.

    The soft limit is low only for programs that call ``select``, which ``file_limit`` takes into account.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _bounded(soft) < _bounded(hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_bounded(hard), hard))


def _bounded(limit: int) -> int:
    return _MAX_FILES if limit == resource.RLIM_INFINITY else min(limit, _MAX_FILES)


def own_files(limit: int) -> int:
    """Return how many descriptors are reserved for the process itself: listeners, log, reactor, modules."""
    return max(16, min(64, limit // 4))


def spare_connections(limit: int) -> int:
    """Return how many connections are reserved for unjoined clients: pending requests, ``/healthz``."""
    return max(8, min(1024, limit // 8))
