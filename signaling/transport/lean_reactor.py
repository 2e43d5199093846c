"""An epoll reactor that dispatches without a log context: ``twistd --reactor=lean-epoll``.

Twisted's own wraps the handling of every event in a context that names the connection to the log (``[Name,1,address]``
instead of ``[-]``). That takes a quarter of a relay, and our log lines name peers and addresses themselves.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor


class LeanEPollReactor(EPollReactor):
    """Twisted's epoll reactor, less the log context of each event."""

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events and handle them.

        Args:
            timeout: seconds; None means as long as it takes.
        """
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        except InterruptedError:
            return
        for fd, event in events:
            # What was handled before may have closed this one.
            selectable: Any = self._selectables.get(fd)
            if selectable is not None:
                self._doReadOrWrite(selectable, fd, event)

    doIteration = doPoll


def install() -> None:
    """Install it as the global reactor; ``twistd`` calls this."""
    installReactor(LeanEPollReactor())
