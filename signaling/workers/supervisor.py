"""The worker processes of one listener: they are started, given connections, stopped, and restarted when they die.

A connection for a worker that is not there, or whose channel is full, waits, and its handshake timeout goes on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from signaling.core.interfaces import Answers
from signaling.log.events import Events
from signaling.log.forwarding import publish
from signaling.workers.ipc import (
    ABORT,
    ANSWER,
    APPLY_RELOAD,
    CONNECTION,
    DRAIN,
    HEARTBEAT,
    LOG,
    METRICS,
    METRICS_REQUEST,
    PREPARE_RELOAD,
    QUERY,
    READY,
    RELOAD_PREPARED,
    Channel,
    PartReceiver,
    PartSender,
    decode_answers,
)

CHANNEL_DESCRIPTOR = 3
"""Of a worker's end of its channel."""
SETTINGS_DESCRIPTOR = 4
"""Of a file with ``WorkerSettings.in_force``."""

# A worker that lived this long starts again at once.
_LONG_LIFE_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_METRICS_SECONDS = 2.0
_RELOAD_SECONDS = 5.0
_HAS_ENDED = "it has ended; send SIGHUP again"
# Beyond the drain's own bounds.
_KILL_AFTER_DRAIN_SECONDS = 5.0
_KILL_AFTER_ABORT_SECONDS = 2.0
# A worker sends a heartbeat once a second.
_CHECK_SECONDS = 1.0
_QUIET_AFTER_CHECKS = 5
_KILLED_AFTER_CHECKS = 30
_MAX_LINE_BYTES = 4_096
# What systemd gives to one process, and not to its children.
_NOT_INHERITED = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")

Answer = list[Any]
"""The metrics of one process, as JSON."""


@dataclass
class WorkerSettings:
    """How workers are run.

    Args:
        count: how many.
        arguments: the options of ``twistd signaling``, as they were given.
        drain_seconds: how long a worker may take to drain.
        in_force: the options that are in force, for a worker that starts.
        are_nodes: whether each worker is a node of a cluster.
        observer_seconds: how long its observer may take after that.
        working_directory: where relative paths in the arguments start.
        module_path: where modules are found.
    """

    count: int
    arguments: Sequence[str]
    drain_seconds: float
    in_force: bytes = b""
    are_nodes: bool = False
    observer_seconds: float = 0.0
    working_directory: str = field(default_factory=os.getcwd)
    module_path: Sequence[str] = field(default_factory=lambda: [os.path.abspath(path) for path in sys.path])

    def command(self, reactor: Any, number: int) -> list[str]:
        """Return the command line of one worker; its reactor is of the listener's kind."""
        # -P: modules in the current directory count only if the listener found them there too.
        python = [sys.executable, "-P", "-m", "signaling.app.worker_main"]
        return [*python, type(reactor).__module__, f"{number}", f"{self.count}", *self.arguments]

    def environment(self) -> Mapping[str, str]:
        """Return the environment of workers, which find the same modules as the listener."""
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        return {**inherited, "PYTHONPATH": os.pathsep.join(self.module_path)}


class WorkerState(Enum):
    """What a worker does, as the listener sees it."""

    STOPPED = "stopped"  # there is no process, and none will be started
    STARTING = "starting"  # the process starts, or waits to be started again
    READY = "ready"  # it takes connections
    QUIET = "quiet"  # no heartbeat for some seconds; it is killed in the end
    STOPPING = "stopping"  # it was told to drain


TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STOPPED: frozenset({WorkerState.STARTING}),
    WorkerState.STARTING: frozenset({WorkerState.READY, WorkerState.STOPPING}),
    WorkerState.READY: frozenset({WorkerState.QUIET, WorkerState.STARTING, WorkerState.STOPPING}),
    WorkerState.QUIET: frozenset({WorkerState.READY, WorkerState.STARTING, WorkerState.STOPPING}),
    WorkerState.STOPPING: frozenset({WorkerState.STOPPED}),
}


class RoutedConnection(Protocol):
    """A connection of a topic that a worker owns."""

    def handoff_message(self) -> bytes:
        """Return what goes to its worker along with its descriptor."""

    def fileno(self) -> int:
        """Return its descriptor."""

    def handed_off(self) -> None:
        """Forget it: the worker has it."""


