"""Relays to and from the peers of other nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from signaling.backplane.membership import Membership
from signaling.backplane.messages import OutcomeQuery, Outcomes, Relay, RelayBatch
from signaling.backplane.pending_joins import PendingJoins
from signaling.backplane.relay_link import IncomingLink, OutgoingLink, RemoteSender
from signaling.backplane.replicas import Replicas
from signaling.backplane.store import Store
from signaling.core.interfaces import Forwarding, Node
from signaling.errors import ErrorCode, Rejected
from signaling.timing.clock import Clock

# Under load the outcomes of many relays are reported together.
_REPORT_SECONDS = 0.005
_QUERY_SECONDS = 2.0
_GIVE_UP_SECONDS = 40.0
_EXPIRE_SECONDS = 30.0
_REMEMBER_SECONDS = 60.0


class RemoteRelays:
    """Sends relays to other nodes, and delivers theirs.

    Args:
        new_origin: makes the name of a series of numbers.
        clock: for timeouts.
        store: to send to other nodes.
        membership: says whether this node may deliver.
        replicas: know which node has a peer.
        pending: peers of this node that have no peer-list yet.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a relay depends on
        self,
        new_origin: Callable[[], str],
        clock: Clock,
        store: Store,
        membership: Membership,
        replicas: Replicas,
        pending: PendingJoins,
    ) -> None:
        self._new_origin = new_origin
        self._clock = clock
        self._store = store
        self._membership = membership
        self._replicas = replicas
        self._pending = pending
        self._node: Node
        self._outgoing: dict[str, OutgoingLink] = {}
        # The node and the link of relays that a hand-off took to another node, by origin.
        self._handed_off: dict[str, tuple[str, OutgoingLink]] = {}
        # By origin, and the id that this node had when they were sent.
        self._incoming: dict[tuple[str, str], IncomingLink] = {}
        self._report_call: Any = None

    def start(self, node: Node) -> None:
        """Deliver to ``node``."""
        self._node = node

    @property
    def forwarding(self) -> int:
        """How many relays to other nodes have no outcome yet."""
        return sum(len(link) for _, link in self._links)

    @property
    def nodes(self) -> set[str]:
        """The nodes that owe an outcome."""
        return {node for node, link in self._links if len(link)}

    @property
    def _links(self) -> list[tuple[str, OutgoingLink]]:
        return [*self._outgoing.items(), *self._handed_off.values()]

    # To other nodes

    def forward(self, topic: str, to: str, sender: str, frame: bytes, forwarding: Forwarding) -> bool | None:
        """Send a relay straight to the node that has its target; as ``Backplane.forward``."""
        member = self._replicas.remote_member(topic, to)
        if member is None:
            return None
        if not self._membership.is_registered or member.node == self._store.node:
            return False
        link = self._outgoing.get(member.node)
        if link is None:
            link = OutgoingLink(self._new_origin(), partial(self._store.send, member.node))
            self._outgoing[member.node] = link
        if not link.send((topic, to, sender, frame), forwarding, self._clock.seconds()):
            return False
        self._flush(link)
        return True

    def _flush(self, link: OutgoingLink, *, at_once: bool = False) -> None:
        link.flush(self._store.node, self._membership.store_ms(_EXPIRE_SECONDS), at_once=at_once)

    def apply_outcomes(self, outcomes: Outcomes) -> None:
        """Report the outcomes that another node sent to the senders."""
        handed_off = self._handed_off.get(outcomes.origin)
        link = handed_off[1] if handed_off is not None else self._outgoing.get(outcomes.node)
        if link is not None and outcomes.origin == link.origin:
            link.apply_outcomes(outcomes, self._clock.seconds())

    def resume(self) -> None:
        """Ask for all outcomes, because some may have been lost, and send what waits."""
        for _, link in self._links:
            link.query(self._store.node, self._clock.seconds())
            self._flush(link)

    def publish_all(self) -> None:
        """Publish what waits behind other relays: what is sent after this call must not overtake it."""
        for link in self._outgoing.values():
            self._flush(link, at_once=True)

    def drop_unpublished(self) -> None:
        """Drop what cannot be sent for now."""
        for link in self._outgoing.values():
            link.drop_unpublished()

    def drop_sent_to(self, node: str) -> None:
        """Drop what was sent to a node that is dead."""
        dead = [link for owner, link in self._links if owner == node]
        self._outgoing.pop(node, None)
        self._handed_off = {origin: pair for origin, pair in self._handed_off.items() if pair[0] != node}
        for link in dead:
            link.give_up(float("inf"))

    def check(self) -> None:
        """Ask for outcomes that are overdue, and forget what is over; to be called once a second."""
        now = self._clock.seconds()
        for _, link in self._links:
            if self._membership.is_registered:
                link.query(self._store.node, now - _QUERY_SECONDS)
            link.give_up(now - _GIVE_UP_SECONDS)
        is_alive = self._membership.is_alive
        self._outgoing = {node: link for node, link in self._outgoing.items() if len(link) or is_alive(node)}
        self._handed_off = {origin: pair for origin, pair in self._handed_off.items() if len(pair[1])}
        for incoming in self._incoming.values():
            incoming.forget(now - _REMEMBER_SECONDS)
        self._incoming = {
            key: link
            for key, link in self._incoming.items()
            if not link.is_idle or (link.has_batches and is_alive(link.reply_to))
        }

    # Relays that go from one node to another with the session of their target or of their sender

    def await_outcomes(self, origin: str, node: str, forwardings: Mapping[int, Forwarding]) -> None:
        """Wait for the outcomes of relays that another node has by a hand-off."""
        if forwardings:
            link = OutgoingLink(origin, partial(self._store.send, node))
            link.await_outcomes(forwardings, self._clock.seconds())
            self._handed_off[origin] = node, link
            # That node may have reported some of them before this one waited for them.
            link.query(self._store.node, self._clock.seconds())

    def adopt(self, origin: str, reply_to: str, numbers: Collection[int]) -> Callable[[int, ErrorCode | None], None]:
        """Report to another node the outcomes of relays that this one has by a hand-off.

        Returns:
            What has to be called with each number and its outcome, None for written; until then the relay is held.
        """
        link = self._incoming_link(origin) if numbers else IncomingLink(origin, self._store.node)
        link.adopt(numbers, reply_to)
        return partial(self._finish, link)

    def forget_adopted(self, origin: str) -> None:
        """Forget relays of a hand-off: if their outcomes are asked for, they are dropped."""
        self._incoming.pop((origin, self._store.node), None)

    # From other nodes

    def forget_incoming(self) -> None:
        """Forget all links to this node: it has another id now, and nothing more comes for the former one."""
        self._incoming.clear()

    def receive(self, batch: RelayBatch) -> None:
        """Deliver relays, and report their outcomes."""
        link = self._incoming_link(batch.origin)
        for relay in link.receive(batch):
            self._deliver(link, relay, batch.expires)

    def _incoming_link(self, origin: str) -> IncomingLink:
        key = origin, self._store.node
        link = self._incoming.get(key)
        if link is None:
            link = self._incoming[key] = IncomingLink(*key)
        return link

    def _deliver(self, link: IncomingLink, relay: Relay, expires: int) -> None:
        """Deliver a relay, or keep it until its target has its peer-list and the sender was announced to it."""
        # Else the origin may have reported already that the relay was dropped.
        may_deliver = link.node == self._store.node and self._membership.has_lease
        if not may_deliver or self._membership.store_ms() > expires:
            self._finish(link, relay.number, ErrorCode.DROPPED)
            return
        join = self._pending.find(relay.topic, relay.to)
        replica = self._replicas.find(relay.topic)
        if join is not None:
            join.waiting_relays.append(partial(self._deliver, link, relay, expires))
            return
        if replica is not None and replica.must_park(relay.sender):
            replica.park(partial(self._deliver, link, relay, expires))
            return
        if replica is not None and replica.find(relay.sender) is None:
            self._finish(link, relay.number, ErrorCode.DROPPED)
            return
        sender = RemoteSender(partial(self._finish, link, relay.number))
        try:
            is_written = self._node.deliver(relay.topic, relay.to, relay.frame, (sender, None))
        except Rejected as rejected:
            # A target that moved away is still in the topic for its sender.
            is_remote = self._replicas.is_remote(relay.topic, relay.to)
            self._finish(link, relay.number, ErrorCode.DROPPED if is_remote else rejected.code)
        else:
            if is_written:
                self._finish(link, relay.number, None)
            else:
                link.hold(relay.number)
                self._report_soon(link)

    def _finish(self, link: IncomingLink, number: int, code: ErrorCode | None) -> None:
        link.finish(number, code, self._clock.seconds())
        self._report_soon(link)

    def _report_soon(self, link: IncomingLink) -> None:
        if self._report_call is None:
            delay = link.reported_at + _REPORT_SECONDS - self._clock.seconds()
            self._report_call = self._clock.callLater(max(0.0, delay), self.report_all)

    def answer(self, query: OutcomeQuery) -> None:
        """Send the outcomes that another node asks for."""
        outcomes = self._incoming_link(query.origin).answer(query, self._clock.seconds())
        self._store.send(query.reply_to, outcomes)

    def report_all(self) -> None:
        """Send the outcomes that have not been reported yet, at once."""
        if self._report_call is not None and self._report_call.active():
            self._report_call.cancel()
        self._report_call = None
        for link in self._incoming.values():
            if link.has_report:
                link.reported_at = self._clock.seconds()
                # If it is lost, the origin asks.
                self._store.send(link.reply_to, link.take_report())
