"""How many connections there may be, in all and for each address."""

from __future__ import annotations

import math
from collections.abc import Callable

from signaling.admission import open_files
from signaling.admission.client_address import Client
from signaling.admission.rate_limit import TokenBuckets
from signaling.errors import Refused
from signaling.limits import Limits

_RETRY_WHEN_FULL_SECONDS = 10


class ConnectionSlot:
    """The right to one connection: held by the connection, or by its session while that is detached."""

    # Every joined connection has one: it has to be light.
    __slots__ = ("_limits", "_network")

    def __init__(self, limits: ConnectionLimits, network: str | None) -> None:
        self._limits: ConnectionLimits | None = limits
        self._network = network

    def release(self) -> None:
        """Free the slot for another client; a second call does nothing."""
        limits, self._limits = self._limits, None
        if limits is not None:
            limits.remove(self._network)

    def transfer(self, client: Client) -> ConnectionSlot:
        """Exchange this slot for one of another connection of the same session, which may have another address.

        Returns:
            The slot that counts from now on; this one is released.

        Raises:
            Refused: 429 if the new address has too many connections; then this slot is still held.
            RuntimeError: if this slot was released.
        """
        limits = self._limits
        if limits is None:
            raise RuntimeError("a released connection slot cannot be transferred")
        limits.remove(self._network)
        try:
            slot = limits.admit(client)
        except Refused:
            limits.add(self._network)
            raise
        self._limits = None
        return slot

    def check_transfer(self, client: Client) -> None:
        """Raise ``Refused`` if ``transfer`` would."""
        if self._limits is not None:
            self._limits.remove(self._network)
            try:
                self._limits.check(client)
            finally:
                self._limits.add(self._network)


class ConnectionLimits:
    """Counts the connections of one server, in all and for each address.

    Args:
        limits: the bounds.
        file_limit: how many files the process may have open.
        seconds: returns the time.

    Attributes:
        most: how many connections may join.
        spare: how many connections there may be beyond those, which have not joined.
        accepts_per_pass: how many connections to accept in one pass of the reactor: they exceed the bounds until it
            ends, and each has to be read before newer ones take its place.
    """

    def __init__(self, limits: Limits, file_limit: int, seconds: Callable[[], float]) -> None:
        self._limits = limits
        self._seconds = seconds
        default_spare = open_files.spare_connections(file_limit)
        self.spare = default_spare if limits.spare_connections is None else limits.spare_connections
        own = open_files.own_files(file_limit)
        self.accepts_per_pass = max(1, min(own, self.spare) // 4)
        self._possible = max(1, file_limit - own - self.spare)
        self._admitted = 0
        self._by_network: dict[str, int] = {}
        self._rates: TokenBuckets[str] | None = None
        self.limits_changed()

    def limits_changed(self) -> None:
        """Bound new connections by the limits as they are now; if addresses were not bounded, only these count."""
        limits = self._limits
        most, rate = limits.max_connections, limits.max_connections_per_address_per_second
        self.most = self._possible if most is None else min(most, self._possible)
        self._bounds_addresses = bool(limits.max_connections_per_address or rate)
        self._rates = TokenBuckets(rate, limits.connection_burst, self._seconds) if rate else None

    @property
    def shortfall(self) -> int:
        """How many of the connections that were asked for the process's limit on open files does not allow."""
        return max(0, (self._limits.max_connections or 0) - self.most)

    def admit(self, client: Client) -> ConnectionSlot:
        """Give a client a slot, to be released when its connection ends.

        Raises:
            Refused: 503 if the server is full, 429 if the client's address has too many connections.
        """
        network = self._check(client, TokenBuckets.take)
        self.add(network)
        return ConnectionSlot(self, network)

    def check(self, client: Client) -> None:
        """Raise ``Refused`` if ``admit`` would; nothing is counted."""
        self._check(client, TokenBuckets.wait)

    def _check(self, client: Client, wait: Callable[[TokenBuckets[str], str], float]) -> str | None:
        if self._admitted >= self.most:
            raise _later(503, f"the server is full: it takes {self.most} connections", _RETRY_WHEN_FULL_SECONDS)
        network = client.network if self._bounds_addresses else None
        if network is not None:
            self._check_address(network, wait)
        return network

    def add(self, network: str | None) -> None:
        """Count one connection more.

        Args:
            network: what counts as its client's address; None if addresses are not bounded.
        """
        self._admitted += 1
        if network is not None:
            self._by_network[network] = self._by_network.get(network, 0) + 1

    def remove(self, network: str | None) -> None:
        """Count one connection less."""
        self._admitted -= 1
        if network is not None:
            left = self._by_network[network] - 1
            if left:
                self._by_network[network] = left
            else:
                del self._by_network[network]

    def _check_address(self, network: str, wait_for: Callable[[TokenBuckets[str], str], float]) -> None:
        most = self._limits.max_connections_per_address
        if most and self._by_network.get(network, 0) >= most:
            raise _later(429, f"at most {most} connections from one address ({network})", _RETRY_WHEN_FULL_SECONDS)
        wait = wait_for(self._rates, network) if self._rates is not None else 0.0
        if wait:
            rate = self._limits.max_connections_per_address_per_second
            raise _later(429, f"at most {rate:g} new connections a second from one address ({network})", wait)


def _later(status: int, reason: str, seconds: float) -> Refused:
    return Refused(status, reason, {b"Retry-After": b"%d" % math.ceil(seconds)})