class Worker(ProcessProtocol):
    """One worker, as the listener sees it.

    Attributes:
        state: changes as in ``TRANSITIONS``.
        number: counted from 0.
        pid: None while there is no process.
        deaths: how often it died so far.
        backplane_reasons: why its backplane is not ready, by its last heartbeat.
        has_prepared: whether this process has read what the listener has read last, and can set it.
    """

    def __init__(self, reactor: Any, settings: WorkerSettings, number: int, events: Events) -> None:
        self.state = WorkerState.STOPPED
        self.number = number
        self.pid: int | None = None
        self.deaths = 0
        self.backplane_reasons: list[str] = []
        self._reactor = reactor
        self._settings = settings
        self._events = events
        self._channel: Channel | None = None
        self._waiting: dict[RoutedConnection, None] = {}
        self._metrics_requests: list[Deferred[Answer | None]] = []
        self._queries: dict[int, Deferred[Answers | None]] = {}
        self._latest_query = 0
        self._query_sender = PartSender(QUERY, self._send)
        self._answer_receiver = PartReceiver()
        self._reload_request: Deferred[str | None] | None = None
        self._reloads = 0
        self.has_prepared = False
        self._output = b""
        self._started_at = 0.0
        self._early_deaths = 0
        self._restart: Any = None
        self._timers: list[Any] = []
        self._checks_without_heartbeat = 0
        self._stops: list[Deferred[None]] = []

    @property
    def unready_reason(self) -> str | None:
        """Why it takes no connections; None if it does."""
        return {
            WorkerState.STARTING: f"worker {self.number} is starting",
            WorkerState.READY: None,
            WorkerState.QUIET: f"worker {self.number} does not answer",
            WorkerState.STOPPING: f"worker {self.number} is stopping",
            WorkerState.STOPPED: f"worker {self.number} is stopping",
        }[self.state]

    @property
    def _takes_connections(self) -> bool:
        # A quiet one may be busy, and go on with what is in its channel.
        return self.state in (WorkerState.READY, WorkerState.QUIET)

    def _become(self, state: WorkerState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a worker that is {self.state.value} cannot be {state.value}")
        self.state = state

    # The process

    def start(self) -> None:
        """Start the process, now or, if that fails, later."""
        self._become(WorkerState.STARTING)
        self._start_process()

    def _start_process(self) -> None:
        self._restart = None
        self._started_at = self._reactor.seconds()
        try:
            with ExitStack() as closing:
                # What only the process needs is closed here.
                nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                closing.callback(os.close, nothing)
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                closing.callback(theirs.close)
                self._channel = Channel(self._reactor, ours, self)
                settings = self._settings
                in_force = _memory_file(settings.in_force)
                closing.callback(os.close, in_force)
                descriptors = {
                    0: nothing,
                    1: "r",
                    2: "r",
                    CHANNEL_DESCRIPTOR: theirs.fileno(),
                    SETTINGS_DESCRIPTOR: in_force,
                }
                command, environment = settings.command(self._reactor, self.number), settings.environment()
                with _signals_blocked():
                    self._reactor.spawnProcess(
                        self, command[0], command, environment, settings.working_directory, childFDs=descriptors
                    )
        except OSError as error:
            if self._channel is not None:
                self._channel.close()
            self._start_again(f"it cannot be started: {error}")

    def connectionMade(self) -> None:
        """Note the process's id; it may have ended when ``spawnProcess`` returns."""
        assert self.transport is not None
        self.pid = self.transport.pid

    def processExited(self, reason: Failure) -> None:
        """Start another process, unless this one was told to stop."""
        self.pid, self.backplane_reasons, self._checks_without_heartbeat = None, [], 0
        _cancel(*self._timers)
        self._timers.clear()
        if self._channel is not None:
            self._channel.close()
        self._answer_metrics(None)
        self._query_sender.clear()
        self._answer_receiver = PartReceiver()
        for number in tuple(self._queries):
            self._end_query(number, None)
        self.has_prepared = False
        self._answer_reload(_HAS_ENDED)
        if self.state is WorkerState.STOPPING:
            self._stopped()
            return
        if self.state is not WorkerState.STARTING:
            self._become(WorkerState.STARTING)
        self._start_again(_describe_exit(reason.value))

    def _start_again(self, reason: str) -> None:
        """Start another process: at once, or after growing pauses if they die early again and again."""
        self.deaths += 1
        early = self._reactor.seconds() - self._started_at < _LONG_LIFE_SECONDS
        self._early_deaths = self._early_deaths + 1 if early else 0
        pause = 0.0
        if self._early_deaths >= 2:
            pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(10, self._early_deaths - 2))
        self._events.worker_died(self.number, reason, pause)
        self._restart = self._reactor.callLater(pause, self._start_process)

    def stop(self) -> Deferred[None]:
        """Let it drain and end; fires when it has, or was killed because it did not."""
        stopped: Deferred[None] = Deferred()
        if self.state is WorkerState.STOPPED:
            stopped.callback(None)
            return stopped
        self._stops.append(stopped)
        if self.state is not WorkerState.STOPPING:
            can_drain = self._takes_connections
            self._become(WorkerState.STOPPING)
            _cancel(self._restart)
            if self.pid is None:
                self._stopped()
            elif can_drain:
                self._post(DRAIN)
                settings = self._settings
                self._kill_in(settings.drain_seconds + settings.observer_seconds + _KILL_AFTER_DRAIN_SECONDS)
            else:
                self._kill()
        return stopped

    def abort(self) -> None:
        """Let it abort its connections and end."""
        self.stop()
        if self.pid is not None:
            self._post(ABORT)
            self._kill_in(_KILL_AFTER_ABORT_SECONDS)

    def _stopped(self) -> None:
        self._become(WorkerState.STOPPED)
        stops, self._stops = self._stops, []
        for stopped in stops:
            stopped.callback(None)

    def _check_heartbeat_later(self) -> None:
        self._timers = [timer for timer in self._timers if timer.active()]
        self._timers.append(self._reactor.callLater(_CHECK_SECONDS, self._check_heartbeat))

    def _check_heartbeat(self) -> None:
        """Kill a worker that hangs.

        Checks are counted, not seconds: a listener that stood still itself must not blame its workers.
        """
        self._checks_without_heartbeat += 1
        if self.state is WorkerState.READY and self._checks_without_heartbeat >= _QUIET_AFTER_CHECKS:
            self._become(WorkerState.QUIET)
        if self.state is WorkerState.QUIET and self._checks_without_heartbeat >= _KILLED_AFTER_CHECKS:
            self._events.worker_killed(self.number, f"it did not answer for {_KILLED_AFTER_CHECKS} s")
            self._kill()
        else:
            self._check_heartbeat_later()

    def _kill_in(self, seconds: float) -> None:
        self._timers.append(self._reactor.callLater(seconds, self._kill_late))

    def _kill_late(self) -> None:
        if self.pid is not None:
            self._events.worker_killed(self.number, "it did not end in time")
            self._kill()

    def _kill(self) -> None:
        if self.pid is not None and self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess("KILL")

    # What it prints

    def outReceived(self, data: bytes) -> None:
        """Log it, line by line."""
        *lines, self._output = (self._output + data).split(b"\n")
        if len(self._output) > _MAX_LINE_BYTES:
            lines.append(self._output)
            self._output = b""
        for line in lines:
            self._events.worker_output(self.number, line[:_MAX_LINE_BYTES].decode(errors="replace"))

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        """Log the last line."""
        if self._output:
            self.outReceived(b"\n")

    # Connections

    def take(self, connection: RoutedConnection) -> None:
        """Hand a connection off, now or as soon as the worker takes it."""
        if self._waiting or not (self._takes_connections and self._handed_off(connection)):
            self._waiting[connection] = None

    def forget(self, connection: RoutedConnection) -> None:
        """Remove a connection that is closed, if it waits."""
        self._waiting.pop(connection, None)

    def channel_writable(self) -> None:
        """Send queries, and hand off the connections that waited, oldest first."""
        self._query_sender.send_more()
        while self._takes_connections and self._waiting:
            connection = next(iter(self._waiting))
            if not self._handed_off(connection):
                return
            self._waiting.pop(connection, None)

    def _handed_off(self, connection: RoutedConnection) -> bool:
        assert self._channel is not None
        sent = self._channel.send(CONNECTION + connection.handoff_message(), connection.fileno())
        if sent:
            connection.handed_off()
        return sent

    # The channel

    def message_received(self, message: bytes, descriptor: int | None) -> None:
        """Handle a message of the worker; every one counts as a heartbeat."""
        kind, rest = message[:1], message[1:]
        self._checks_without_heartbeat = 0
        if self.state is WorkerState.QUIET:
            self._become(WorkerState.READY)
        if kind == LOG:
            publish(rest, self.number)
        elif kind == METRICS:
            self._answer_metrics(json.loads(rest))
        elif kind == ANSWER:
            answer = self._answer_receiver.receive(rest)
            if answer is not None:
                number, encoded = answer
                self._end_query(number, decode_answers(encoded))
        elif kind == RELOAD_PREPARED:
            number, reason = json.loads(rest)
            # Another number is of a request that was given up.
            if number == self._reloads:
                self._answer_reload(reason)
        elif kind == HEARTBEAT:
            self.backplane_reasons = json.loads(rest)
        elif kind == READY and self.state is WorkerState.STARTING:
            self._become(WorkerState.READY)
            self._events.worker_started(self.number, self.pid or 0)
            self._check_heartbeat_later()
            self.channel_writable()

    def prepare_reload(self, fingerprint: str) -> Deferred[str | None]:
        """Let it read and check its options; fires with the reason why they cannot be set, or with None if they can."""
        request: Deferred[str | None] = Deferred()
        if self.pid is None:
            request.callback(f"worker {self.number} is being restarted; send SIGHUP again")
            return request
        # One that starts answers when it is ready.
        self._reload_request = request
        self._reloads += 1
        self.has_prepared = False
        self._post(PREPARE_RELOAD + json.dumps([self._reloads, fingerprint]).encode())
        timeout = self._reactor.callLater(_RELOAD_SECONDS, self._answer_reload, "it does not answer; send SIGHUP again")

        def answered(reason: str | None) -> str | None:
            _cancel(timeout)
            return reason if reason is None else f"worker {self.number}: {reason}"

        return request.addCallback(answered)

    def _answer_reload(self, reason: str | None) -> None:
        request, self._reload_request = self._reload_request, None
        if request is not None:
            self.has_prepared = reason is None
            request.callback(reason)

    def apply_reload(self) -> None:
        """Let it set what it has read; if it died meanwhile, the process that replaces it reads that by itself."""
        self._post(APPLY_RELOAD)

    def channel_lost(self) -> None:
        """Kill a process that nobody can talk to, unless it ends by itself: then its status says why."""
        self._kill_in(_KILL_AFTER_DRAIN_SECONDS)

    def _send(self, message: bytes) -> bool:
        return self._channel is not None and self._channel.send(message)

    def _post(self, message: bytes) -> None:
        if self._channel is not None:
            self._channel.post(message)

    def request_metrics(self) -> Deferred[Answer | None]:
        """Ask for its metrics; fires with None if it does not answer in time, or is not there."""
        request: Deferred[Answer | None] = Deferred()
        if self.pid is None or self.state is WorkerState.STARTING:
            request.callback(None)
            return request
        if not self._metrics_requests:
            self._post(METRICS_REQUEST)
        self._metrics_requests.append(request)
        timeout = self._reactor.callLater(_METRICS_SECONDS, self._give_up, request)

        def answered(answer: Answer | None) -> Answer | None:
            _cancel(timeout)
            return answer

        return request.addCallback(answered)

    def _give_up(self, request: Deferred[Answer | None]) -> None:
        if request in self._metrics_requests:
            self._metrics_requests.remove(request)
            request.callback(None)

    def _answer_metrics(self, answer: Answer | None) -> None:
        requests, self._metrics_requests = self._metrics_requests, []
        for request in requests:
            request.callback(answer)

    def ask(self, query: bytes, seconds: float) -> Deferred[Answers | None]:
        """Ask for the answer to a query of the admin API: its own, or, if it is a node, those of all nodes.

        Args:
            seconds: how long to wait.

        Returns:
            Fires with None if it does not answer in time, or is not there.
        """
        asked: Deferred[Answers | None] = Deferred()
        if self.pid is None or self.state is WorkerState.STARTING:
            asked.callback(None)
            return asked
        self._latest_query += 1
        number = self._latest_query
        self._queries[number] = asked
        timeout = self._reactor.callLater(seconds, self._end_query, number, None)

        def answered(answers: Answers | None) -> Answers | None:
            _cancel(timeout)
            return answers

        asked.addCallback(answered)
        self._query_sender.send(number, query)
        return asked

    def _end_query(self, number: int, answers: Answers | None) -> None:
        asked = self._queries.pop(number, None)
        if asked is not None:
            asked.callback(answers)


