"""One node of a cluster: its peers and those of other nodes share topics, over any engine (docs/cluster.md).

What concerns peers of this node alone happens at once and asks nobody.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from signaling.backplane.interfaces import ClusterLog, Engine
from signaling.backplane.joins import Arrival, Arrivals
from signaling.backplane.membership import Registration
from signaling.backplane.messages import NODE_CHARACTERS, Ask, Beat, Claim, Event, Kind, Outcomes, Relays, decode
from signaling.backplane.presence import Entrants, Presence
from signaling.backplane.redis.scripts import Keys
from signaling.backplane.relays import Relaying
from signaling.backplane.session_handoffs import HandOffs
from signaling.backplane.store import Store
from signaling.core.interfaces import Forwarding, JoinTicket, Node, ResumeProof
from signaling.core.peer_ids import PeerIds
from signaling.limits import Limits
from signaling.timing.clock import Clock

_LOOK_SECONDS = 1.0
_STOP_SECONDS = 2.0
_ID_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Cluster:
    """A ``Backplane`` over an engine.

    Args:
        engine: that all nodes share.
        clock: tells the time.
        limits: of a topic, over all nodes.
        prefix: of all names in the store; clusters with different ones never meet.
        ids: make the ids of this node's peers.
        log: where an operator is told what happens to the node; None means nowhere.
        wall_clock: tells the seconds since 1970.
        choose: makes this node's own ids; a seeded one for tests.
    """

    def __init__(  # noqa: PLR0913 - what a node runs on, and what tests replace
        self,
        engine: Engine,
        clock: Clock,
        limits: Limits,
        *,
        prefix: str = "signaling:",
        ids: PeerIds | None = None,
        log: ClusterLog | None = None,
        wall_clock: Callable[[], float] = time.time,
        choose: random.Random | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._choose = choose or random.SystemRandom()
        self._ids = ids or PeerIds()
        keys, entrants = Keys(prefix), Entrants()
        most = limits.max_peers_per_topic, limits.max_peer_list_bytes
        self._registration = Registration(engine, clock, keys, self._new_id, self, log, wall_clock)
        store = Store(engine, keys, self._registration)
        self._presence = Presence(store, entrants, self._moved)
        self._relaying = Relaying(self._new_id, clock, store, self._presence, entrants, self._registration)
        self._hand_offs = HandOffs(self._new_id, store, self._relaying)
        self._arrivals = Arrivals(store, self._presence, self._hand_offs, entrants, clock, self._ids, most)
        self._timer: Any = None

    def _new_id(self) -> str:
        return "".join(self._choose.choices(_ID_CHARACTERS, k=NODE_CHARACTERS))

    @property
    def node(self) -> str:
        """The id of this node, as the others know it."""
        return self._registration.node

    @property
    def unready_reasons(self) -> list[str]:
        """Why a balancer should send newcomers elsewhere."""
        registration = self._registration
        # Where its timers stand still, a node is not told that the store serves it no longer.
        served = registration.good and registration.may_deliver
        return [] if served else ["the backplane is out of reach"]

    @property
    def forwarding(self) -> int:
        """How many relays to other nodes have no outcome yet."""
        return self._relaying.forwarding

    def start(self, node: Node) -> None:
        """Connect."""
        for room in (self._presence, self._arrivals, self._relaying, self._hand_offs):
            room.start(node)
        self._registration.connect()
        self._look()

    def _look(self) -> None:
        self._timer = self._clock.callLater(_LOOK_SECONDS, self._look)
        self._registration.look()
        self._relaying.look()
        self._arrivals.forget_claims()
        self._hand_offs.forget_offers()
        self._presence.look()

    def stop(self, done: Callable[[], None]) -> None:
        """Tell what is left to tell, and go."""
        if self._timer is None:
            done()
            return
        self._timer.cancel()
        self._timer = None
        self._arrivals.admit_all()
        self._arrivals.rest()
        self._relaying.tell_all()

        def gone() -> None:
            # What came meanwhile has an outcome too.
            self._relaying.tell_all()
            self._engine.disconnect()
            done()

        late = self._clock.callLater(_STOP_SECONDS, gone)

        def resigned(reply: list[Any] | None) -> None:
            if late.active():
                late.cancel()
                gone()

        self._registration.resign(resigned)

    # What the server asks

    def request_join(
        self,
        topic: str,
        metadata: bytes | None,
        entered: Callable[[JoinTicket], None],
        proof: ResumeProof | None = None,
    ) -> None:
        """Announce a peer that is about to join."""
        arrival = Arrival(topic, self._ids.next(), metadata, entered, proof)
        self._arrivals.request_join(arrival, away=self._registration.away)

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        """Hear that an entrant is in its topic now, or will never be."""
        self._arrivals.finish_join(topic, peer, joined=joined)

    def leave(self, topic: str, peer: str) -> None:
        """Tell the others that a peer of this node left."""
        self._presence.leave(topic, peer)

    def resync(self, topic: str) -> None:
        """Compare a topic with the store."""
        self._presence.resync(topic)

    def remote_members(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the peers of other nodes."""
        view = self._presence.find(topic)
        if view is None:
            return ()
        return [(peer, other.metadata) for peer, other in view.others.items() if peer not in view.unannounced]

    def forward(self, topic: str, to: str, sender: str, frame: bytes, forwarding: Forwarding) -> bool | None:
        """Send a relay to a peer of another node."""
        return self._relaying.forward(topic, to, sender, frame, forwarding)

    def _moved(self, topic: str, peer: str, node: str) -> None:
        self._hand_offs.moved(topic, peer, node)

    # What the registration says

    def registered(self, topics: Iterable[str]) -> None:
        """Go on, or begin: the engine serves this node."""
        self._presence.doubt_some(topics)
        self._arrivals.ask_again()
        self._relaying.go_on()
        self._presence.sync_some()

    def lost(self) -> None:
        """Do without the engine: it does not answer."""
        self._relaying.drop_unpublished()
        self._arrivals.admit_all()

    def doubted(self) -> None:
        """Believe nothing of what is known: events may be missing."""
        self._presence.doubt_all()

    def forgotten(self) -> None:
        """Wait for the others to tell the store again who is there: it lost data."""
        self._presence.doubt_all()
        self._presence.keep_for_now()

    def renamed(self) -> None:
        """Take up another id: this node was taken for dead."""
        self._relaying.forget_incoming()

    def died(self, node: str) -> None:
        """Give up on a node that is dead."""
        self._relaying.died(node)

    @property
    def mentioned(self) -> Iterable[str]:
        """The nodes that have peers, or owe an answer."""
        return self._presence.nodes | self._relaying.nodes

    def received(self, data: bytes) -> None:
        """Take what came on this node's channel."""
        try:
            message = decode(data)
        except ValueError:
            # Another version's, or a stranger's.
            return
        if isinstance(message, Beat):
            self._registration.take_beat(message)
        elif isinstance(message, Event):
            self._registration.events += 1
            self._presence.take_event(message)
            if message.kind is Kind.MOVED:
                # What is sent to the peer's new node must not overtake what waits for its old one.
                self._relaying.publish_all()
        elif isinstance(message, Relays):
            self._relaying.take(message)
        elif isinstance(message, Outcomes):
            self._relaying.hear(message)
        elif isinstance(message, Ask):
            self._relaying.answer(message)
        elif isinstance(message, Claim):
            self._hand_offs.answer(message)
        else:
            self._arrivals.take_session(message)
