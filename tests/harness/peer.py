"""Peers that record what they receive, each with a thread that reads, and calls between two of them."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.harness.delivery_log import DeliveryLog, describe
from tests.harness.raw_client import relay
from tests.harness.server import Server, wait_until
from tests.harness.wire_schema import check_from_server

PATIENCE_SECONDS = 60.0
_RELAY_SECONDS = 0.02
_numbers = itertools.count()


def new_topic() -> str:
    """Return a topic that no other test has."""
    return f"topic-{next(_numbers)}"


def receive(connection: ClientConnection) -> dict:
    """Return the next message of a plain connection."""
    return json.loads(connection.recv(PATIENCE_SECONDS))


def joined_id(connection: ClientConnection) -> str:
    """Return the id from a new peer's welcome, after its peer-list."""
    own = receive(connection)["selfId"]
    assert receive(connection)["type"] == "peer-list"
    return own


class Peer:
    """A peer of a topic that records what it receives, as text, with the second.

    Args:
        query: of the request.

    Attributes:
        close_code: once the connection has ended.
        on_message: called in the reading thread with each message.
    """

    def __init__(self, server: Server, topic: str, query: str = "") -> None:
        self.received: list[tuple[float, str, dict]] = []
        self.close_code: int | None = None
        self.on_message: list[Callable[[Peer, dict], None]] = []
        self._changed = threading.Condition()
        self._leaving = ExitStack()
        url = server.url + topic + query
        self._connection = self._leaving.enter_context(connect(url, open_timeout=PATIENCE_SECONDS))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.welcome = self.next(lambda message: message["type"] in ("welcome", "error"))
        self.id = self.welcome.get("selfId", "")
        if self.id:
            self.next(lambda message: message["type"] == "peer-list")

    def __str__(self) -> str:
        return self.id

    def _read(self) -> None:
        with suppress(ConnectionClosed):
            for text in self._connection:
                check_from_server(text)
                message = json.loads(text)
                for observe in self.on_message:
                    observe(self, message)
                with self._changed:
                    self.received.append((time.monotonic(), text, message))
                    self._changed.notify_all()
        with self._changed:
            self.close_code = self._connection.close_code
            self._changed.notify_all()

    # What it has received

    @property
    def messages(self) -> list[dict]:
        """All messages, in order."""
        with self._changed:
            return [message for _, _, message in self.received]

    @property
    def view(self) -> set[str]:
        """The other peers of the topic, as it was informed of them."""
        view: set[str] = set()
        for message in self.messages:
            if message["type"] == "peer-list":
                view = {entry["id"] for entry in message["peers"]}
            elif message["type"] == "peer-joined":
                assert message["peerId"] not in view, "announced twice"
                view.add(message["peerId"])
            elif message["type"] == "peer-left":
                assert message["peerId"] in view, "announced twice"
                view.remove(message["peerId"])
        return view

    @property
    def answers(self) -> dict[str, str]:
        """The codes of the errors, by ``msgId``."""
        return {message.get("msgId", ""): message["code"] for message in self.messages if message["type"] == "error"}

    def delivered(self, sender: Peer) -> list[str]:
        """Return the relays of one sender, in order."""
        return [message["msgId"] for message in self.messages if message.get("from") == sender.id]

    def of_type(self, kind: str) -> list[dict]:
        """Return the messages of one type, in order."""
        return [message for message in self.messages if message["type"] == kind]

    # Waiting

    def wait_for(self, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until something is true that depends on what it received."""
        with self._changed:
            came = self._changed.wait_for(condition, seconds)
        assert came, self.messages[-5:]

    def next(self, wanted: Callable[[dict], bool], seconds: float = PATIENCE_SECONDS) -> dict:
        """Wait for the first message that is wanted, of all."""
        self.wait_for(lambda: any(map(wanted, self.messages)), seconds)
        return next(filter(wanted, self.messages))

    def event(self, kind: str, peer: str) -> None:
        """Wait for ``peer-joined`` or ``peer-left`` of a peer."""
        self.next(lambda message: message == {"type": kind, "peerId": peer})

    def text(self, msg_id: str) -> str:
        """Wait for the message with that ``msgId``; returns its text."""
        self.next(lambda message: message.get("msgId") == msg_id)
        return next(text for _, text, message in self.received if message.get("msgId") == msg_id)

    def sees(self, *others: Peer | str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until these are all the others that it knows."""
        ids = {str(other) for other in others}
        self.wait_for(lambda: self.view == ids, seconds)

    def closed(self) -> int | None:
        """Wait for the connection's end; returns the close code."""
        self.wait_for(lambda: self.close_code is not None)
        return self.close_code

    # What it does

    def relay(self, to: str, msg_id: str = "m", payload: str = "") -> None:
        """Send one relay."""
        with suppress(ConnectionClosed):
            self._connection.send(relay(to, payload, msg_id).decode())

    def close(self) -> None:
        """Leave."""
        self._leaving.close()
        self._thread.join(PATIENCE_SECONDS)

    def break_off(self) -> None:
        """End the connection without a close frame."""
        with suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_SECONDS)


