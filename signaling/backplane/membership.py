"""Whether this node counts as one of the cluster, and which others do.

A node beats, and each beat that the store confirms lets it deliver relays for a while: less than the others take to
bury it. One that finds itself buried begins anew under another id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from signaling.backplane.failure_detector import Suspect, Watch
from signaling.backplane.interfaces import ClusterLog, Engine
from signaling.backplane.messages import Beat
from signaling.backplane.redis.scripts import Keys
from signaling.timing.clock import Clock

# An engine that is silent for so many looks, a second apart, counts as away; after twice that its connection is made
# anew. Looks are counted, not seconds: a node that was busy itself must not blame the engine.
_SILENT_LOOKS = 3
# What a look may take at the most that counts against other nodes.
_LONGEST_LOOK_SECONDS = 3.0
_CONNECT_SECONDS = 3.0
_LEASE_SECONDS = 7.5
# More than what a beat and its reply take.
_CLOCKS_DIFFER_SECONDS = 10.0
_PATIENCE_SECONDS = 9.0
# What is in the store outlives the last sign of its nodes by this.
KEEP_SECONDS = 3600
_BURIED_AT_ONCE = 200


class Registered(Protocol):
    """Who is registered."""

    def registered(self, topics: Iterable[str]) -> None:
        """Hear that the engine serves this node (again); ``topics`` are those in which it has this node's peers."""

    def lost(self) -> None:
        """Hear that the engine serves nobody for now."""

    def doubted(self) -> None:
        """Hear that events may have been lost."""

    def forgotten(self) -> None:
        """Hear that the store lost data: what it does not know may be so all the same."""

    def renamed(self) -> None:
        """Hear that this node has another id."""

    def died(self, node: str) -> None:
        """Hear that another node is dead."""

    @property
    def mentioned(self) -> Iterable[str]:
        """The nodes that matter besides those that beat."""

    def received(self, data: bytes) -> None:
        """Take what came on this node's channel."""


class NoLog:
    """Tells nobody."""

    def node_registered(self, node: str) -> None:
        """Say nothing."""

    def node_unregistered(self, reason: str) -> None:
        """Say nothing."""

    def node_buried(self, node: str) -> None:
        """Say nothing."""

    def node_taken_for_dead(self, node: str) -> None:
        """Say nothing."""

    def clocks_differ(self, seconds: float) -> None:
        """Say nothing."""


