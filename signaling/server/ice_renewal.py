"""Sends peers new ICE servers: when there are others, and before the credentials of the last ones expire."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from signaling.core.ice import IceServers
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler
from signaling.timing.timeouts import Timeouts
from signaling.timing.wall_clock_timers import ClockSteps

# About 10 us for each.
_UPDATES_PER_PASS = 16


class Renewable(Protocol):
    """A connection whose peer has ICE servers."""

    def renewIceServers(self) -> None:
        """Send the peer the ICE servers of now."""


class IceRenewal:
    """Decides when connections send their peers new ICE servers.

    Args:
        servers: that peers are sent.
        connections: all of the server.
        clock: runs the timers.
        wall_clock: returns the seconds since 1970, which credentials expire by.
    """

    def __init__(
        self,
        servers: IceServers,
        connections: Collection[Renewable],
        clock: Clock,
        wall_clock: Callable[[], float],
    ) -> None:
        self._servers = servers
        self._connections = connections
        self._updates: FairScheduler[Renewable] = FairScheduler(clock, _UPDATES_PER_PASS, _renew)
        self._timeouts: Timeouts[Renewable] = Timeouts(clock, servers.renewal_seconds, _renew)
        self._clock_steps = ClockSteps(clock, wall_clock, self._timeouts.expire_all)
        servers.watch(self._servers_changed)

    def connection_opened(self, connection: Renewable) -> None:
        """Renew the servers of a connection that is about to be sent its first ones."""
        if self._servers.renewal_seconds:
            self._timeouts.set(connection)
            self._clock_steps.watch()

    def sent(self, connection: Renewable) -> None:
        """Renew the servers of a connection again after the usual time."""
        self._timeouts.set(connection)

    def clear(self, connection: Renewable) -> None:
        """Renew the servers of a connection no more."""
        self._timeouts.clear(connection)

    def replace_servers(self, servers: IceServers) -> None:
        """Send all connections other servers in place of those that no provider has."""
        self._timeouts.change(servers.renewal_seconds)
        if servers.renewal_seconds and self._connections:
            self._clock_steps.watch()
        self._servers.replace_with(servers)

    def _servers_changed(self) -> None:
        self._updates.extend(self._connections)

    def stop(self) -> None:
        """Leave no timer behind; there are no connections."""
        self._timeouts.cancel_if_idle()
        self._clock_steps.stop()


def _renew(connection: Renewable) -> None:
    connection.renewIceServers()
