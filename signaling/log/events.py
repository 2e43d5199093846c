"""What the log tells: every event with its name and its fields, in one place.

Names and fields are stable, and listed in docs/operations.md. No payload, metadata, token or secret is a field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from constantly import NamedConstant
from twisted.logger import (
    FilteringLogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    globalLogPublisher,
)
from twisted.scripts._twistd_unix import UnixAppLogger

from signaling.admission.rate_limit import TokenBucket
from signaling.core.messages import ClientMessage
from signaling.errors import Rejected
from signaling.timing.clock import Clock
from signaling.timing.fair_scheduler import FairScheduler

# Each line is some 150 bytes: however many are refused, a day fills no more than 130 MB.
_REFUSALS_PER_SECOND = 10.0
_REFUSALS_AT_ONCE = 100
_STORE_ERRORS_PER_SECOND = 1.0
# A line takes longer than the end of a connection.
_LINES_PER_PASS = 16
_LINES_AT_ONCE = 64
_LINES_PER_SECOND = 1000.0
# Each holds some 500 bytes while it waits.
_MOST_LINES_WAITING = 10_000


class Lines:
    """Lines of a log that may come by thousands together: they are written at once, or in turns if there are many.

    If there are too many to wait, the rest is written at once again.

    Args:
        clock: tells the time, and calls for the next pass of the reactor.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at_once = TokenBucket(_LINES_PER_SECOND, _LINES_AT_ONCE)
        self._turns: FairScheduler[Callable[[], None]] = FairScheduler(clock, _LINES_PER_PASS, lambda write: write())

    def write(self, line: Callable[[], None]) -> None:
        """Write a line now, or in turn.

        Args:
            line: writes it.
        """
        now = self._clock.seconds()
        if len(self._turns) >= _MOST_LINES_WAITING:
            # They come faster than turns are given; nobody may make the server grow by that.
            line()
        elif self._turns or self._at_once.left(now) < 1:
            self._turns.add(line)
        else:
            self._at_once.take(now)
            line()

    def finish(self) -> None:
        """Write all lines that wait."""
        self._turns.finish()


