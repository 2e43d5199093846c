"""How many connections the process's limit on open files leaves room for."""

from __future__ import annotations

import resource

_MOST = 1 << 20
_SELECT = 1024


def file_limit(reactor: object) -> int:
    """Return how many files the process may have open; at most a million, also where there is no limit.

    Args:
        reactor: the one that watches them; ``select`` knows no descriptor from 1,024 up (select(2)).
    """
    most = _SELECT if type(reactor).__name__ == "SelectReactor" else _MOST
    return min(most, _bounded(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


def raise_file_limit() -> None:
    """Let the process have as many files open as it may allow itself.

    The soft limit is low only for the sake of programs that call ``select``; see ``file_limit`` for that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _bounded(soft) < _bounded(hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_bounded(hard), hard))


def _bounded(limit: int) -> int:
    return _MOST if limit == resource.RLIM_INFINITY else min(limit, _MOST)


def own_files(limit: int) -> int:
    """Return how many descriptors are kept for the process itself: listeners, log, reactor, modules."""
    return max(16, min(64, limit // 4))


def spare_connections(limit: int) -> int:
    """Return how many connections that are no peers are kept room for: requests on their way, ``/healthz``."""
    return max(8, min(1024, limit // 8))
