"""Which connections that have not joined a topic are kept, for how long, and which one is evicted for a newer one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from signaling.admission.client_address import TrustedProxies
from signaling.admission.connection_limits import ConnectionLimits
from signaling.core.counters import Counters
from signaling.timing.timeouts import Timeouts


class UnjoinedConnection(Protocol):
    """A connection, as the gate sees it."""

    def abort(self, reason: str) -> None:
        """Abort; ``reason`` is for the log."""

    def handshake_timed_out(self) -> None:
        """End, because the handshake timeout is over."""


C = TypeVar("C", bound=UnjoinedConnection)


class ConnectionGate(Generic[C]):
    """The connections that have not joined, oldest first.

    Beyond the connections that may join, ``ConnectionLimits.spare`` may be open, and of one address no more than may
    join. A newer connection evicts the oldest unjoined one: of its own address if that has too many, else of all.

    Args:
        connections: all open connections of the server, joined ones included.
        handshake_timeouts: of the connections whose handshake is not complete.
        limits: the bounds.
        most_of_one_address: how many unjoined connections an address may have; 0 means no bound.
        proxies: say which addresses count as one.
        counters: count evictions.
        on_eviction: called with the reason of each, for the log.

    Attributes:
        most_of_one_address: another value counts for new connections.
        proxies: the same.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it bounds, and by what
        self,
        connections: set[C],
        handshake_timeouts: Timeouts[C],
        limits: ConnectionLimits,
        most_of_one_address: int,
        proxies: TrustedProxies,
        counters: Counters,
        on_eviction: Callable[[str], object],
    ) -> None:
        self._connections = connections
        self._handshake_timeouts = handshake_timeouts
        self._limits = limits
        self.most_of_one_address = most_of_one_address
        self.proxies = proxies
        self._counters = counters
        self._on_eviction = on_eviction
        self._networks: dict[C, str | None] = {}
        self._by_network: dict[str, dict[C, None]] = {}

    def __len__(self) -> int:
        return len(self._networks)

    def open(self, connection: C, address: Callable[[], str]) -> None:
        """Take a new connection, start its handshake timeout, and evict another one if there are too many.

        Args:
            address: returns the client's address as text; empty if it is not known yet.
        """
        self._connections.add(connection)
        self._handshake_timeouts.set(connection)
        network = self.proxies.network(address()) if self.most_of_one_address else None
        self._networks[connection] = network
        if network is not None:
            own = self._by_network.setdefault(network, {})
            own[connection] = None
            if len(own) > self.most_of_one_address:
                self._evict(next(iter(own)), "its address has too many that have not joined")
                return
        if len(self._connections) > self._limits.most + self._limits.spare:
            oldest = next(iter(self._networks))
            self._evict(oldest, "the server is full")

    def _evict(self, connection: C, reason: str) -> None:
        self.discard(connection)
        self._counters.connections_evicted += 1
        self._on_eviction(reason)
        connection.abort(reason)

    def discard(self, connection: C) -> None:
        """Evict ``connection`` no more: it joins, or is closed. Nothing happens if it was evicted."""
        network = self._networks.pop(connection, None)
        if network is not None:
            own = self._by_network[network]
            del own[connection]
            if not own:
                del self._by_network[network]

    def remove(self, connection: C) -> None:
        """Forget ``connection``, which goes to another owner or is closed."""
        self.discard(connection)
        self._handshake_timeouts.clear(connection)
        self._connections.discard(connection)

    def end_handshake(self, connection: C) -> None:
        """Let the handshake timeout of ``connection`` be over now, if it is still running."""
        if self._handshake_timeouts.clear(connection) is not None:
            connection.handshake_timed_out()