class Events:
    """The log of one server.

    Args:
        level: events below it are not logged.
        seconds: tells the time.

    Attributes:
        debug: whether each message is logged.
        info: whether each join is. Asked before an event is made, which takes more than most of what the server does.
    """

    def __init__(self, level: NamedConstant, seconds: Callable[[], float]) -> None:
        predicate = LogLevelFilterPredicate(defaultLogLevel=level)
        self.log = Logger(namespace="signaling", observer=FilteringLogObserver(globalLogPublisher, [predicate]))
        self.debug = level <= LogLevel.debug
        self.info = level <= LogLevel.info
        self._seconds = seconds
        self._refusals = TokenBucket(_REFUSALS_PER_SECOND, _REFUSALS_AT_ONCE)
        self._unlogged = 0
        self._store_errors = TokenBucket(_STORE_ERRORS_PER_SECOND, 1)
        self._unlogged_store_errors = 0

    # Peers

    def joined(self, peer: str, topic: str, address: str | None) -> None:
        """A peer joined."""
        self._peer("joined", "{peer} joined {topic!r} from {address}", peer, topic, address=address)

    def came_back(self, peer: str, topic: str, address: str | None) -> None:
        """A peer came back on another connection."""
        self._peer("came_back", "{peer} came back to {topic!r} from {address}", peer, topic, address=address)

    def moved(self, peer: str, topic: str) -> None:
        """A peer came back to another node, and is that node's now."""
        self._peer("moved", "{peer} of {topic!r} goes on at another node", peer, topic)

    def turned_away(self, topic: str, address: str | None, reason: str) -> None:
        """A peer could not join, because its topic was full."""
        if self.info:
            text = "{address} was refused {topic!r}: {reason}"
            self.log.info(text, event="turned_away", topic=topic, address=address, reason=reason)

    def lost(self, peer: str, topic: str, reason: str) -> None:
        """A peer lost its connection, and may come back."""
        self._peer("lost", "{peer} may come back to {topic!r}: {reason}", peer, topic, reason=reason)

    def left(self, peer: str, topic: str, reason: str, since: float) -> None:
        """A peer is gone.

        Args:
            since: when it came to this server, by the clock of ``seconds``.
        """
        if self.info:
            text = "{peer} left {topic!r}: {reason}"
            self._peer("left", text, peer, topic, reason=reason, duration=round(self._seconds() - since, 3))

    def _peer(self, event: str, text: str, peer: str, topic: str, **fields: Any) -> None:
        if self.info:
            self.log.info(text, event=event, peer=peer, topic=topic, **fields)

    # Messages

    def message(self, peer: str, outcome: ClientMessage | Rejected) -> None:
        """A peer's message was relayed, or answered with an error."""
        if not self.debug:
            return
        if isinstance(outcome, Rejected):
            text = "{peer} was answered {code}: {reason}"
            self.log.debug(text, event="answered", peer=peer, code=str(outcome.code), reason=outcome.text)
        else:
            text = "{peer} relayed {type} of {size} bytes to {to}"
            size = len(outcome.payload or b"")
            self.log.debug(text, event="relayed", peer=peer, type=outcome.type, size=size, to=outcome.to)

    # Requests

    def refused(self, address: str, status: int | None, reason: str) -> None:
        """A request did not become a peer.

        Args:
            status: of the answer; None where there was none.
        """
        if self._refusals.left(self._seconds()) < 1:
            self._unlogged += 1
            return
        self._refusals.take(self._seconds())
        if self._unlogged:
            unlogged, self._unlogged = self._unlogged, 0
            self.log.info("{count} more requests were refused, too many to list", event="refusals", count=unlogged)
        shown = reason if status is None else f"{status} {reason}"
        self.log.info(
            "refused a request from {address}: {shown}",
            event="refused",
            address=address,
            status=status,
            reason=reason,
            shown=shown,
        )

    # The backplane

    def node_registered(self, node: str) -> None:
        """The store serves this node, at first or again."""
        self.log.info("node {node} serves its cluster", event="node_registered", node=node)

    def node_unregistered(self, reason: str) -> None:
        """The store does not serve this node."""
        text = "the cluster is out of reach, peers here go on among themselves: {reason}"
        self.log.warn(text, event="node_unregistered", reason=reason)

    def node_evicted(self, node: str) -> None:
        """Another node had sent no heartbeat for too long, and its peers leave."""
        self.log.warn(
            "node {node} sends no heartbeats and is evicted; its peers leave", event="node_evicted", node=node
        )

    def this_node_evicted(self, node: str) -> None:
        """The other nodes had evicted this node."""
        text = "the other nodes have evicted node {node}, this one; it goes on under a new id"
        self.log.warn(text, event="this_node_evicted", node=node)

    def clocks_differ(self, seconds: float) -> None:
        """The store's wall clock is ahead of this node's by so many seconds, or behind if they are negative."""
        text = "the wall clocks of this node and of its store differ by {seconds} s: set the one that is wrong"
        self.log.warn(text, event="clocks_differ", seconds=seconds)

    def backplane_connected(self, where: str) -> None:
        """The store takes calls, at first or again."""
        self.log.info("the backplane {where} is connected", event="backplane_connected", where=where)

    def backplane_lost(self, where: str, reason: str) -> None:
        """The store cannot be reached, and is tried again and again."""
        text = "the backplane {where} is not connected: {reason}"
        self.log.warn(text, event="backplane_lost", where=where, reason=reason)

    def backplane_error(self, where: str, code: str, reason: str) -> None:
        """The store answered with an error; at most one a second is logged."""
        if self._store_errors.left(self._seconds()) < 1:
            self._unlogged_store_errors += 1
            return
        self._store_errors.take(self._seconds())
        count, self._unlogged_store_errors = self._unlogged_store_errors + 1, 0
        text = "the backplane {where} answered with an error ({count} times): {reason}"
        self.log.error(text, event="backplane_error", where=where, code=code, reason=reason, count=count)

    # The server

    def listening(self, address: str) -> None:
        """The server listens."""
        self.log.info("listening on {address}", event="listening", address=address)

    def not_listening(self, reason: str) -> None:
        """The server cannot listen, after it has started."""
        self.log.critical("{reason}", event="not_listening", reason=reason)

    def few_connections(self, most: int, missing: int) -> None:
        """The server takes fewer connections than were asked for."""
        text = (
            "--max-connections: the limit on open files leaves room for {most}, which is {missing} less; raise it"
            " (ulimit -n, or LimitNOFILE= in systemd)"
        )
        self.log.warn(text, event="few_connections", most=most, missing=missing)

    def reloaded(self, where: str) -> None:
        """New connections are given the certificate that is in its files now."""
        self.log.info("{where}: the certificate was read anew", event="reloaded", where=where)

    def nothing_to_reload(self) -> None:
        """There is no certificate."""
        self.log.info("SIGHUP: there is no certificate to read", event="nothing_to_reload")

    def not_reloaded(self, where: str, reason: str) -> None:
        """A certificate could not be read anew, and the one before is kept."""
        text = "{where}: the certificate was not read anew, the one before is kept: {reason}"
        self.log.error(text, event="not_reloaded", where=where, reason=reason)

    # Workers

    def worker_started(self, worker: int, pid: int) -> None:
        """A worker is ready for connections."""
        self.log.info("worker {worker} is ready, as process {pid}", event="worker_started", worker=worker, pid=pid)

    def worker_died(self, worker: int, reason: str, seconds: float) -> None:
        """A worker ended, and nobody had told it to.

        Args:
            seconds: until it is started again.
        """
        text = "worker {worker} died: {reason}; it starts again {when}"
        when = f"in {seconds:g} s" if seconds else "now"
        self.log.error(text, event="worker_died", worker=worker, reason=reason, seconds=seconds, when=when)

    def worker_killed(self, worker: int, reason: str) -> None:
        """A worker did not answer, or did not end when it was told to."""
        self.log.error("worker {worker} was killed: {reason}", event="worker_killed", worker=worker, reason=reason)

    def worker_said(self, worker: int, line: str) -> None:
        """A worker wrote past its log: an error before there was one, or one of the interpreter itself."""
        self.log.warn("worker {worker}: {line}", event="worker_said", worker=worker, line=line)

    def log_lost(self, count: int) -> None:
        """Lines of a worker's log did not reach the listener."""
        self.log.warn("{count} lines of the log were lost", event="log_lost", count=count)

    # The process

    def signal(self, name: str, *, again: bool) -> None:
        """The process was told to stop."""
        text = "{signal} again: not waiting any longer" if again else "{signal}: stopping"
        self.log.info(text, event="signal", signal=name)

    def stopping(self, peers: int) -> None:
        """The server closes its peers."""
        self.log.info("stopping: {peers} peers are told", event="stopping", peers=peers)


