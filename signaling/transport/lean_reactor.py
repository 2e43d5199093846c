"""An epoll reactor that dispatches without a log context: ``twistd --reactor=lean-epoll``.

Twisted's own wraps the handling of every event in a context that names the connection to the log (``[Name,1,address]``
instead of ``[-]``). That takes a quarter of a relay, and our log lines name peers and addresses themselves.
"""

from __future__ import annotations

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor

from signaling.transport.private_api import FITS, poll_without_log_context


class LeanEPollReactor(EPollReactor):
    """Twisted's epoll reactor without a log context for each event."""

    if FITS["epoll"]:
        doIteration = doPoll = poll_without_log_context


def install() -> None:
    """Install it as the global reactor; ``twistd`` calls this."""
    installReactor(LeanEPollReactor())
