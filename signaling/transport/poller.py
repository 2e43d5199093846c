"""Watches TCP descriptors for a reactor, which watches one descriptor for all of them.

A reactor spends more on each event than handling it takes: a log context, a second dispatch, bookkeeping for every
change. Here one epoll object holds all descriptors; it is readable whenever one of them is ready (epoll(7), "Q3"), and
any reactor that can watch a descriptor can watch it.
"""

from __future__ import annotations

import select
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger()

# Other events of the reactor wait for the events of one pass.
_MOST_EVENTS = 256

READABLE = getattr(select, "EPOLLIN", 0x1)
WRITABLE = getattr(select, "EPOLLOUT", 0x4)
BROKEN = getattr(select, "EPOLLERR", 0x8)


def can_poll(reactor: Any) -> bool:
    """Return whether there is epoll here (Linux), and ``reactor`` can watch a descriptor."""
    return hasattr(select, "epoll") and IReactorFDSet.providedBy(reactor)


class Watched(Protocol):
    """What has a descriptor that a poller watches."""

    def on_readable(self) -> None:
        """Read, because nothing but that was reported."""

    def on_events(self, events: int) -> None:
        """Handle any other combination of events of epoll(7)."""

    def fail(self, reason: Failure) -> None:
        """End soon, because handling an event raised ``reason``."""

    def end(self, reason: Failure) -> None:
        """End now, because ``Poller.end_soon`` was asked for it, or because the reactor stops."""


@implementer(IReadDescriptor)
class Poller:
    """The descriptors of one server.

    While events are handled, nothing is closed: a descriptor that the kernel gave to a new connection could not be told
    from the closed one that an event of the same pass is about.

    Args:
        reactor: watches the poller while that watches anything; it has to provide ``IReactorFDSet``.
    """

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self._epoll: Any = None
        self._fileno = -1
        self._watched: dict[int, Watched] = {}
        self._ending: list[tuple[Watched, Failure]] = []
        self._timer: Any = None
        # While events are handled, or connections end.
        self._busy = False

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, watched: Watched, descriptor: int, events: int = READABLE) -> None:
        """Report events of a descriptor from now on."""
        if self._epoll is None:
            self._start()
        try:
            self._epoll.register(descriptor, events)
        except OSError:
            if not self._watched and not self._busy:
                self._stop()
            raise
        self._watched[descriptor] = watched

    def change(self, descriptor: int, events: int) -> None:
        """Report other events; that the connection broke is always reported."""
        self._epoll.modify(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        """Report nothing any more of a descriptor, which is still open; no-op if it is not watched.

        To close it is not enough: the kernel goes on reporting it as long as another process has it, too.
        """
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
            if not self._watched and not self._busy:
                self._stop()

    def end_soon(self, watched: Watched, reason: Failure) -> None:
        """Call ``watched.end`` after the events that are handled now, or in the reactor's next pass."""
        self._ending.append((watched, reason))
        if not self._busy and self._timer is None:
            self._timer = self.reactor.callLater(0, self._end_all)

    def _end_all(self) -> None:
        if self._timer is not None:
            if self._timer.active():
                self._timer.cancel()
            self._timer = None
        self._busy = True
        # What ends may end others, which are appended meanwhile.
        for watched, reason in self._ending:
            try:
                watched.end(reason)
            except BaseException:
                _log.failure("an error at the end of a connection")
        self._ending.clear()
        self._busy = False
        if not self._watched:
            self._stop()

    # For the reactor

    def fileno(self) -> int:
        """Return the descriptor that the reactor watches."""
        return self._fileno

    def logPrefix(self) -> str:
        """Return its name in a log."""
        return "signaling"

    def doRead(self) -> None:
        """Handle the events of one pass, also those that come meanwhile, but of each descriptor only once."""
        get, poll = self._watched.get, self._epoll.poll
        handled: set[int] = set()
        self._busy = True
        while len(handled) < _MOST_EVENTS:
            fresh = [event for event in poll(0, _MOST_EVENTS - len(handled)) if event[0] not in handled]
            if not fresh:
                break
            for descriptor, events in fresh:
                handled.add(descriptor)
                watched = get(descriptor)
                # What was handled before may have ended this one.
                if watched is not None:
                    try:
                        if events == READABLE:
                            watched.on_readable()
                        else:
                            watched.on_events(events)
                    except BaseException:
                        # A reactor does the same; what reached it would end all connections, not one.
                        _log.failure("an error in a connection")
                        watched.fail(Failure())
        self._busy = False
        if self._ending or not self._watched:
            self._end_all()

    def connectionLost(self, reason: Failure) -> None:
        """End everything, because the reactor stops."""
        for watched in tuple(self._watched.values()):
            self._ending.append((watched, reason))
        self._end_all()

    def _start(self) -> None:
        self._epoll = select.epoll()
        self._fileno = self._epoll.fileno()
        try:
            self.reactor.addReader(self)
        except OSError:
            # There are as many watches as epoll(7) allows. The next start tries again.
            self._close_epoll()
            raise

    def _stop(self) -> None:
        if self._epoll is not None:
            self.reactor.removeReader(self)
            self._close_epoll()

    def _close_epoll(self) -> None:
        self._epoll.close()
        self._epoll, self._fileno = None, -1