class Call:
    """Two peers that relay to each other at a fixed rate, and what became of each relay.

    Args:
        payload: of each relay.
    """

    def __init__(self, first: Peer, second: Peer, payload: str = "") -> None:
        self.first, self.second = first, second
        self._payload = payload
        self._log = DeliveryLog()
        # The log's msgIds are unique within the call.
        self._prefix = f"call-{next(_numbers)}-"
        self._changed = threading.Condition()
        self._stop = threading.Event()
        for peer in (first, second):
            peer.on_message.append(self._received)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_RELAY_SECONDS):
            for sender, target in ((self.first, self.second), (self.second, self.first)):
                with self._changed:
                    msg_id = self._log.sent(sender, target)
                sender.relay(target.id, self._prefix + msg_id, self._payload)

    def _received(self, peer: Peer, message: dict) -> None:
        prefix, found, msg_id = message.get("msgId", "").rpartition("-")
        if prefix + found != self._prefix:
            return
        with self._changed:
            if message["type"] == "error":
                self._log.answered(msg_id, peer, message["code"])
            else:
                self._log.delivered(msg_id, peer)
            self._changed.notify_all()

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            came = self._changed.wait_for(condition, PATIENCE_SECONDS)
            assert came, [describe(each) for each in [*self._log.relays.values()][-5:]]

    def goes_on(self, relays: int = 1) -> None:
        """Wait until so many relays arrive, both ways, that are sent from now on."""
        with self._changed:
            since = self._log.count["sent"]
        for sender in (self.first, self.second):
            self._wait_for(lambda s=sender: self._delivered_since(s, since) >= relays)

    def _delivered_since(self, sender: Peer, since: int) -> int:
        later = itertools.islice(self._log.relays.values(), since, None)
        return sum(each.sender is sender and each.delivered_at is not None for each in later)

    def stop(self) -> None:
        """Send nothing more."""
        self._stop.set()
        self._thread.join()

    def ends(self, *senders: Peer) -> Counter[str]:
        """Stop, and wait until each relay was delivered or answered, once, and in order; returns how often.

        Args:
            senders: whose relays count, because the others are dead; by default those of both.
        """
        self.stop()
        counted = senders or (self.first, self.second)
        self._wait_for(lambda: not any(self._log.open(sender) for sender in counted))
        ends = Counter(each.outcome for each in self._log.relays.values() if each.sender in counted)
        assert not self._log.breaches, self._log.examples
        assert not ends["both"]
        return ends


class Observers(Call):
    """Two peers of a new topic who relay to each other, to show that nothing else disturbs them.

    Attributes:
        topic: theirs alone, until a test joins it.
    """

    def __init__(self, server: Server, topic: str = "") -> None:
        self.topic = topic or new_topic()
        super().__init__(Peer(server, self.topic), Peer(server, self.topic), "x" * 1000)

    @property
    def events(self) -> list[dict]:
        """What the first of them was informed of besides the second one, in order."""
        events = [message for message in self.first.messages if "peerId" in message]
        return [event for event in events if event["peerId"] != self.second.id]

    def sees_joining(self) -> str:
        """Wait until a peer joins; returns its id."""
        return self.first.next(
            lambda message: message["type"] == "peer-joined" and message["peerId"] != self.second.id
        )["peerId"]

    def sees_leaving(self, count: int) -> None:
        """Wait until so many peers have left."""
        wait_until(lambda: sum(event["type"] == "peer-left" for event in self.events) >= count)

    def check(self) -> None:
        """Stop; fails if a relay was lost or answered."""
        self.goes_on()
        assert self.ends().keys() == {"delivered"}


@contextmanager
def observed(server: Server, topic: str = "") -> Iterator[Observers]:
    """Let two peers relay to each other; if they are disturbed, the test fails."""
    observers = Observers(server, topic)
    try:
        yield observers
        observers.check()
    finally:
        observers.stop()
        observers.first.close()
        observers.second.close()