FIELDS = (
    *("peer", "topic", "address", "duration", "reason", "status", "code", "type", "to", "size"),
    *("node", "where", "signal", "peers", "count", "most", "missing"),
    *("worker", "pid", "seconds", "line"),
)
"""What an event may carry besides its time, its level and its name."""


def format_json(event: Mapping[str, Any]) -> str:
    """Write one event as a JSON object on one line; what is not ours as the event ``log`` with its text."""
    level = event.get("log_level", LogLevel.info)
    line: dict[str, Any] = {"time": _time(event.get("log_time", 0.0)), "level": level.name}
    if event.get("log_namespace") == "signaling" and "event" in event:
        line["event"] = event["event"]
        line |= {name: event[name] for name in FIELDS if event.get(name) is not None}
    else:
        line |= {"event": "log", "source": event.get("log_namespace", "-"), "message": formatEvent(dict(event))}
        failure = event.get("log_failure")
        if failure is not None:
            line["traceback"] = failure.getTraceback()
    return json.dumps(line) + "\n"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_as_json(twistd_options: Any) -> None:
    """Have ``twistd`` write its log as JSON, where it would have written text.

    Args:
        twistd_options: parsed; the log has not begun.

    Raises:
        ValueError: where the log goes to syslog, or to a logger of the user's.
    """
    if twistd_options["syslog"] or twistd_options.get("logger"):
        raise ValueError("it is written to a file or to standard output, not by --syslog or --logger of twistd")

    twistd_options["logger"] = f"{__name__}.{json_observer.__name__}"
    _twistd_options.update(twistd_options)


_twistd_options: dict[str, Any] = {}


def json_observer() -> Any:
    """Make the observer that writes JSON; ``twistd`` calls this by its name, without arguments."""
    # The place is twistd's to choose: a file that it rotates, or standard output.
    observer = UnixAppLogger({**_twistd_options, "logger": None})._getLogObserver()
    observer.formatEvent = format_json
    return observer
