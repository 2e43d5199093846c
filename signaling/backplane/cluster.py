"""One node of a cluster: its peers and those of other nodes share topics, over any engine (docs/cluster.md).

What concerns peers of this node alone happens at once and asks nobody. The store knows who is where; what this node
says of its own peers is right, and the store is made to agree.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from signaling.backplane.links import Incoming, Outgoing
from signaling.backplane.messages import (
    NODE_CHARACTERS,
    Ask,
    Claim,
    Event,
    Kind,
    Outcomes,
    Relay,
    Relays,
    Session,
    decode,
    encode,
    member,
    version,
)
from signaling.backplane.registration import KEEP_SECONDS, Registration
from signaling.backplane.scripts import Keys
from signaling.backplane.view import Change, TopicView
from signaling.clock import Clock
from signaling.deadlines import Deadlines
from signaling.errors import ErrorCode, Rejected
from signaling.ids import PeerIds
from signaling.limits import Limits
from signaling.ports import Engine, Entrant, Forwarding, Node, Proof

# Without an answer of the engine a peer joins with those who are here, and meets the others later.
_ENTER_SECONDS = 2.0
_LOOK_SECONDS = 1.0
# Of what the store keeps, each topic is seen to in time.
_REFRESH_LOOKS = 600
_SYNCS_AT_ONCE = 32
# Under load the outcomes of many relays are told together.
_TELL_SECONDS = 0.005
_ASK_SECONDS = 2.0
_GIVE_UP_SECONDS = 40.0
_RELAY_SECONDS = 30.0
_OUTCOME_SECONDS = 60.0
_STOP_SECONDS = 2.0
_FULL = {
    b"peers": "the topic has as many peers as are allowed",
    b"bytes": "the list of the topic's peers is as long as is allowed",
}


class _Entering:
    """A peer between its request and its peer-list."""

    def __init__(self, topic: str, peer: str, metadata: bytes | None, entered: Callable[[Entrant], None]) -> None:
        self.topic = topic
        self.id = peer
        self.metadata = metadata
        self.entered: Callable[[Entrant], None] | None = entered
        # Whether the store was asked, and whether it surely has the peer.
        self.asked = False
        self.stored = False
        self.held: list[Callable[[], None]] = []
        # Of being a peer that another node may have, and the session that the node gave.
        self.proof: Proof | None = None
        self.session: bytes | None = None


class _Waiting:
    """Hears of the end of a relay from another node that has to wait for its target."""

    def __init__(self, settle: Callable[[ErrorCode | None], None]) -> None:
        self._settle = settle

    def written(self) -> None:
        self._settle(None)

    def reject(self, rejected: Rejected) -> None:
        self._settle(rejected.code)


class Cluster:
    """A ``Backplane`` over an engine.

    Args:
        engine: that all nodes share.
        clock: tells the time.
        limits: of a topic, over all nodes.
        prefix: of all names in the store; clusters with different ones never meet.
        ids: make the ids of this node's peers.
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
        choose: random.Random | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._limits = limits
        self._keys = Keys(prefix)
        self._ids = ids or PeerIds()
        self._choose = choose or random.SystemRandom()
        self._origin = self._new_id()
        self._registration = Registration(engine, clock, self._keys, self._new_id, self)
        self._views: dict[str, TopicView] = {}
        self._entering: dict[str, dict[str, _Entering]] = {}
        self._deadlines: Deadlines[_Entering] = Deadlines(clock, _ENTER_SECONDS, self._admit)
        self._outgoing: dict[str, Outgoing] = {}
        self._incoming: dict[tuple[str, str], Incoming] = {}
        self._claims = 0
        self._claiming: dict[int, tuple[_Entering, str]] = {}
        # Topics of which the store may have to be told, in order.
        self._dirty: dict[str, None] = {}
        self._syncing = 0
        self._looks = 0
        self._timer: Any = None
        self._telling: Any = None

    @property
    def node(self) -> str:
        """The id of this node, as the others know it."""
        return self._registration.node

    @property
    def troubles(self) -> list[str]:
        """Why a balancer should send newcomers elsewhere."""
        return [] if self._registration.good else ["the backplane is out of reach"]

    @property
    def forwarding(self) -> int:
        """How many relays to other nodes have no outcome yet."""
        return sum(map(len, self._outgoing.values()))

    def start(self, node: Node) -> None:
        """Connect."""
        self._node = node
        self._registration.connect()
        self._look()

    def stop(self, done: Callable[[], None]) -> None:
        """Tell what is left to tell, and go."""
        if self._timer is None:
            done()
            return
        self._timer.cancel()
        self._timer = None
        self._tell_all()

        def gone(reply: object = None) -> None:
            if late.active():
                late.cancel()
            self._engine.disconnect()
            done()

        late = self._clock.callLater(_STOP_SECONDS, gone)
        self._registration.resign(lambda reply: gone() if late.active() else None)
        self._deadlines.rest()

    # Joining and leaving

    def enter(
        self, topic: str, metadata: bytes | None, entered: Callable[[Entrant], None], proof: Proof | None = None
    ) -> None:
        """Announce a peer; with the engine out of reach, to nobody."""
        entering = _Entering(topic, self._ids.next(), metadata, entered)
        entering.proof = proof
        self._entering.setdefault(topic, {})[entering.id] = entering
        self._views.setdefault(topic, TopicView())
        if self._registration.away:
            self._admit(entering)
            return
        self._deadlines.set(entering)
        if self._registration.good:
            self._ask_for(entering)

    def _ask_for(self, entering: _Entering) -> None:
        if entering.proof is not None:
            self._seek(entering, entering.proof)
        else:
            self._join(entering)

    def _join(self, entering: _Entering) -> None:
        entering.asked = True
        view = self._views[entering.topic]
        view.calls += 1
        limits = self._limits
        self._call_topic(
            "join",
            entering.topic,
            [b"%d" % KEEP_SECONDS, self.node.encode(), entering.id.encode(), entering.metadata or b""],
            lambda reply: self._joined(entering, view, reply),
            [b"%d" % limits.max_peers_per_topic, b"%d" % limits.max_peer_list_bytes],
        )

    def _joined(self, entering: _Entering, view: TopicView, reply: list[Any] | None) -> None:
        view.calls -= 1
        if reply is None:
            self._admit(entering)
        elif reply[0] == b"joined":
            entering.stored = True
            self._take_snapshot(entering.topic, view, reply)
            self._admit(entering)
        elif entering.entered is None:
            # It was let in without waiting for this, or is gone.
            self._doubt(entering.topic)
        elif reply[0] == b"behind":
            self._join_later(entering, reply[1].decode())
        else:
            self._admit(entering, full=_FULL[reply[1]])
        self._check(entering.topic, view)

    def _join_later(self, entering: _Entering, last: str) -> None:
        """Take an id that is greater than all in the topic: another node's clock is ahead, or as fast."""
        self._ids.follow(last)
        self._rename(entering, self._ids.next())
        if self._registration.good:
            self._join(entering)

    def _rename(self, entering: _Entering, peer: str) -> None:
        peers = self._entering[entering.topic]
        del peers[entering.id]
        entering.id = peer
        peers[peer] = entering
        entering.asked = False

    def _admit(self, entering: _Entering, full: str | None = None) -> None:
        self._deadlines.clear(entering)
        if entering.proof is not None and entering.id == entering.proof.peer and not entering.stored:
            # Whether it is this node's now nobody knows; a new peer is.
            self._rename(entering, self._ids.next())
        entered, entering.entered = entering.entered, None
        if entered is not None:
            entered(Entrant(entering.id, full, entering.session if entering.stored else None))

    # Peers that come back from another node

    def _seek(self, entering: _Entering, proof: Proof) -> None:
        """Find the node that has the peer which this one says to be."""
        view = self._views[entering.topic]
        if view.current:
            self._claim(entering, view, proof)
            return
        view.calls += 1

        def found(reply: list[Any] | None) -> None:
            view.calls -= 1
            self._take_snapshot(entering.topic, view, reply)
            if entering.entered is not None:
                self._claim(entering, view, proof)
            self._check(entering.topic, view)

        self._call_sync(entering.topic, found)

    def _claim(self, entering: _Entering, view: TopicView, proof: Proof) -> None:
        other = view.others.get(proof.peer)
        if other is None:
            self._join(entering)
            return
        self._claims += 1
        self._claiming[self._claims] = entering, other.node
        data = encode(Claim(self.node, self._claims, entering.topic, proof.peer, proof.text))
        self._publisher(other.node)(data, lambda listeners: None)

    def _claimed(self, claim: Claim) -> None:
        session = self._node.lend(claim.topic, Proof(claim.peer, claim.proof))
        self._publisher(claim.reply_to)(encode(Session(claim.number, session)), lambda listeners: None)

    def _lent(self, answer: Session) -> None:
        entering, node = self._claiming.pop(answer.number, (None, ""))
        if entering is None or entering.entered is None or entering.proof is None:
            return
        if answer.session is None:
            self._join(entering)
        else:
            entering.session = answer.session
            self._move(entering, entering.proof.peer, node)

    def _move(self, entering: _Entering, peer: str, node: str) -> None:
        topic = entering.topic
        view = self._views[topic]
        view.calls += 1
        self._rename(entering, peer)
        entering.asked = True
        name = topic.encode()
        keys = [*self._keys.topic(name), self._keys.index(self.node.encode()), self._keys.index(node.encode())]
        seconds = b"%d" % KEEP_SECONDS
        arguments = [self._keys.prefix, name, seconds, self.node.encode(), node.encode(), peer.encode()]
        self._engine.call("move", keys, arguments, lambda reply: self._moved(entering, view, peer, reply))

    def _moved(self, entering: _Entering, view: TopicView, peer: str, reply: list[Any] | None) -> None:
        view.calls -= 1
        if reply is not None and reply[0] == b"moved":
            if entering.entered is None:
                # It was let in as a new peer without waiting for this, or is gone.
                self.leave(entering.topic, peer)
            else:
                entering.stored = True
            self._take_snapshot(entering.topic, view, reply)
            self._admit(entering)
        elif entering.entered is not None:
            self._rename(entering, self._ids.next())
            self._join(entering)
        self._check(entering.topic, view)

    def settle(self, topic: str, peer: str, *, joined: bool) -> None:
        """Hand over what came for a peer that was on its way, or take it back."""
        entering = self._entering[topic].pop(peer)
        if not self._entering[topic]:
            del self._entering[topic]
        self._deadlines.clear(entering)
        entering.entered = None
        for hand_over in entering.held:
            hand_over()
        if joined and not entering.stored:
            self._doubt(topic)
        elif not joined and entering.asked:
            self.leave(topic, peer)
        self._forget_empty(topic)
        self._tell_some()

    def leave(self, topic: str, peer: str) -> None:
        """Tell the others that a peer of this node left."""
        if self._registration.reachable:
            self._call_topic(
                "leave", topic, [self.node.encode(), peer.encode()], lambda reply: self._left(topic, reply)
            )
        else:
            self._dirty[topic] = None
        self._forget_empty(topic)

    def _left(self, topic: str, reply: list[Any] | None) -> None:
        if reply is None:
            self._dirty[topic] = None

    def elsewhere(self, topic: str) -> Iterable[tuple[str, bytes | None]]:
        """List the peers of other nodes."""
        view = self._views.get(topic)
        return [(peer, other.metadata) for peer, other in view.others.items()] if view is not None else ()

    def _forget_empty(self, topic: str) -> None:
        if topic in self._views and topic not in self._entering and not any(True for _ in self._node.members(topic)):
            del self._views[topic]

    # What the store says

    def _call_topic(
        self,
        script: str,
        topic: str,
        arguments: Sequence[bytes],
        done: Callable[[list[Any] | None], None],
        more: Sequence[bytes] = (),
    ) -> None:
        name = topic.encode()
        keys = [*self._keys.topic(name), self._keys.index(self.node.encode())]
        self._engine.call(script, keys, [self._keys.prefix, name, *arguments, *more], done)

    def _doubt(self, topic: str) -> None:
        """Compare with the store as soon as it is there."""
        self._dirty[topic] = None
        self._sync_some()

    def _check(self, topic: str, view: TopicView) -> None:
        """Ask for a snapshot where one is needed and none is on its way."""
        if not view.current and not view.calls and self._views.get(topic) is view:
            self._doubt(topic)

    def _sync_some(self) -> None:
        while self._dirty and self._syncing < _SYNCS_AT_ONCE and self._registration.good:
            topic = next(iter(self._dirty))
            del self._dirty[topic]
            self._sync(topic)

    def _sync(self, topic: str) -> None:
        view = self._views.get(topic)
        if view is not None:
            view.calls += 1
        self._syncing += 1
        self._call_sync(topic, lambda reply: self._synced(topic, view, reply))

    def _call_sync(self, topic: str, done: Callable[[list[Any] | None], None]) -> None:
        own = [(peer, b"+" + (metadata or b"")) for peer, metadata in self._node.members(topic)]
        for entering in self._entering.get(topic, {}).values():
            if entering.asked and not entering.stored:
                own.append((entering.id, b"?"))
            elif entering.stored:
                own.append((entering.id, b"+" + (entering.metadata or b"")))
        self._call_topic(
            "sync",
            topic,
            [b"%d" % KEEP_SECONDS, self.node.encode(), self._registration.former.encode()],
            done,
            [part for peer, metadata in own for part in (peer.encode(), metadata)],
        )

    def _synced(self, topic: str, view: TopicView | None, reply: list[Any] | None) -> None:
        self._syncing -= 1
        if view is not None:
            view.calls -= 1
        if reply is None:
            # The next registration, or look, tries again.
            self._dirty[topic] = None
            return
        if view is not None:
            self._take_snapshot(topic, view, reply)
            self._check(topic, view)
        self._sync_some()

    def _take_snapshot(self, topic: str, view: TopicView, reply: list[Any] | None) -> None:
        if self._views.get(topic) is not view or reply is None:
            return
        _, gen, seq, stored = reply
        members = {peer.decode(): member(value) for peer, value in zip(stored[::2], stored[1::2], strict=True)}
        self._changed(topic, view, view.take_snapshot(version(gen.decode(), seq), members, self.node, self._own(topic)))

    def _event(self, event: Event) -> None:
        view = self._views.get(event.topic)
        if view is None:
            return
        own = self._own(event.topic)
        if event.kind is Kind.LEFT and event.peer in own:
            # Only this node says that of its peers; the others took it for dead.
            self._doubt(event.topic)
        self._changed(event.topic, view, view.take_event(event, self.node, own))
        self._check(event.topic, view)

    def _own(self, topic: str) -> _Own:
        return _Own(self._node, topic, self._entering.get(topic, {}))

    def _changed(self, topic: str, view: TopicView, changes: list[Change]) -> None:
        for change in changes:
            if change.kind is Kind.JOINED:
                self._node.joined(topic, change.peer, change.metadata)
            elif change.kind is Kind.LEFT:
                self._node.left(topic, change.peer)
            else:
                self._node.moved(topic, change.peer)
                self._forget_empty(topic)
        for hand_over in view.take_parked():
            hand_over()
        self._tell_some()

    # Relays

    def forward(self, topic: str, to: str, sender: str, frame: bytes, forwarding: Forwarding) -> bool | None:
        """Send a relay straight to the node that has its target."""
        view = self._views.get(topic)
        other = view.others.get(to) if view is not None else None
        if other is None:
            return None
        if not self._registration.good:
            return False
        link = self._outgoing.get(other.node)
        if link is None:
            link = self._outgoing[other.node] = Outgoing(self._origin, self._publisher(other.node))
        if not link.send((topic, to, sender, frame), forwarding, self._clock.seconds()):
            return False
        link.flush(self.node, self._registration.store_ms(_RELAY_SECONDS))
        return True

    def _publisher(self, node: str) -> Callable[[bytes, Callable[[int | None], None]], None]:
        channel = self._keys.channel(node.encode())
        return lambda data, done: self._engine.publish(channel, data, done)

    def _relays(self, relays: Relays) -> None:
        key = relays.origin, self.node
        incoming = self._incoming.get(key)
        if incoming is None:
            incoming = self._incoming[key] = Incoming(*key)
        good = self._registration.may_deliver and self._registration.store_ms() <= relays.expires
        for relay in incoming.receive(relays):
            if good:
                self._deliver(incoming, relay)
            else:
                incoming.settle(relay.number, ErrorCode.DROPPED, self._clock.seconds())
        self._tell(incoming)

    def _deliver(self, incoming: Incoming, relay: Relay) -> None:
        entering = self._entering.get(relay.topic, {}).get(relay.to)
        view = self._views.get(relay.topic)
        if entering is not None:
            # Its own peer-list comes first.
            entering.held.append(lambda: self._deliver(incoming, relay))
        elif view is None or relay.sender in view.others:
            self._hand_over(incoming, relay)
        elif not view.current:
            # The target has not heard of the sender yet.
            view.parked.append(lambda: self._deliver(incoming, relay))
        else:
            incoming.settle(relay.number, ErrorCode.DROPPED, self._clock.seconds())

    def _hand_over(self, incoming: Incoming, relay: Relay) -> None:
        def settle(code: ErrorCode | None) -> None:
            incoming.settle(relay.number, code, self._clock.seconds())
            self._tell(incoming)

        try:
            written = self._node.deliver(relay.topic, relay.to, relay.frame, (_Waiting(settle), None))
        except Rejected as rejected:
            incoming.settle(relay.number, rejected.code, self._clock.seconds())
        else:
            if written:
                incoming.settle(relay.number, None, self._clock.seconds())

    def _asked(self, ask: Ask) -> None:
        key = ask.origin, self.node
        incoming = self._incoming.setdefault(key, Incoming(*key))
        self._publish_outcomes(incoming, incoming.asked(ask, self._clock.seconds()))

    def _heard(self, outcomes: Outcomes) -> None:
        link = self._outgoing.get(outcomes.node)
        if link is not None and outcomes.origin == self._origin:
            link.hear(outcomes, self._clock.seconds())

    def _tell(self, incoming: Incoming) -> None:
        if not incoming.untold:
            return
        now = self._clock.seconds()
        if now - incoming.told_at >= _TELL_SECONDS:
            incoming.told_at = now
            self._publish_outcomes(incoming, incoming.tell())
        elif self._telling is None:
            self._telling = self._clock.callLater(_TELL_SECONDS, self._tell_later)

    def _tell_later(self) -> None:
        self._telling = None
        self._tell_all()

    def _tell_all(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        for incoming in self._incoming.values():
            if incoming.untold:
                self._publish_outcomes(incoming, incoming.tell())

    def _tell_some(self) -> None:
        for incoming in self._incoming.values():
            self._tell(incoming)

    def _publish_outcomes(self, incoming: Incoming, outcomes: Outcomes) -> None:
        # Where it is lost, the origin asks.
        self._publisher(incoming.reply_to)(encode(outcomes), lambda listeners: None)

    # What the registration says

    def registered(self) -> None:
        """Go on, or begin: the engine serves this node."""
        for entering in [each for peers in self._entering.values() for each in peers.values()]:
            if entering.entered is not None and not entering.asked:
                self._ask_for(entering)
        self._dirty |= {topic: None for topic, view in self._views.items() if not (view.current or view.calls)}
        for link in self._outgoing.values():
            link.ask(self.node, self._clock.seconds())
        self._sync_some()

    def lost(self) -> None:
        """Do without the engine: it does not answer."""
        for link in self._outgoing.values():
            link.drop_unpublished()
        for entering in [each for peers in self._entering.values() for each in peers.values()]:
            self._admit(entering)

    def doubted(self) -> None:
        """Believe nothing of what is known: events may be missing."""
        for view in self._views.values():
            view.doubt()

    def renamed(self) -> None:
        """Take up another id: this node was taken for dead."""
        self._incoming.clear()

    def died(self, node: str) -> None:
        """Give up on what was sent to a node that is dead."""
        link = self._outgoing.pop(node, None)
        if link is not None:
            link.give_up(float("inf"))

    @property
    def mentioned(self) -> Iterable[str]:
        """The nodes that have peers, or owe an answer."""
        nodes = {other.node for view in self._views.values() for other in view.others.values()}
        return nodes | {node for node, link in self._outgoing.items() if len(link)}

    def received(self, data: bytes) -> None:
        """Take what came on this node's channel."""
        try:
            message = decode(data)
        except ValueError:
            # Another version's, or a stranger's.
            return
        if isinstance(message, Event):
            self._event(message)
        elif isinstance(message, Relays):
            self._relays(message)
        elif isinstance(message, Outcomes):
            self._heard(message)
        elif isinstance(message, Ask):
            self._asked(message)
        elif isinstance(message, Claim):
            self._claimed(message)
        else:
            self._lent(message)

    # What has to be done again and again

    def _look(self) -> None:
        self._timer = self._clock.callLater(_LOOK_SECONDS, self._look)
        now = self._clock.seconds()
        self._registration.look()
        for link in self._outgoing.values():
            if self._registration.good:
                link.ask(self.node, now - _ASK_SECONDS)
            link.give_up(now - _GIVE_UP_SECONDS)
        for incoming in self._incoming.values():
            incoming.forget(now - _OUTCOME_SECONDS)
        self._incoming = {
            key: incoming for key, incoming in self._incoming.items() if not (incoming.idle and self._is_over(incoming))
        }
        self._refresh()

    def _is_over(self, incoming: Incoming) -> bool:
        return not self._registration.knows(incoming.reply_to)

    def _refresh(self) -> None:
        """See to some of the topics: what the store has of them must not expire, nor stay wrong."""
        self._looks += 1
        part = self._looks % _REFRESH_LOOKS
        topics = list(self._views)[part::_REFRESH_LOOKS]
        self._dirty |= dict.fromkeys(topics)
        self._sync_some()

    def _new_id(self) -> str:
        return "".join(self._choose.choices("0123456789abcdefghijklmnopqrstuvwxyz", k=NODE_CHARACTERS))


class _Own:
    """The peers that this node has in a topic, or is about to have."""

    def __init__(self, node: Node, topic: str, entering: dict[str, _Entering]) -> None:
        self._node = node
        self._topic = topic
        self._entering = entering

    def __contains__(self, peer: object) -> bool:
        return peer in self._entering or self._node.has(self._topic, str(peer))