class Registration:
    """Keeps a node registered.

    Args:
        engine: serves all nodes.
        clock: tells the time.
        keys: name what is in the store.
        new_id: makes an id.
        owner: hears what happens.
        log: where an operator is told; None means nowhere.
        wall_clock: tells the seconds since 1970, to be compared with the store's.

    Attributes:
        node: the id of this node.
        former: the id that it had before, or the same.
        formers: all that it had before.
        reachable: whether there is a connection to the engine.
        good: whether the engine serves this node.
        away: whether it is known to serve nobody.
        events: how many events came on the channel since it was connected.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a registration depends on
        self,
        engine: Engine,
        clock: Clock,
        keys: Keys,
        new_id: Callable[[], str],
        owner: Registered,
        log: ClusterLog | None,
        wall_clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._keys = keys
        self._new_id = new_id
        self._owner = owner
        self._log = log or NoLog()
        self._wall_clock = wall_clock
        # As the log told it last.
        self._clocks_differ = 0.0
        self.node = self.former = new_id()
        self.formers: set[str] = set()
        self.reachable = self.good = self.away = False
        self._connecting_since = 0.0
        self._silent_looks = self._deaf_looks = 0
        self._beats = self._seen_beats = self._heard_beats = 0
        self.events = 0
        # How many more events the store sent than came; None before the first beat on a connection was heard.
        self._missing: int | None = None
        self._confirmed = float("-inf")
        self._store_ahead = 0.0
        self._watch = Watch(_PATIENCE_SECONDS, _LONGEST_LOOK_SECONDS)
        self._nodes: set[str] = set()
        self._burying: set[str] = set()

    @property
    def may_deliver(self) -> bool:
        """Whether nobody can take this node for dead."""
        return self._clock.seconds() - self._confirmed < _LEASE_SECONDS

    def store_ms(self, seconds: float = 0.0) -> int:
        """Tell what the store's clock shows, or will show in so many seconds."""
        return int((self._clock.seconds() + self._store_ahead + seconds) * 1000)

    def knows(self, node: str) -> bool:
        """Tell whether the node beat when this one looked last."""
        return node in self._nodes

    def connect(self) -> None:
        """Connect, or connect anew."""
        self.reachable = False
        self._connecting_since = self._clock.seconds()
        self._engine.connect(self._keys.channel(self.node.encode()), self)

    def resign(self, done: Callable[[list[Any] | None], None]) -> None:
        """Take this node out."""
        if not self.reachable:
            done(None)
            return
        node = self.node.encode()
        self._engine.call("resign", [self._keys.nodes, self._keys.index(node)], [node, self._keys.prefix], done)

    def look(self) -> None:
        """Beat, and see whether the engine still answers; to be called once a second."""
        if not self.reachable:
            if self._clock.seconds() - self._connecting_since >= _CONNECT_SECONDS:
                self._go_away("it cannot be reached")
            return
        silent, self._silent_looks = self._silent_looks, self._silent_looks + 1
        if self._heard_beats < self._seen_beats:
            self._deaf_looks += 1
        if self._deaf_looks >= _SILENT_LOOKS:
            self._give_up("nothing comes on this node's channel")
        elif silent >= 2 * _SILENT_LOOKS:
            self._give_up("it does not answer")
        else:
            if silent >= _SILENT_LOOKS:
                self._go_away(f"it has not answered for {_SILENT_LOOKS} s")
            self._beat()

    def _give_up(self, reason: str) -> None:
        self.disconnected(reason)
        self.connect()

    def answered(self) -> None:
        """Notice that the engine answered something."""
        self._silent_looks = 0

    # What the engine says

    def connected(self) -> None:
        """Register."""
        self.reachable = True
        self._silent_looks = self._deaf_looks = 0
        self._heard_beats = self._beats
        self.events, self._missing = 0, None
        self._beat()

    def received(self, data: bytes) -> None:
        """Pass on what came on this node's channel."""
        self._deaf_looks = 0
        self._owner.received(data)

    def take_beat(self, beat: Beat) -> None:
        """Hear a beat of this node, behind all events that the store sent before."""
        self._heard_beats = max(self._heard_beats, beat.number)
        missing = beat.events - self.events
        if self._missing is not None and missing > self._missing:
            # Nobody lost a connection, and perhaps no other event tells of it.
            self._owner.doubted()
        self._missing = missing

    def disconnected(self, reason: str) -> None:
        """Do without, until the engine is connected again."""
        self.reachable = False
        self._connecting_since = self._clock.seconds()
        self._go_away(reason)
        self._owner.doubted()

    def _go_away(self, reason: str) -> None:
        if self.away:
            return
        self.good, self.away = False, True
        self._log.node_unregistered(reason)
        self._owner.lost()

    def _beat(self) -> None:
        sent = self._clock.seconds()
        node = self.node.encode()
        keys = [self._keys.nodes, self._keys.tomb(node), self._keys.index(node)]
        number = self._beats = self._beats + 1
        arguments = [b"%d" % KEEP_SECONDS, node, b"%d" % number, b"0" if self.good else b"1", self._keys.prefix]
        self._engine.call("beat", keys, arguments, lambda reply: self._beaten(sent, number, reply))

    def _beaten(self, sent: float, number: int, reply: list[Any] | None) -> None:
        if reply is None:
            return
        self.answered()
        if reply[0] == b"buried":
            self._begin_anew()
            return
        _, before, milliseconds, nodes, topics = reply
        missed = number > 1 and before != b"%d" % (number - 1)
        # A beat that got lost on its way is missing too, and then the store may know everything else.
        forgotten, self._seen_beats = int(before or 0) < self._seen_beats, number
        self._confirmed = sent
        self._store_ahead = milliseconds / 1000 - (sent + self._clock.seconds()) / 2
        self._compare_clocks()
        if forgotten:
            # Perhaps nobody lost a connection.
            self._owner.forgotten()
        elif missed:
            self._owner.doubted()
        if not self.good:
            self._log.node_registered(self.node)
        if missed or not self.good:
            self.good, self.away = True, False
            self._owner.registered(topic.decode() for topic in topics)
        self._look_at(dict(zip((node.decode() for node in nodes[::2]), nodes[1::2], strict=True)))

    def _compare_clocks(self) -> None:
        """Tell an operator of a wall clock that is wrong: tokens and TURN credentials are good or not by it."""
        difference = self._clock.seconds() + self._store_ahead - self._wall_clock()
        if abs(difference - self._clocks_differ) > _CLOCKS_DIFFER_SECONDS:
            self._clocks_differ = difference
            self._log.clocks_differ(round(difference, 1))

    def _begin_anew(self) -> None:
        self._log.node_taken_for_dead(self.node)
        self.formers.add(self.node)
        self.former, self.node = self.node, self._new_id()
        self._beats = self._seen_beats = self._heard_beats = 0
        self._confirmed = float("-inf")
        self.good = False
        self._owner.doubted()
        self._owner.renamed()
        self.connect()

    # The others

    def _look_at(self, beats: dict[str, bytes]) -> None:
        self._nodes = set(beats)
        for suspect in self._watch.look(beats, self._owner.mentioned, self._clock.seconds()):
            if suspect.node not in self._burying and suspect.node != self.node:
                self._burying.add(suspect.node)
                self._bury(suspect)

    def _bury(self, suspect: Suspect) -> None:
        node = suspect.node.encode()
        keys = [self._keys.nodes, self._keys.tomb(node), self._keys.index(node)]
        arguments = [self._keys.prefix, b"%d" % KEEP_SECONDS, node, suspect.beats, b"%d" % _BURIED_AT_ONCE]
        self._engine.call("bury", keys, arguments, lambda reply: self._buried(suspect, reply))

    def _buried(self, suspect: Suspect, reply: list[Any] | None) -> None:
        if reply is None or reply[0] == b"alive":
            self._burying.discard(suspect.node)
            return
        if suspect.beats:
            self._log.node_buried(suspect.node)
        self._owner.died(suspect.node)
        if reply[1]:
            self._bury(suspect._replace(beats=b""))
        else:
            self._burying.discard(suspect.node)
