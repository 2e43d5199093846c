"""The order in which a server ends: unready, draining, stopped.

An application, ``twistd``, a worker and the workers' listener all end by this one object. Each says what it closes
besides its connections, and what it stops after the last one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from enum import Enum
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from signaling.errors import CloseCode
from signaling.limits import Limits
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler

# RFC 6455, section 7.4.1, and the registry of close codes at IANA.
# Each takes about 50 us.
_CLOSES_PER_PASS = 64
_ABORT_AGAIN_SECONDS = 1.0


class ShutdownState(Enum):
    """How far the end of a server is."""

    RUNNING = "running"
    UNREADY = "unready"  # /readyz answers 503, clients still join
    DRAINING = "draining"  # nobody joins, and connections are closed
    STOPPED = "stopped"  # no connection is left, and the backplane or the workers are stopped


TRANSITIONS: dict[ShutdownState, frozenset[ShutdownState]] = {
    ShutdownState.RUNNING: frozenset({ShutdownState.UNREADY, ShutdownState.DRAINING}),
    ShutdownState.UNREADY: frozenset({ShutdownState.DRAINING}),
    ShutdownState.DRAINING: frozenset({ShutdownState.STOPPED}),
    # A Twisted service can be started again.
    ShutdownState.STOPPED: frozenset({ShutdownState.RUNNING}),
}


class ClosableConnection(Protocol):
    """A connection, as a shutdown sees it."""

    def close_for_shutdown(self, code: int) -> None:
        """Send a close frame with ``code`` and end; without one if the connection is no WebSocket yet."""

    def close_timed_out(self) -> None:
        """Abort, without a close frame."""


class Server(Protocol):
    """What a ``Shutdown`` ends."""

    @property
    def connections(self) -> Collection[ClosableConnection]:
        """The open connections; each calls ``Shutdown.connection_lost`` at its end."""

    def drain_started(self) -> Iterable[Callable[[], object]]:
        """Start to close what is not a connection; returns what is left to do, in short pieces."""

    def last_connection_lost(self) -> Deferred[None]:
        """Stop what the connections needed; fires when that is done."""

    def abort_rest(self) -> None:
        """Abort what is not a connection."""


class Shutdown:
    """The end of one server.

    Args:
        server: is ended.
        clock: runs the timers.
        limits: ``drain_spread_seconds`` and ``shutdown_timeout_seconds`` count here.

    Attributes:
        state: changes as in ``TRANSITIONS``.
        is_aborted: whether ``abort`` was called since the server started, so that nothing is to be waited for.
    """

    def __init__(self, server: Server, clock: Clock, limits: Limits) -> None:
        self.state = ShutdownState.RUNNING
        self.is_aborted = False
        self._server = server
        self._clock = clock
        self._limits = limits
        # The delays that are not over, and their timers.
        self._delays: dict[Deferred[None], Any] = {}
        self._timers: list[Any] = []
        self._closes: FairScheduler[Callable[[], object]] = FairScheduler(clock, _CLOSES_PER_PASS, _call)
        self._drained: list[Deferred[None]] = []
        self._finishing = False

    @property
    def unready(self) -> bool:
        """Whether the server is about to stop, or has stopped."""
        return self.state is not ShutdownState.RUNNING

    @property
    def draining(self) -> bool:
        """Whether nobody can join any more; still so after the drain."""
        return self.state in (ShutdownState.DRAINING, ShutdownState.STOPPED)

    def restart(self) -> None:
        """Run again, if the server has stopped."""
        if self.state is ShutdownState.STOPPED:
            self._become(ShutdownState.RUNNING)
            self.is_aborted = False

    def become_unready(self, seconds: float = 0.0) -> Deferred[None]:
        """Let ``/readyz`` answer 503 before the drain, so that a balancer sends new clients elsewhere in time.

        Args:
            seconds: how long to wait; 0 means not at all.

        Returns:
            Fires when the time is over, or at ``drain`` or ``abort``; each call has its own.
        """
        if self.state is ShutdownState.RUNNING:
            self._become(ShutdownState.UNREADY)
        waited: Deferred[None] = Deferred()
        if seconds and not self.draining:
            self._delays[waited] = self._clock.callLater(seconds, self._end_delay, waited)
        else:
            waited.callback(None)
        return waited

    def _end_delay(self, waited: Deferred[None]) -> None:
        _cancel([self._delays.pop(waited)])
        waited.callback(None)

    def _end_delays(self) -> None:
        # A callback may drain, which ends the others.
        while self._delays:
            self._end_delay(next(iter(self._delays)))

    def drain(self) -> Deferred[None]:
        """Close every connection, then stop what they needed: the backplane, or the workers.

        Connections get a close frame: 1001 at once, or 1012 at random moments within ``drain_spread_seconds``, because
        clients that were closed come back, and should not all do so in one second. What is not gone
        ``shutdown_timeout_seconds`` after the last close frame is aborted. Close the ports before.

        Returns:
            Fires when all is done; each call has its own.
        """
        self._end_delays()
        drained: Deferred[None] = Deferred()
        if self.state is ShutdownState.STOPPED:
            drained.callback(None)
            return drained
        self._drained.append(drained)
        if self.state is not ShutdownState.DRAINING:
            self._become(ShutdownState.DRAINING)
            spread = self._limits.drain_spread_seconds
            self._timers = [
                self._clock.callLater(spread + self._limits.shutdown_timeout_seconds, self._abort_late_connections)
            ]
            for connection in tuple(self._server.connections):
                self._close(connection, spread)
            self._closes.extend(self._server.drain_started())
            self._closes.begin()
            self.connection_lost()
        return drained

    def _abort_late_connections(self) -> None:
        # A port that is still open accepts connections, which must not keep the drain from its end.
        self._abort_connections()
        if self.state is ShutdownState.DRAINING and not self._finishing:
            self._timers.append(self._clock.callLater(_ABORT_AGAIN_SECONDS, self._abort_late_connections))

    def _close(self, connection: ClosableConnection, spread_seconds: float) -> None:
        if spread_seconds:
            moment = random.uniform(0, spread_seconds)
            self._timers.append(self._clock.callLater(moment, connection.close_for_shutdown, CloseCode.SERVICE_RESTART))
        else:
            self._closes.add(lambda: connection.close_for_shutdown(CloseCode.GOING_AWAY))

    def connection_lost(self) -> None:
        """Go on with a drain, if no connection is left."""
        if self.state is ShutdownState.DRAINING and not self._server.connections and not self._finishing:
            self._finishing = True
            _cancel(self._timers)
            self._closes.finish()
            self._server.last_connection_lost().addCallback(self._stopped)

    def _stopped(self, _: None) -> None:
        self._finishing = False
        self._become(ShutdownState.STOPPED)
        drained, self._drained = self._drained, []
        for waiting in drained:
            waiting.callback(None)

    def abort(self) -> None:
        """Wait no longer: skip the delay before the drain, abort every connection, and give nothing else its time."""
        self.is_aborted = True
        self._end_delays()
        self._abort_connections()
        self._server.abort_rest()

    def _abort_connections(self) -> None:
        for connection in tuple(self._server.connections):
            connection.close_timed_out()

    def _become(self, state: ShutdownState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a server that is {self.state.value} cannot be {state.value}")
        self.state = state


def _call(close: Callable[[], object]) -> None:
    close()


def _cancel(timers: Iterable[Any]) -> None:
    for timer in timers:
        if timer.active():
            timer.cancel()
