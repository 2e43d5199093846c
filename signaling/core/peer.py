"""One peer's session, without I/O: joining, relaying, leaving.

A peer outlives its connection: it is attached to a way out and can be detached from it. While it is detached, it is
still there, and what is relayed to it is ``dropped``.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from signaling.core import messages
from signaling.core.announcer import Announcer, Block
from signaling.core.counters import Counters
from signaling.core.interfaces import Backplane, Outbound, Receipt
from signaling.core.topics import Topic, TopicMap
from signaling.errors import ErrorCode, Rejected
from signaling.websocket.frames import text_frame

TEXTS = {
    ErrorCode.TARGET_NOT_FOUND: "peer not found",
    ErrorCode.DROPPED: "the peer takes no messages now; this one was not delivered",
}
"""What an error says of a relay, on whatever node its target was looked for."""


class Peer:
    """A member of one topic.

    Args:
        peer_id: a ULID.
        metadata: the JSON text of an object, or None.
        topics: the map that it joins and leaves.
        announcer: tells the topic's peers of this one, and this one of them.
        backplane: knows the topic's peers on other nodes.
        counters: the server's.

    Attributes:
        since: when it came to this server, in seconds of the reactor.
    """

    __slots__ = ("_announcer", "_backplane", "_counters", "_outbound", "_topics", "id", "metadata", "since", "topic")

    def __init__(  # noqa: PLR0913, PLR0917 - what a peer depends on
        self,
        peer_id: str,
        metadata: bytes | None,
        topics: TopicMap[Peer],
        announcer: Announcer,
        backplane: Backplane,
        counters: Counters,
    ) -> None:
        self.id = peer_id
        self.metadata = metadata
        self.topic: Topic[Peer] | None = None
        self.since = 0.0
        self._topics = topics
        self._announcer = announcer
        self._backplane = backplane
        self._counters = counters
        self._outbound: Outbound | None = None

    @property
    def listed_bytes(self) -> int:
        """How long this peer's entry in a ``peer-list`` is."""
        return messages.listed_bytes(self.id, self.metadata)

    @property
    def lent(self) -> bool:
        """Whether it may go on at another node by now."""
        return False

    @property
    def blocked(self) -> bool:
        """Whether what is offered has to wait."""
        return self._outbound is not None and self._outbound.blocked

    def attach(self, outbound: Outbound) -> None:
        """Send to ``outbound`` from now on."""
        self._outbound = outbound

    def detach(self) -> None:
        """Send nowhere from now on."""
        self._outbound = None

    def join(self, topic_name: str, ice_servers: bytes | None = None) -> None:
        """Join the topic: welcome, then who is there; and everyone there is told.

        Args:
            ice_servers: the JSON text of what the peer is told of them, or None.

        Raises:
            Rejected: ``topic_full``; nothing happened.
        """
        topic = self.topic = self._topics.join(topic_name, self)
        self._greet(topic, ice_servers)
        self._announcer.announce(topic, text_frame(messages.peer_joined(self.id, self.metadata)), newcomer=self)

    def _greet(self, topic: Topic[Peer], ice_servers: bytes | None) -> None:
        self._announcer.skip(topic, self)
        self._answer(messages.welcome(self.id, ice_servers))
        self._answer(messages.peer_list(self._listed(topic)))

    def _listed(self, topic: Topic[Peer]) -> Iterable[tuple[str, bytes | None]]:
        here = [(peer.id, peer.metadata) for peer in topic if peer is not self]
        elsewhere = self._backplane.remote_members(topic.name)
        # Ids increase in joining order, on whatever node they were made.
        # Who comes back is elsewhere until it is here.
        listed = [*here, *(entry for entry in elsewhere if entry[0] != self.id)]
        return sorted(listed, key=itemgetter(0)) if elsewhere else here

    def renew(self, ice_servers: bytes) -> None:
        """Tell the peer of new ICE servers."""
        self._answer(messages.ice_servers(ice_servers))

    def leave(self) -> None:
        """Leave the topic, if it is in one; and everyone there is told."""
        topic = self._leave_topic()
        if topic is not None:
            self._announcer.announce(topic, text_frame(messages.peer_left(self.id)))
            self._backplane.leave(topic.name, self.id)

    def vanish(self) -> None:
        """Leave without a word: it goes on elsewhere."""
        self._leave_topic()

    def _leave_topic(self) -> Topic[Peer] | None:
        topic, self.topic = self.topic, None
        if topic is not None:
            self._topics.leave(topic, self)
            if not topic:
                self._announcer.forget(topic)
        return topic

    def receive(self, data: bytes) -> messages.ClientMessage | Rejected:
        """Relay one message of this peer, or answer it with an error.

        Returns:
            The message where its target's queue took it, else why not.
        """
        try:
            message = messages.decode(data)
            self._relay(message)
        except Rejected as rejected:
            self.reject(rejected)
            return rejected
        return message

    def reject(self, rejected: Rejected) -> None:
        """Answer one message of this peer with an error."""
        self._counters.errors_sent[rejected.code] += 1
        self._answer(messages.error(rejected.code, rejected.text, rejected.msg_id))

    def _relay(self, message: messages.ClientMessage) -> None:
        topic = self.topic
        target = topic.get(message.to) if topic is not None else None
        frame = text_frame(messages.relayed(message, self.id))
        if target is None:
            self._forward(message, frame)
            return
        target.catch_up()
        if target.offer(frame, (self, message.msg_id)):
            counters = self._counters
            counters.relays_accepted[message.type] += 1
            counters.relayed_bytes += len(frame)
        else:
            raise self.refused(message.type, ErrorCode.DROPPED, message.msg_id)

    def _forward(self, message: messages.ClientMessage, frame: bytes) -> None:
        taken = None
        if self.topic is not None:
            forwarded = Forwarded(self, message.type, len(frame), message.msg_id)
            taken = self._backplane.forward(self.topic.name, message.to, self.id, frame, forwarded)
        if taken:
            self.relay_queued(message.msg_id)
        else:
            code = ErrorCode.TARGET_NOT_FOUND if taken is None else ErrorCode.DROPPED
            raise self.refused(message.type, code, message.msg_id)

    def delivered_elsewhere(self, kind: str, size: int) -> None:
        """Count a relay that another node wrote."""
        self._counters.relays_accepted[kind] += 1
        self._counters.relayed_bytes += size
        self._counters.relays_delivered_remotely += 1

    def refused(self, kind: str, code: ErrorCode, msg_id: bytes | None) -> Rejected:
        """Count a relay that is not delivered, and say so."""
        self._counters.relays_rejected[kind, code] += 1
        return Rejected(code, TEXTS[code], msg_id)

    def relay_queued(self, msg_id: bytes | None) -> None:
        """No-op: a peer that cannot resume has nothing to hand off."""

    def relay_written(self, msg_id: bytes | None) -> None:
        """No-op: a successful delivery needs no reply."""

    def relay_failed(self, msg_id: bytes | None, code: ErrorCode) -> None:
        """Answer a relay that was accepted and is not delivered."""
        self.reject(Rejected(code, TEXTS[code], msg_id))

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        """Hand ``frame`` to this peer's way out, if it has one that takes it."""
        return self._outbound is not None and self._outbound.offer(frame, receipt)

    def catch_up(self) -> None:
        """Take the events so far of the topic, ahead of a relay."""
        if self.topic is not None:
            self._announcer.catch_up(self.topic, self)

    def take_block(self, block: Block) -> int:
        """Take events of the topic; returns how many its way out refused."""
        if not self.blocked:
            return 0 if self._write_block(block) else len(block.events)
        for number, event in enumerate(block.events):
            if not self.offer(event):
                # A full queue refuses what comes behind it as well.
                return len(block.events) - number
        return 0

    def _write_block(self, block: Block) -> bool:
        return self._outbound is not None and self._outbound.offer(block.data)

    def _answer(self, message: bytes) -> None:
        if self._outbound is not None:
            self._outbound.answer(text_frame(message))


class Forwarded:
    """A relay that is on its way to another node."""

    __slots__ = ("_kind", "_msg_id", "_sender", "_size")

    def __init__(self, sender: Peer, kind: str, size: int, msg_id: bytes | None) -> None:
        self._sender = sender
        self._kind = kind
        self._size = size
        self._msg_id = msg_id

    def delivered(self) -> None:
        """Count it."""
        self._sender.delivered_elsewhere(self._kind, self._size)
        self._sender.relay_written(self._msg_id)

    def failed(self, code: ErrorCode) -> None:
        """Tell its sender."""
        self._sender.refused(self._kind, code, self._msg_id)
        self._sender.relay_failed(self._msg_id, code)


def return_undelivered(receipts: Iterable[Receipt], counters: Counters) -> None:
    """Tell the senders of relays that were queued for a peer and never written."""
    for sender, msg_id in receipts:
        counters.relays_undelivered += 1
        sender.relay_failed(msg_id, ErrorCode.DROPPED)
