"""Whether this node is a member of its cluster, and which other nodes are.

A node sends a heartbeat once a second. Each one that the store confirms is a lease: for a while the node may deliver
relays. The lease ends before the other nodes evict it. A node that finds itself evicted goes on under another id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Protocol

from signaling.backplane.failure_detector import FailureDetector, Suspect
from signaling.backplane.interfaces import ClusterLog
from signaling.backplane.messages import HeartbeatEcho
from signaling.backplane.store import Alive, Evicted, Eviction, RemovedMember, Store
from signaling.timing.clock import Clock

# The store is unreachable after so many checks, a second apart, without a reply; after twice that the node connects
# again. Checks are counted, not seconds: a node that was busy itself must not blame the store.
_MAX_SILENT_CHECKS = 3
# Between two checks; time beyond that does not count against other nodes.
_MAX_CHECK_SECONDS = 3.0
_CONNECT_SECONDS = 3.0
_LEASE_SECONDS = 7.5
_EVICT_SECONDS = 9.0
# More than a heartbeat and its reply take.
_CLOCKS_DIFFER_SECONDS = 10.0


class State(Enum):
    """The state of this node's membership."""

    STOPPED = "stopped"
    """Not started, or deregistered."""
    CONNECTING = "connecting"
    """No connection yet: joins wait for it, for a short time."""
    REGISTERING = "registering"
    """Connected; the first heartbeat has no reply yet. Joins wait for it, for a short time."""
    REGISTERED = "registered"
    """The store confirms heartbeats."""
    UNREACHABLE = "unreachable"
    """No connection: peers of this node go on among themselves."""
    RECOVERING = "recovering"
    """Connected, but heartbeats have no reply, or none yet after an outage: as if it was unreachable."""


class Signal(Enum):
    """What changes the state."""

    STARTED = "started"
    CONNECTED = "connected"
    CONFIRMED = "confirmed"
    """A heartbeat was confirmed."""
    SILENT = "silent"
    """Heartbeats had no reply for some checks."""
    DISCONNECTED = "disconnected"
    """The connection was lost, or cannot be made."""
    EVICTED = "evicted"
    """The other nodes have evicted this one, which connects again under another id."""
    STOPPED = "stopped"


TRANSITIONS: dict[tuple[State, Signal], State] = {
    (State.STOPPED, Signal.STARTED): State.CONNECTING,
    (State.CONNECTING, Signal.CONNECTED): State.REGISTERING,
    (State.CONNECTING, Signal.DISCONNECTED): State.UNREACHABLE,
    (State.REGISTERING, Signal.CONFIRMED): State.REGISTERED,
    (State.REGISTERING, Signal.SILENT): State.RECOVERING,
    (State.REGISTERING, Signal.DISCONNECTED): State.UNREACHABLE,
    (State.REGISTERING, Signal.EVICTED): State.CONNECTING,
    (State.REGISTERED, Signal.CONFIRMED): State.REGISTERED,
    (State.REGISTERED, Signal.SILENT): State.RECOVERING,
    (State.REGISTERED, Signal.DISCONNECTED): State.UNREACHABLE,
    (State.REGISTERED, Signal.EVICTED): State.CONNECTING,
    (State.UNREACHABLE, Signal.CONNECTED): State.RECOVERING,
    (State.UNREACHABLE, Signal.DISCONNECTED): State.UNREACHABLE,
    (State.RECOVERING, Signal.CONFIRMED): State.REGISTERED,
    (State.RECOVERING, Signal.SILENT): State.RECOVERING,
    (State.RECOVERING, Signal.DISCONNECTED): State.UNREACHABLE,
    (State.RECOVERING, Signal.EVICTED): State.UNREACHABLE,
    **{(state, Signal.STOPPED): State.STOPPED for state in State if state is not State.STOPPED},
}
"""The state after each signal. Every other combination is a bug."""

_CONNECTED = frozenset({State.REGISTERING, State.REGISTERED, State.RECOVERING})
_OUTAGE = frozenset({State.UNREACHABLE, State.RECOVERING})


class MembershipListener(Protocol):
    """The node whose membership it is."""

    def registered(self, topics: Iterable[str]) -> None:
        """The store serves this node (again). ``topics`` are those in which it has members of this node."""

    def lost(self) -> None:
        """The store does not serve this node for now."""

    def events_missed(self) -> None:
        """Events may have been lost."""

    def store_lost_data(self) -> None:
        """The store lost data: what it does not list may exist all the same."""

    def renamed(self) -> None:
        """This node was evicted, and has another id."""

    def node_evicted(self, node: str, removed: Sequence[RemovedMember]) -> None:
        """Another node is dead, and these members of it were removed."""

    @property
    def expected_nodes(self) -> Iterable[str]:
        """The nodes that have peers, or owe a reply."""

    def received(self, data: bytes) -> None:
        """Data came on this node's channel."""


