"""What tests of clusters share: nodes over one store, peers that remember what they hear, and calls with books."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.system.failing import assert_no_exception
from tests.system.twistd import Server, start

PATIENCE_SECONDS = 20.0
_RELAY_SECONDS = 0.02
_numbers = itertools.count()


def new_topic() -> str:
    """Return a topic that no other test has."""
    return f"topic-{next(_numbers)}"


def ready(server: Server) -> tuple[int, dict]:
    """Ask ``/readyz``; returns the status and the body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/readyz", timeout=PATIENCE_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for something that nobody tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def wait_until_ready(server: Server, status: int = 200) -> None:
    """Wait until ``/readyz`` says so."""
    wait_until(lambda: ready(server)[0] == status)


def listening(server: Server) -> Server:
    """Wait until it listens, and learn where."""
    server.port = int(server.wait_for(r"listening on \S+:(\d+)")[1])
    return server


@contextmanager
def nodes(urls: Sequence[str], *options: str) -> Iterator[list[Server]]:
    """Run a node for each URL of the store; those that still run at the end have to stop well."""
    with ExitStack() as stack:
        servers = [start(["--port=0", f"--backplane={url}", *options]) for url in urls]
        for server in servers:
            stack.callback(server.end)
        for server in servers:
            listening(server)
        yield servers
        for server in servers:
            if server.process.poll() is None:
                assert server.stop() == 0, server.log
            assert_no_exception(server)


class Peer:
    """A peer of a topic that remembers what it hears, as text, with the second.

    Args:
        query: of the request.

    Attributes:
        close_code: once the connection has ended.
    """

    def __init__(self, server: Server, topic: str, query: str = "") -> None:
        self.heard: list[tuple[float, str, dict]] = []
        self.close_code: int | None = None
        self._changed = threading.Condition()
        self._leaving = ExitStack()
        url = server.url + topic + query
        self._connection = self._leaving.enter_context(connect(url, open_timeout=PATIENCE_SECONDS))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._wait_for_first()

    def _wait_for_first(self) -> None:
        self.welcome = self.next(lambda message: message["type"] in ("welcome", "error"))
        self.id = self.welcome.get("selfId", "")
        if self.id:
            self.next(lambda message: message["type"] == "peer-list")

    def _read(self) -> None:
        with suppress(ConnectionClosed):
            for text in self._connection:
                with self._changed:
                    self.heard.append((time.monotonic(), text, json.loads(text)))
                    self._changed.notify_all()
        with self._changed:
            self.close_code = self._connection.close_code
            self._changed.notify_all()

    @property
    def messages(self) -> list[dict]:
        """All that it heard, in order."""
        with self._changed:
            return [message for _, _, message in self.heard]

    @property
    def view(self) -> set[str]:
        """The others, as it was told of them."""
        view: set[str] = set()
        for message in self.messages:
            if message["type"] == "peer-list":
                view = {entry["id"] for entry in message["peers"]}
            elif message["type"] == "peer-joined":
                assert message["peerId"] not in view, "told twice"
                view.add(message["peerId"])
            elif message["type"] == "peer-left":
                assert message["peerId"] in view, "told twice"
                view.remove(message["peerId"])
        return view

    def next(self, wanted: Callable[[dict], bool], seconds: float = PATIENCE_SECONDS) -> dict:
        """Wait for the first message that is wanted, of all."""
        self.wait_for(lambda: any(map(wanted, self.messages)), seconds)
        return next(filter(wanted, self.messages))

    def text(self, msg_id: str) -> str:
        """Wait for the message with that ``msgId``; returns its text."""
        self.next(lambda message: message.get("msgId") == msg_id)
        return next(text for _, text, message in self.heard if message.get("msgId") == msg_id)

    def wait_for(self, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until something is true that depends on what it heard."""
        with self._changed:
            came = self._changed.wait_for(condition, seconds)
        assert came, self.messages[-5:]

    def sees(self, *others: Peer | str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until these are all that it knows of."""
        ids = {other if isinstance(other, str) else other.id for other in others}
        self.wait_for(lambda: self.view == ids, seconds)

    def relay(self, to: str, msg_id: str = "m", payload: str = "") -> None:
        """Send one relay."""
        message = {"type": "offer", "to": to, "payload": payload, "msgId": msg_id}
        with suppress(ConnectionClosed):
            self._connection.send(json.dumps(message))

    def closed(self) -> int | None:
        """Wait for the connection's end; returns the close code."""
        self.wait_for(lambda: self.close_code is not None)
        return self.close_code

    def close(self) -> None:
        """Leave."""
        self._leaving.close()
        self._thread.join(PATIENCE_SECONDS)

    def break_off(self) -> None:
        """End the connection without a close frame."""
        with suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_SECONDS)

    @property
    def answers(self) -> dict[str, str]:
        """The codes of the errors that it heard, by ``msgId``."""
        return {message.get("msgId", ""): message["code"] for message in self.messages if message["type"] == "error"}

    def delivered(self, sender: Peer) -> list[str]:
        """Return the relays of one sender that it got, in order."""
        return [message["msgId"] for message in self.messages if message.get("from") == sender.id]


class Call:
    """Two peers that go on relaying to each other, and what became of each relay."""

    def __init__(self, first: Peer, second: Peer) -> None:
        self._name = f"call-{next(_numbers)}-"
        self._ways = (first, second), (second, first)
        self._sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_RELAY_SECONDS):
            for sender, target in self._ways:
                sender.relay(target.id, f"{self._name}{self._sent}")
            self._sent += 1

    def _delivered(self, sender: Peer, target: Peer) -> list[int]:
        names = target.delivered(sender)
        return [int(name.removeprefix(self._name)) for name in names if name.startswith(self._name)]

    def _answers(self, sender: Peer) -> dict[int, str]:
        answers = sender.answers.items()
        return {int(name.removeprefix(self._name)): code for name, code in answers if name.startswith(self._name)}

    def stop(self) -> None:
        """Send nothing more."""
        self._stop.set()
        self._thread.join()

    def goes_on(self) -> None:
        """Wait until relays arrive, both ways, that are sent from now on."""
        since = self._sent + 1
        for sender, target in self._ways:
            target.wait_for(lambda s=sender, t=target: (self._delivered(s, t) or [-1])[-1] >= since)

    def ends(self, *ways: int) -> Counter[str]:
        """Stop, and wait until each relay was delivered or answered, once, and in order; returns how often.

        Args:
            ways: 0 where only the first one's relays count, for the second one is dead.
        """
        self.stop()
        ends: Counter[str] = Counter()
        for sender, target in [self._ways[n] for n in ways or (0, 1)]:
            wait_until(lambda s=sender, t=target: self._ended(s, t) >= self._sent)
            delivered, answers = self._delivered(sender, target), self._answers(sender)
            assert delivered == [n for n in range(self._sent) if n not in answers]
            ends.update(answers.values())
            ends["delivered"] += len(delivered)
        return ends

    def _ended(self, sender: Peer, target: Peer) -> int:
        return len({*self._delivered(sender, target), *self._answers(sender)})

    def longest_gap(self) -> float:
        """Return the longest time between two arrivals at a peer."""
        gaps = []
        for sender, target in self._ways:
            times = [
                at
                for at, _, message in tuple(target.heard)
                if message.get("from") == sender.id and message["msgId"].startswith(self._name)
            ]
            gaps += [b - a for a, b in itertools.pairwise(times)]
        return max(gaps)
