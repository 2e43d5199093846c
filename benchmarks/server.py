"""A signaling server in a process of its own, which reports its counters on its standard output.

Every line on its standard input is a request, answered by one line of JSON: ``status`` has its counters and what the
kernel knows of the process, ``stop`` drains and ends it. The first line of its output has the port.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.stdio import StandardIO
from twisted.logger import LogEvent, globalLogBeginner, textFileLogObserver
from twisted.protocols.basic import LineOnlyReceiver

from signaling import Limits, SignalingFactory

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Cuts:
    """A log observer that records which peers the server aborted, and when, until it is asked."""

    def __init__(self) -> None:
        self._cuts: list[tuple[str, float, str]] = []

    def __call__(self, event: LogEvent) -> None:
        """Record the end of a peer that was aborted."""
        reason = str(event.get("reason", ""))
        if reason.startswith("aborted") and "peer" in event:
            self._cuts.append((event["peer"], time.monotonic(), reason))

    def take(self) -> list[tuple[str, float, str]]:
        """Return their ids, the times on the monotonic clock, which all processes share, and the reasons."""
        cuts, self._cuts = self._cuts, []
        return cuts


class Passes:
    """The reactor's poller, which measures how much CPU the process takes between two polls.

    Unlike elapsed time, this does not depend on other programs on the machine.

    Args:
        poller: that of an epoll reactor.
    """

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._began = time.process_time()
        self._longest = 0.0

    def poll(self, *arguments: Any) -> Any:
        """End a pass, wait for events, and begin the next."""
        self._longest = max(self._longest, time.process_time() - self._began)
        events = self._poller.poll(*arguments)
        self._began = time.process_time()
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def take_longest(self) -> float:
        """Return the seconds of the longest pass since the last time."""
        longest, self._longest = self._longest, 0.0
        return longest


def process_status() -> dict[str, float]:
    """Return what the kernel knows of this process: resident memory, open descriptors, CPU seconds.

    ``starved_seconds`` is how long it was ready to run and others had its core.
    """
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    # The name of the program stands in parentheses and may hold spaces.
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    starved_ns = int(Path("/proc/self/schedstat").read_text().split()[1])
    return {
        "starved_seconds": starved_ns / 1e9,
        "resident_bytes": resident_pages * _PAGE_BYTES,
        # The listing opens a descriptor of its own.
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,
        "cpu_seconds": (int(stat[11]) + int(stat[12])) / _TICKS_PER_SECOND,
    }


def server_status(factory: SignalingFactory) -> dict[str, Any]:
    """Return the server's counters, for JSON."""
    counters = factory.counters
    return {
        "accepted": counters.total_relays_accepted,
        "undelivered": counters.relays_undelivered,
        "written": factory.relays_written,
        "waiting": factory.relays_queued,
        "refused": {str(code): count for code, count in counters.errors_sent.items()},
        "events_dropped": counters.events_dropped,
        "connections": len(factory.connections),
        "topics": len(factory.topics),
    }


class SideChannel(LineOnlyReceiver):
    """Answers requests about one server."""

    delimiter = b"\n"

    def __init__(self, factory: SignalingFactory, cuts: Cuts, passes: Passes, port: int) -> None:
        self._factory = factory
        self._passes = passes
        self._cuts = cuts
        self._port = port

    def connectionMade(self) -> None:
        """Send the port."""
        self._answer({"port": self._port})

    def lineReceived(self, line: bytes) -> None:
        """Answer one request."""
        status = {"time": time.monotonic(), **server_status(self._factory), **process_status()}
        status["longest_pass_seconds"] = self._passes.take_longest()
        self._answer({**status, "cuts": self._cuts.take()})
        if line == b"stop":
            # It ends when the answer is out.
            self.transport.loseConnection()

    def connectionLost(self, reason: object = None) -> None:
        """End with the process that asked."""
        if reactor.running:
            reactor.stop()

    def _answer(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())


def main() -> None:
    """Serve on a free port of the loopback until told to stop; the only argument is ``Limits`` as a JSON object."""
    cuts = Cuts()
    passes: Any = Passes(reactor._poller)
    reactor._poller = passes
    # Formatting the log is a part of the server's work; and that of a load is not kept.
    with open(os.devnull, "w") as nowhere:
        observers = [textFileLogObserver(nowhere), cuts]
        globalLogBeginner.beginLoggingTo(observers, discardBuffer=True, redirectStandardIO=False)
        factory = SignalingFactory(Limits(**json.loads(sys.argv[1])))
        listening = TCP4ServerEndpoint(reactor, 0, backlog=1024, interface="127.0.0.1").listen(factory)
        listening.addCallback(lambda port: StandardIO(SideChannel(factory, cuts, passes, port.getHost().port)))
        reactor.addSystemEventTrigger("before", "shutdown", factory.shutdown.drain)
        reactor.run()


if __name__ == "__main__":
    main()