class Supervisor:
    """All workers.

    Args:
        reactor: watches them.
        settings: how they are run.
        events: the log.
    """

    def __init__(self, reactor: Any, settings: WorkerSettings, events: Events) -> None:
        self._settings = settings
        self._workers = [Worker(reactor, settings, number, events) for number in range(settings.count)]

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers)

    def __getitem__(self, number: int) -> Worker:
        return self._workers[number]

    def start(self) -> None:
        """Start them."""
        for worker in self._workers:
            worker.start()

    @property
    def worker_reasons(self) -> list[str]:
        """Why a balancer should send new clients elsewhere: one line for each worker that takes no connections."""
        return [worker.unready_reason for worker in self._workers if worker.unready_reason is not None]

    @property
    def backplane_reasons(self) -> list[str]:
        """The same, by what the workers report of the backplane; each reason once."""
        return list(dict.fromkeys(reason for worker in self._workers for reason in worker.backplane_reasons))

    def drain(self) -> Deferred[None]:
        """Let all of them drain and end; fires when the last one has."""
        return gatherResults([worker.stop() for worker in self._workers]).addCallback(lambda _: None)

    def abort(self) -> None:
        """Let all of them abort their connections and end."""
        for worker in self._workers:
            worker.abort()

    def request_metrics(self) -> Deferred[list[Answer | None]]:
        """Ask all of them for their metrics."""
        return gatherResults([worker.request_metrics() for worker in self._workers])

    def prepare_reload(self, fingerprint: str) -> Deferred[list[str]]:
        """Let all of them read and check their options.

        Args:
            fingerprint: of the options that the listener has read.

        Returns:
            Fires with the reasons why they cannot be set; none if all workers can.
        """
        asked = gatherResults([worker.prepare_reload(fingerprint) for worker in self._workers])

        def answered(reasons: list[str | None]) -> list[str]:
            # One that had answered may have died meanwhile: the next process has started with the old options.
            return [
                reason or f"worker {worker.number}: {_HAS_ENDED}"
                for worker, reason in zip(self._workers, reasons, strict=True)
                if reason is not None or not worker.has_prepared
            ]

        return asked.addCallback(answered)

    def apply_reload(self, in_force: bytes) -> None:
        """Let all of them set what they have read.

        Args:
            in_force: ``WorkerSettings.in_force`` for those that start from now on.
        """
        self._settings.in_force = in_force
        for worker in self._workers:
            worker.apply_reload()


def _memory_file(data: bytes) -> int:
    """Return the descriptor of a file in memory, to be read from its start."""
    with os.fdopen(os.memfd_create("settings"), "wb", closefd=False) as file:
        file.write(data)
        descriptor = file.fileno()
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _cancel(*timers: Any) -> None:
    for timer in timers:
        if timer is not None and timer.active():
            timer.cancel()


def _describe_exit(error: BaseException | None) -> str:
    number = getattr(error, "signal", None)
    if number is not None:
        return f"signal {signal.Signals(number).name}"
    return f"exit status {0 if isinstance(error, ProcessDone) else getattr(error, 'exitCode', None)}"


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the signals that the listener handles in processes that are started meanwhile.

    A terminal's Ctrl-C and systemd's stop reach the whole group, and a worker that ends by them closes nothing. A mask
    is inherited, so it holds from a worker's first instruction; a handler would come too late.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
