"""How a peer gets into its topic: the store is asked first, and without an answer it joins with those who are here.

A peer that comes back from another node is asked of that node, which writes its session down; then the store is told
where it is now (``handoffs``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from signaling.backplane.messages import Claim, Session
from signaling.backplane.presence import Entrants, Presence
from signaling.backplane.session_handoffs import HandOffs, ReceivedSession
from signaling.backplane.store import Store
from signaling.backplane.topic_replica import TopicReplica
from signaling.core.interfaces import JoinTicket, Node, ResumeProof
from signaling.core.peer_ids import PeerIds
from signaling.timing.clock import Clock
from signaling.timing.timeouts import Timeouts

_ENTER_SECONDS = 2.0


class Arrival:
    """A peer between its request and its peer-list.

    Args:
        entered: is called once, when it is this peer's turn.
        proof: of being a peer that another node may have.

    Attributes:
        asked: whether the store was told of it.
        stored: whether the store surely has it.
        taken_out: whether it was taken out of there again: until its own call is answered it cannot be put back.
        held: what came for it and has to wait for its peer-list.
        session: that the other node handed off; None before the store confirmed it.
        verdict: how it is let in when it is its turn; None before the store answered, or is known not to.
    """

    def __init__(
        self,
        topic: str,
        peer: str,
        metadata: bytes | None,
        entered: Callable[[JoinTicket], None],
        proof: ResumeProof | None,
    ) -> None:
        self.topic = topic
        self.id = peer
        self.metadata = metadata
        self.entered: Callable[[JoinTicket], None] | None = entered
        self.proof = proof
        self.asked = self.stored = self.taken_out = False
        self.held: list[Callable[[], None]] = []
        self.session: ReceivedSession | None = None
        self.verdict: JoinTicket | None = None

    @property
    def returns(self) -> bool:
        """Whether it comes as the peer that another node has, or had a moment ago."""
        return self.proof is not None and self.id == self.proof.peer

    @property
    def may_go_in(self) -> bool:
        """Whether it is decided how it is let in, and that was not done yet."""
        return self.verdict is not None and self.entered is not None

    @property
    def waits(self) -> bool:
        """Whether nothing is decided yet."""
        return self.verdict is None


class Arrivals:
    """Lets peers in.

    Args:
        store: is asked for each.
        presence: has the views.
        hand_offs: get sessions from other nodes.
        entrants: where those are who are on their way.
        clock: tells the time.
        ids: make the ids of this node's peers.
        most: peers and bytes of a topic.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what an arrival depends on
        self,
        store: Store,
        presence: Presence,
        hand_offs: HandOffs,
        entrants: Entrants,
        clock: Clock,
        ids: PeerIds,
        most: tuple[int, int],
    ) -> None:
        self._store = store
        self._presence = presence
        self._hand_offs = hand_offs
        self._entrants = entrants.by_topic
        self._first: Callable[[str], Arrival | None] = entrants.first
        self._ids = ids
        self._most = most
        self._node: Node
        self._deadlines: Timeouts[Arrival] = Timeouts(clock, _ENTER_SECONDS, self._admit)
        self._claims = 0
        self._claiming: dict[int, tuple[Arrival, str]] = {}
        # The topics whose newcomers are being let in, further up on the stack.
        self._letting_in: set[str] = set()

    def start(self, node: Node) -> None:
        """Let peers into ``node``."""
        self._node = node

    def rest(self) -> None:
        """Leave no timer behind when nobody is on the way."""
        self._deadlines.rest()

    def request_join(self, arrival: Arrival, *, away: bool) -> None:
        """Announce a peer; to nobody where the engine is away."""
        self._entrants.setdefault(arrival.topic, {})[arrival.id] = arrival
        self._presence.view(arrival.topic)
        if away:
            self._admit(arrival)
            return
        self._deadlines.set(arrival)
        if self._store.good:
            self._ask(arrival)

    def ask_again(self) -> None:
        """Announce those who wait, now that the engine is there."""
        for arrival in self._all():
            if arrival.waits and not arrival.asked:
                self._ask(arrival)

    def admit_all(self) -> None:
        """Let all in who wait: there will be no answer."""
        for arrival in self._all():
            self._admit(arrival)

    def _all(self) -> list[Arrival]:
        return [arrival for arrivals in self._entrants.values() for arrival in arrivals.values()]

    def _ask(self, arrival: Arrival) -> None:
        if arrival.proof is not None:
            self._seek(arrival, arrival.proof)
        else:
            self._join(arrival)

    def _join(self, arrival: Arrival) -> None:
        arrival.asked = True
        peer = arrival.id
        view = self._presence.view(arrival.topic)
        view.calls += 1
        done = partial(self._joined, arrival, peer, view)
        self._store.join(arrival.topic, peer, arrival.metadata, self._most, done)

    def _joined(self, arrival: Arrival, peer: str, view: TopicReplica, reply: list[Any] | None) -> None:
        view.calls -= 1
        if peer != arrival.id:
            # It took another id since.
            if reply is None or reply[0] == b"joined":
                self._presence.leave(arrival.topic, peer)
        elif reply is None:
            self._admit(arrival)
        elif reply[0] == b"joined":
            arrival.stored = True
            self._presence.take_snapshot(arrival.topic, view, reply)
            self._admit(arrival)
        elif not arrival.waits:
            # It was let in without waiting for this, or is gone.
            self._presence.resync(arrival.topic)
        elif reply[0] == b"behind":
            self._join_later(arrival, reply[1].decode())
        else:
            self._admit(arrival, full=self._full(reply[1]))
        self._presence.check(arrival.topic, view)

    def _full(self, why: bytes) -> str:
        if why == b"bytes":
            return "the list of the topic's peers is as long as is allowed"
        return f"the topic has {self._most[0]} peers, which is the most"

    def _join_later(self, arrival: Arrival, last: str) -> None:
        """Take an id that is greater than all in the topic: another node's clock is ahead, or as fast."""
        try:
            self._ids.follow(last)
        except ValueError:
            # Not an id of ours, whoever wrote it.
            self._admit(arrival)
            return
        self._rename(arrival, self._ids.next())
        if self._store.good:
            self._join(arrival)

    def _rename(self, arrival: Arrival, peer: str) -> None:
        arrivals = self._entrants[arrival.topic]
        del arrivals[arrival.id]
        arrival.id = peer
        arrivals[peer] = arrival
        arrival.asked = False
        self._go_on(arrival.topic)

    def _admit(self, arrival: Arrival, full: str | None = None) -> None:
        if not arrival.waits:
            return
        self._deadlines.clear(arrival)
        if arrival.returns and not arrival.stored:
            # Whether that peer is this node's now nobody knows; a new one surely is.
            self._rename(arrival, self._ids.next())
        arrival.verdict = JoinTicket(arrival.id, full, arrival.session)
        if arrival.returns:
            self._let_in(arrival)
        else:
            self._go_on(arrival.topic)

    def _let_in(self, arrival: Arrival) -> None:
        entered, arrival.entered = arrival.entered, None
        if entered is not None and arrival.verdict is not None:
            entered(arrival.verdict)

    def _go_on(self, topic: str) -> None:
        """Let newcomers in, and tell of those elsewhere, in joining order: each once the one before has settled."""
        self._presence.announce(topic)
        if topic in self._letting_in:
            return
        self._letting_in.add(topic)
        try:
            while (first := self._first(topic)) is not None and first.may_go_in:
                self._let_in(first)
        finally:
            self._letting_in.remove(topic)

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        """Hand over what came for a peer that was on its way, or take it back."""
        arrival = self._entrants[topic].pop(peer)
        if not self._entrants[topic]:
            del self._entrants[topic]
        if joined:
            self._presence.arrived(topic, peer)
        if arrival.session is not None:
            end = self._hand_offs.take if joined else self._hand_offs.refuse
            end(arrival.session)
        for hand_over in arrival.held:
            hand_over()
        if joined and (arrival.taken_out or not arrival.stored):
            self._presence.resync(topic)
        elif not joined and arrival.asked:
            self._presence.leave(topic, peer)
        self._go_on(topic)
        self._presence.forget_empty(topic)

    # From another node

    def _seek(self, arrival: Arrival, proof: ResumeProof) -> None:
        """Find the node that has the peer which this one says to be."""
        view = self._presence.view(arrival.topic)
        if view.current:
            self._claim(arrival, view, proof)
        else:
            self._presence.sync(arrival.topic, view, lambda reply: self._claim(arrival, view, proof))

    def _claim(self, arrival: Arrival, view: TopicReplica, proof: ResumeProof) -> None:
        other = view.others.get(proof.peer)
        if not arrival.waits:
            return
        if other is None or other.node == self._store.node:
            self._join(arrival)
            return
        number = self._claims = self._claims + 1
        self._claiming[number] = arrival, other.node
        claim = Claim(self._store.node, number, arrival.topic, proof.peer, proof.text)

        def told(listeners: int | None) -> None:
            if listeners == 0:
                # That node is dead: there will be no answer, and many come from it at once.
                self.take_session(Session(number, None))

        self._store.tell(other.node, claim, told)

    def take_session(self, answer: Session) -> None:
        """Take what another node gave up, or did not."""
        arrival, node = self._claiming.pop(answer.number, (None, ""))
        if arrival is None or not arrival.waits or arrival.asked or arrival.proof is None:
            return
        peer = arrival.proof.peer
        # Who shows one token twice at once has one peer by it, which the later connection takes over.
        is_here = self._entrants[arrival.topic].get(peer) is not None or self._node.has(arrival.topic, peer)
        session = self._hand_offs.receive(answer, node) if not is_here else None
        if session is not None:
            self._move(arrival, session, peer)
        else:
            self._join(arrival)

    def forget_claims(self) -> None:
        """Wait no longer for answers that nobody needs."""
        self._claiming = {number: claim for number, claim in self._claiming.items() if claim[0].waits}

    def _move(self, arrival: Arrival, session: ReceivedSession, peer: str) -> None:
        # The store says who has the peer. It is waited for as long as it may: without a sign of it ``admit_all`` ends
        # this, and its answer comes before those to the next beats.
        self._deadlines.clear(arrival)
        view = self._presence.view(arrival.topic)
        view.calls += 1
        self._rename(arrival, peer)
        arrival.asked = True
        self._store.move(arrival.topic, peer, session.node, partial(self._moved, arrival, session, view, peer))

    def _moved(
        self, arrival: Arrival, session: ReceivedSession, view: TopicReplica, peer: str, reply: list[Any] | None
    ) -> None:
        view.calls -= 1
        moved = reply is not None and reply[0] == b"moved"
        if moved and arrival.waits and self._store.may_deliver:
            arrival.stored, arrival.session = True, session
            self._presence.take_snapshot(arrival.topic, view, reply)
            self._admit(arrival)
        else:
            if moved:
                # It was let in as a new peer without waiting for this, or is gone; or its senders may have been told
                # that this node is dead.
                self._hand_offs.refuse(session)
                self._presence.leave(arrival.topic, peer)
            else:
                # Another node was quicker.
                self._hand_offs.forget(session)
            if arrival.waits:
                self._rename(arrival, self._ids.next())
                self._deadlines.set(arrival)
                self._join(arrival)
        self._presence.check(arrival.topic, view)
