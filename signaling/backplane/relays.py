"""Relays to and from the peers of other nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from signaling.backplane.membership import Registration
from signaling.backplane.messages import Ask, Outcomes, Relay, Relays
from signaling.backplane.presence import Entrants, Presence
from signaling.backplane.relay_link import Incoming, Outgoing, RemoteSender
from signaling.backplane.store import Store
from signaling.core.interfaces import Forwarding, Node
from signaling.errors import ErrorCode, Rejected
from signaling.timing.clock import Clock

# Under load the outcomes of many relays are told together.
_TELL_SECONDS = 0.005
_ASK_SECONDS = 2.0
_GIVE_UP_SECONDS = 40.0
_EXPIRE_SECONDS = 30.0
_REMEMBER_SECONDS = 60.0


class Relaying:
    """Sends and takes relays.

    Args:
        new_origin: makes up whose numbers the relays to a node have.
        clock: tells the time.
        store: reaches the other nodes.
        presence: knows who is where.
        entrants: peers of this node that have no peer-list yet.
        registration: knows whether this node may deliver.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a relay depends on
        self,
        new_origin: Callable[[], str],
        clock: Clock,
        store: Store,
        presence: Presence,
        entrants: Entrants,
        registration: Registration,
    ) -> None:
        self._new_origin = new_origin
        self._clock = clock
        self._store = store
        self._presence = presence
        self._entrants = entrants
        self._registration = registration
        self._node: Node
        self._outgoing: dict[str, Outgoing] = {}
        # Of relays that came to another node by a hand-off: that node and the link, by origin.
        self._handed_off: dict[str, tuple[str, Outgoing]] = {}
        self._incoming: dict[tuple[str, str], Incoming] = {}
        self._timer: Any = None

    def start(self, node: Node) -> None:
        """Deliver to ``node``."""
        self._node = node

    @property
    def forwarding(self) -> int:
        """How many relays to other nodes have no outcome yet."""
        return sum(len(link) for _, link in self._links)

    @property
    def nodes(self) -> set[str]:
        """The nodes that owe an answer."""
        return {node for node, link in self._links if len(link)}

    @property
    def _links(self) -> list[tuple[str, Outgoing]]:
        return [*self._outgoing.items(), *self._handed_off.values()]

    # To other nodes

    def forward(self, topic: str, to: str, sender: str, frame: bytes, forwarding: Forwarding) -> bool | None:
        """Send a relay straight to the node that has its target; as ``Backplane.forward``."""
        other = self._presence.other(topic, to)
        if other is None:
            return None
        if not self._registration.good or other.node == self._store.node:
            return False
        link = self._outgoing.get(other.node)
        if link is None:
            link = self._outgoing[other.node] = Outgoing(self._new_origin(), self._teller(other.node))
        if not link.send((topic, to, sender, frame), forwarding, self._clock.seconds()):
            return False
        self._flush(link)
        return True

    def _flush(self, link: Outgoing) -> None:
        link.flush(self._store.node, self._registration.store_ms(_EXPIRE_SECONDS))

    def _teller(self, node: str) -> Callable[[Relays | Ask, Callable[[int | None], None]], None]:
        return lambda message, done: self._store.tell(node, message, done)

    def hear(self, outcomes: Outcomes) -> None:
        """Take what another node says of relays."""
        handed_off = self._handed_off.get(outcomes.origin)
        link = handed_off[1] if handed_off is not None else self._outgoing.get(outcomes.node)
        if link is not None and outcomes.origin == link.origin:
            link.hear(outcomes, self._clock.seconds())

    def go_on(self) -> None:
        """Ask what became of everything, for answers may have been lost, and send what waits."""
        for _, link in self._links:
            link.ask(self._store.node, self._clock.seconds())
            self._flush(link)

    def publish_all(self) -> None:
        """Send what waits behind other relays: what is said after this call must not overtake it."""
        for link in self._outgoing.values():
            link.flush(self._store.node, self._registration.store_ms(_EXPIRE_SECONDS), at_once=True)

    def drop_unpublished(self) -> None:
        """Give up on what cannot be sent for now."""
        for link in self._outgoing.values():
            link.drop_unpublished()

    def died(self, node: str) -> None:
        """Give up on what was sent to a node that is dead."""
        dead = [link for owner, link in self._links if owner == node]
        self._outgoing.pop(node, None)
        self._handed_off = {origin: pair for origin, pair in self._handed_off.items() if pair[0] != node}
        for link in dead:
            link.give_up(float("inf"))

    def look(self) -> None:
        """Ask where an answer is long in coming, and forget what is over; to be called once a second."""
        now = self._clock.seconds()
        for _, link in self._links:
            if self._registration.good:
                link.ask(self._store.node, now - _ASK_SECONDS)
            link.give_up(now - _GIVE_UP_SECONDS)
        knows = self._registration.knows
        self._outgoing = {node: link for node, link in self._outgoing.items() if len(link) or knows(node)}
        self._handed_off = {origin: pair for origin, pair in self._handed_off.items() if len(pair[1])}
        for incoming in self._incoming.values():
            incoming.forget(now - _REMEMBER_SECONDS)
        self._incoming = {
            key: each
            for key, each in self._incoming.items()
            if not each.idle or (each.is_link and knows(each.reply_to))
        }

    # Relays that go from one node to another with the session of their target or of their sender

    def expect(self, origin: str, node: str, forwardings: Mapping[int, Forwarding]) -> None:
        """Have another node tell the outcomes of relays that it owes to this one by a hand-off."""
        if forwardings:
            link = Outgoing(origin, self._teller(node))
            link.expect(forwardings, self._clock.seconds())
            self._handed_off[origin] = node, link
            # It may have told some of them before this node knew that it would.
            link.ask(self._store.node, self._clock.seconds())

    def owe(self, origin: str, reply_to: str, numbers: Collection[int]) -> Callable[[int, ErrorCode | None], None]:
        """Owe another node the outcomes of relays; returns what takes each number with its outcome, None for written.

        Until then that node is told that they are held.
        """
        incoming = self._from(origin) if numbers else Incoming(origin, self._store.node)
        incoming.owe(numbers, reply_to)
        return lambda number, code: self._settle(incoming, number, code)

    def disown(self, origin: str) -> None:
        """Know no more of what is owed: whoever asks is told that it is dropped."""
        self._incoming.pop((origin, self._store.node), None)

    # From other nodes

    def forget_incoming(self) -> None:
        """Begin anew: nobody sends to this node's former id any more."""
        self._incoming.clear()

    def take(self, relays: Relays) -> None:
        """Deliver what came, and say what became of it."""
        incoming = self._from(relays.origin)
        for relay in incoming.receive(relays):
            self._deliver(incoming, relay, relays.expires)

    def _expects(self, incoming: Incoming, expires: int) -> bool:
        """Tell whether the origin has not been told yet that nothing comes of it."""
        alive = incoming.node == self._store.node and self._registration.may_deliver
        return alive and self._registration.store_ms() <= expires

    def _from(self, origin: str) -> Incoming:
        key = origin, self._store.node
        incoming = self._incoming.get(key)
        if incoming is None:
            incoming = self._incoming[key] = Incoming(*key)
        return incoming

    def _deliver(self, incoming: Incoming, relay: Relay, expires: int) -> None:
        if not self._expects(incoming, expires):
            self._settle(incoming, relay.number, ErrorCode.DROPPED)
            return
        entrant = self._entrants.find(relay.topic, relay.to)
        view = self._presence.find(relay.topic)
        if entrant is not None:
            # Its own peer-list comes first.
            entrant.held.append(lambda: self._deliver(incoming, relay, expires))
        elif view is not None and (
            relay.sender in view.unannounced or (not view.current and (view.parked or relay.sender not in view.others))
        ):
            # The target has not heard of the sender yet, or an earlier relay waits for the same.
            view.parked.append(lambda: self._deliver(incoming, relay, expires))
        elif view is None or relay.sender in view.others:
            self._hand_over(incoming, relay)
        else:
            self._settle(incoming, relay.number, ErrorCode.DROPPED)

    def _hand_over(self, incoming: Incoming, relay: Relay) -> None:
        sender = RemoteSender(lambda code: self._settle(incoming, relay.number, code))
        try:
            written = self._node.deliver(relay.topic, relay.to, relay.frame, (sender, None))
        except Rejected as rejected:
            # Who went on at another node is in the topic, and its sender has been told of nothing else.
            is_elsewhere = self._presence.is_elsewhere(relay.topic, relay.to)
            self._settle(incoming, relay.number, ErrorCode.DROPPED if is_elsewhere else rejected.code)
        else:
            if written:
                self._settle(incoming, relay.number, None)
            else:
                incoming.hold(relay.number)
                self._tell_soon(incoming)

    def _settle(self, incoming: Incoming, number: int, code: ErrorCode | None) -> None:
        incoming.settle(number, code, self._clock.seconds())
        self._tell_soon(incoming)

    def _tell_soon(self, incoming: Incoming) -> None:
        if self._timer is None:
            delay = incoming.told_at + _TELL_SECONDS - self._clock.seconds()
            self._timer = self._clock.callLater(max(0.0, delay), self._tell_later)

    def answer(self, ask: Ask) -> None:
        """Say what became of relays that another node asks about."""
        incoming = self._from(ask.origin)
        self._store.tell(ask.reply_to, incoming.asked(ask, self._clock.seconds()))

    def _tell_later(self) -> None:
        self._timer = None
        self.tell_all()

    def tell_all(self) -> None:
        """Say what has not been said yet, without any further wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for incoming in self._incoming.values():
            if incoming.untold:
                incoming.told_at = self._clock.seconds()
                # Where it is lost, the origin asks.
                self._store.tell(incoming.reply_to, incoming.tell())