class NullLog:
    """A ``ClusterLog`` that logs nothing."""

    def node_registered(self, node: str) -> None:
        """No-op."""

    def node_unregistered(self, reason: str) -> None:
        """No-op."""

    def node_evicted(self, node: str) -> None:
        """No-op."""

    def this_node_evicted(self, node: str) -> None:
        """No-op."""

    def clocks_differ(self, seconds: float) -> None:
        """No-op."""


class Membership:
    """The membership of this node, and what it knows of the others'.

    Args:
        store: shared by all nodes.
        clock: for leases and timeouts.
        new_id: makes the id of a node.
        listener: called back.
        log: None logs nothing.
        wall_clock: seconds since 1970, to be compared with the store's.

    Attributes:
        state: as of the latest signal.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a membership depends on
        self,
        store: Store,
        clock: Clock,
        new_id: Callable[[], str],
        listener: MembershipListener,
        log: ClusterLog | None,
        wall_clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._listener = listener
        self._log = log or NullLog()
        self._wall_clock = wall_clock
        self.state = State.STOPPED
        self._connecting_since = 0.0
        # Checks since the latest reply, and since the latest heartbeat came back on the channel.
        self._silent_checks = self._deaf_checks = 0
        self._replies_seen = 0
        # The latest heartbeat that was sent, confirmed by a reply, and echoed on the channel.
        self._sent = self._confirmed = self._echoed = 0
        # How many events came on the channel since the connection was made.
        self._events = 0
        # How many more events the store sent than came; None before the first echo on a connection.
        self._missing_events: int | None = None
        self._lease_since = float("-inf")
        self._store_ahead_seconds = 0.0
        self._logged_difference_seconds = 0.0
        self._detector = FailureDetector(_EVICT_SECONDS, _MAX_CHECK_SECONDS)
        self._nodes: set[str] = set()
        self._evicting: set[str] = set()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to the store."""
        return self.state in _CONNECTED

    @property
    def is_registered(self) -> bool:
        """Whether the store serves this node."""
        return self.state is State.REGISTERED

    @property
    def is_outage(self) -> bool:
        """Whether the store is known not to serve this node, so that nothing should wait for it."""
        return self.state in _OUTAGE

    @property
    def has_lease(self) -> bool:
        """Whether no other node can have evicted this one yet."""
        return self._clock.seconds() - self._lease_since < _LEASE_SECONDS

    def store_ms(self, seconds: float = 0.0) -> int:
        """Return what the store's clock shows, or will show in so many seconds."""
        return int((self._clock.seconds() + self._store_ahead_seconds + seconds) * 1000)

    def is_alive(self, node: str) -> bool:
        """Return whether the store had a heartbeat of a node lately."""
        return node in self._nodes

    @property
    def other_nodes(self) -> set[str]:
        """The nodes that ``is_alive`` is true of, without this one."""
        return self._nodes - {self._store.node}

    def _apply(self, signal: Signal) -> None:
        self.state = TRANSITIONS[self.state, signal]

    def start(self) -> None:
        """Connect, and register when connected."""
        self._apply(Signal.STARTED)
        self._connect()

    def stop(self) -> None:
        """Disconnect; the listener is not called any more. To be called once, after ``Store.deregister``."""
        self._store.disconnect()
        self._apply(Signal.STOPPED)

    def _connect(self) -> None:
        self._connecting_since = self._clock.seconds()
        self._store.connect(self)

    def check(self) -> None:
        """Send a heartbeat, and check that the store still answers; to be called once a second."""
        if not self.is_connected:
            if self._clock.seconds() - self._connecting_since >= _CONNECT_SECONDS:
                self._lose(Signal.DISCONNECTED, "it cannot be reached")
            return
        if self._store.replies != self._replies_seen:
            self._replies_seen, self._silent_checks = self._store.replies, 0
        silent, self._silent_checks = self._silent_checks, self._silent_checks + 1
        if self._echoed < self._confirmed:
            self._deaf_checks += 1
        if self._deaf_checks >= _MAX_SILENT_CHECKS:
            self._reconnect("nothing comes on this node's channel")
        elif silent >= 2 * _MAX_SILENT_CHECKS:
            self._reconnect("it does not answer")
        else:
            if silent >= _MAX_SILENT_CHECKS:
                self._lose(Signal.SILENT, f"it has not answered for {_MAX_SILENT_CHECKS} s")
            self._send_heartbeat()

    def _reconnect(self, reason: str) -> None:
        self.disconnected(reason)
        self._connect()

    def _lose(self, signal: Signal, reason: str) -> None:
        was_outage = self.is_outage
        self._apply(signal)
        if not was_outage:
            self._log.node_unregistered(reason)
            self._listener.lost()

    # Called by the engine

    def connected(self) -> None:
        """Register."""
        self._apply(Signal.CONNECTED)
        self._replies_seen = self._store.replies
        self._silent_checks = self._deaf_checks = 0
        self._echoed = self._sent
        self._events, self._missing_events = 0, None
        self._send_heartbeat()

    def received(self, data: bytes) -> None:
        """Pass on what came on this node's channel."""
        self._deaf_checks = 0
        self._listener.received(data)

    def disconnected(self, reason: str) -> None:
        """Go on without the store until it is connected again."""
        self._connecting_since = self._clock.seconds()
        self._lose(Signal.DISCONNECTED, reason)
        self._listener.events_missed()

    def count_event(self) -> None:
        """Count an event that came on this node's channel."""
        self._events += 1

    # Heartbeats of this node

    def echoed(self, echo: HeartbeatEcho) -> None:
        """Compare a heartbeat on this node's own channel, after all events that the store sent before."""
        self._echoed = max(self._echoed, echo.number)
        missing = echo.events - self._events
        if self._missing_events is not None and missing > self._missing_events:
            # No connection was lost, and perhaps no later event shows the gap.
            self._listener.events_missed()
        self._missing_events = missing

    def _send_heartbeat(self) -> None:
        sent_at = self._clock.seconds()
        number = self._sent = self._sent + 1

        def replied(reply: Alive | Evicted | None) -> None:
            if isinstance(reply, Evicted):
                self._rejoin()
            elif reply is not None:
                self._confirm(sent_at, number, reply)

        self._store.heartbeat(number, registers=not self.is_registered, done=replied)

    def _confirm(self, sent_at: float, number: int, reply: Alive) -> None:
        was_missed = number > 1 and reply.previous != number - 1
        # A heartbeat that was lost is missing as well, and then the store may have everything else.
        store_lost_data, self._confirmed = reply.previous < self._confirmed, number
        self._lease_since = sent_at
        self._store_ahead_seconds = reply.milliseconds / 1000 - (sent_at + self._clock.seconds()) / 2
        self._compare_wall_clocks()
        if store_lost_data:
            # Perhaps no connection was lost.
            self._listener.store_lost_data()
        elif was_missed:
            self._listener.events_missed()
        was_registered = self.is_registered
        if not was_registered:
            self._log.node_registered(self._store.node)
        self._apply(Signal.CONFIRMED)
        if was_missed or not was_registered:
            self._listener.registered(reply.topics)
        self._check_others(reply.heartbeats)

    def _compare_wall_clocks(self) -> None:
        """Warn of a wall clock that is wrong: tokens and TURN credentials expire by it."""
        difference = self._clock.seconds() + self._store_ahead_seconds - self._wall_clock()
        if abs(difference - self._logged_difference_seconds) > _CLOCKS_DIFFER_SECONDS:
            self._logged_difference_seconds = difference
            self._log.clocks_differ(round(difference, 1))

    def _rejoin(self) -> None:
        """Go on under another id: the other nodes have evicted this one."""
        self._log.this_node_evicted(self._store.node)
        self._store.rename(self._new_id())
        self._sent = self._confirmed = self._echoed = 0
        self._lease_since = float("-inf")
        self._apply(Signal.EVICTED)
        self._listener.events_missed()
        self._listener.renamed()
        self._connect()

    # The other nodes

    def _check_others(self, heartbeats: dict[str, bytes]) -> None:
        self._nodes = set(heartbeats)
        for suspect in self._detector.check(heartbeats, self._listener.expected_nodes, self._clock.seconds()):
            if suspect.node not in self._evicting and suspect.node != self._store.node:
                self._evicting.add(suspect.node)
                self._evict(suspect)

    def _evict(self, suspect: Suspect) -> None:
        def replied(eviction: Eviction | None) -> None:
            if eviction is None:
                self._evicting.discard(suspect.node)
                return
            if suspect.heartbeat:
                self._log.node_evicted(suspect.node)
            self._listener.node_evicted(suspect.node, eviction.removed)
            if eviction.topics_left:
                self._evict(suspect._replace(heartbeat=b""))
            else:
                self._evicting.discard(suspect.node)

        self._store.evict(suspect.node, suspect.heartbeat, replied)
