"""The worker processes of one listener: started, given connections, asked, stopped, and started again when they die.

A connection for a worker that is not there, or that takes nothing for the moment, waits, and its deadline goes on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from signaling.log.events import Events
from signaling.log.forwarding import publish
from signaling.workers.ipc import Channel

# What the listener says
CONNECTION, QUESTION, DRAIN, HURRY = b"C", b"?", b"D", b"H"
# What a worker says
READY, NUMBERS, LOG, TROUBLES = b"R", b"N", b"L", b"T"

ABOUT = struct.Struct("!dB")
"""In front of a connection's first bytes: how many seconds of its handshake are over, and its family of addresses."""

CHANNEL_DESCRIPTOR = 3

# A worker that lived this long died of something new.
_LONG_LIFE_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_ANSWER_SECONDS = 2.0
# After the drain's own bounds.
_MARGIN_SECONDS = 5.0
_HURRY_SECONDS = 2.0
# A worker says something once a second. One that does not for some looks is not ready, and in the end it hangs.
_LOOK_SECONDS = 1.0
_QUIET_LOOKS = 5
_MOST_QUIET_LOOKS = 30
_LONGEST_LINE = 4_096
# What systemd gives to one process, and not to its children.
_NOT_INHERITED = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")

Answer = list[Any]


class Handed(Protocol):
    """A connection that a worker is to have."""

    def parcel(self) -> bytes:
        """Write ``ABOUT`` it, and the bytes that were read."""

    def fileno(self) -> int:
        """Tell its descriptor."""

    def handed_over(self) -> None:
        """Hear that a worker has it."""


@dataclass(frozen=True)
class Plan:
    """How workers are run.

    Args:
        count: how many.
        words: the options of ``twistd signaling``, as they were given.
        drain_seconds: what a worker that is told to stop may take.
        folder: where relative paths in them start.
        modules: where modules are found.
    """

    count: int
    words: Sequence[str]
    drain_seconds: float
    folder: str = field(default_factory=os.getcwd)
    modules: Sequence[str] = field(default_factory=lambda: [os.path.abspath(path) for path in sys.path])

    def command(self, reactor: Any, number: int) -> list[str]:
        """Return the command line of one worker; its reactor is of the listener's kind."""
        kind = type(reactor).__module__
        # -P: what lies in the current folder is none of ours, unless the listener found it there too.
        return [
            sys.executable,
            "-P",
            "-m",
            "signaling.app.worker_main",
            kind,
            f"{number}",
            f"{self.count}",
            *self.words,
        ]

    def environment(self) -> Mapping[str, str]:
        """Return the environment of workers, who find the same modules as the listener."""
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        return {**inherited, "PYTHONPATH": os.pathsep.join(self.modules)}


class Worker(ProcessProtocol):
    """One worker, as the listener sees it.

    Attributes:
        number: counted from 0.
        pid: None while there is no process.
        ready: whether it takes connections.
        deaths: how often it died so far.
        stopping: whether it was told to end.
        unready_reasons: what a balancer should know of it, while it takes connections.
        gone: fires when it has ended, after it was told to.
    """

    def __init__(self, reactor: Any, plan: Plan, number: int, events: Events) -> None:
        self.number = number
        self.pid: int | None = None
        self.ready = False
        self.deaths = 0
        self.stopping = False
        self.unready_reasons: list[str] = []
        self.gone: Deferred[None] = Deferred()
        self._reactor = reactor
        self._plan = plan
        self._events = events
        self._channel: Channel | None = None
        self._waiting: dict[Handed, None] = {}
        self._questions: list[Deferred[Answer | None]] = []
        self._said = b""
        self._born = 0.0
        self._young_deaths = 0
        self._restart: Any = None
        self._timers: list[Any] = []
        self._quiet_looks = 0

    @property
    def state(self) -> str | None:
        """What keeps it from taking connections; None where nothing does."""
        if self.ready and self._quiet_looks < _QUIET_LOOKS:
            return None
        if self.ready:
            return f"worker {self.number} does not answer"
        return f"worker {self.number} is " + ("stopping" if self.stopping else "starting")

    # Its life

    def start(self) -> None:
        """Start the process, now or, where that fails, later."""
        self._restart = None
        self._born = self._reactor.seconds()
        try:
            with ExitStack() as closing:
                self._spawn(closing)
        except OSError as error:
            if self._channel is not None:
                self._channel.close()
            self._start_again(f"it cannot be started: {error}")

    def _spawn(self, closing: ExitStack) -> None:
        """Start the process.

        Args:
            closing: closes what only the process needs.
        """
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        closing.callback(os.close, nothing)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        closing.callback(theirs.close)
        self._channel = Channel(self._reactor, ours, self)
        descriptors = {0: nothing, 1: "r", 2: "r", CHANNEL_DESCRIPTOR: theirs.fileno()}
        command, plan = self._plan.command(self._reactor, self.number), self._plan
        with _deaf_children():
            self._reactor.spawnProcess(self, command[0], command, plan.environment(), plan.folder, childFDs=descriptors)

    def connectionMade(self) -> None:
        """Hear that the process runs; it may have ended when ``spawnProcess`` returns."""
        assert self.transport is not None
        self.pid = self.transport.pid

    def processExited(self, reason: Failure) -> None:
        """Start another in its place, unless it was told to end."""
        self.pid, self.ready, self.unready_reasons = None, False, []
        self._quiet_looks = 0
        self._cancel_timers()
        if self._channel is not None:
            self._channel.close()
        self._answer(None)
        if self.stopping:
            self._end()
            return
        self._start_again(_how(reason.value))

    def _start_again(self, reason: str) -> None:
        self.deaths += 1
        pause = self._pause()
        self._events.worker_died(self.number, reason, pause)
        self._restart = self._reactor.callLater(pause, self.start)

    def _pause(self) -> float:
        """Return for how long to wait, in seconds: not at all, unless it dies young again and again."""
        young = self._reactor.seconds() - self._born < _LONG_LIFE_SECONDS
        self._young_deaths = self._young_deaths + 1 if young else 0
        if self._young_deaths < 2:
            return 0.0
        return float(min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(10, self._young_deaths - 2)))

    def stop(self) -> Deferred[None]:
        """Let it close its peers and end; fires when it has, or was killed because it did not."""
        if not self.stopping:
            self.stopping, was_ready, self.ready = True, self.ready, False
            if self._restart is not None:
                _cancel(self._restart)
            if self.pid is None:
                self._end()
            elif not was_ready:
                self._kill()
            else:
                self._post(DRAIN)
                self._kill_in(self._plan.drain_seconds + _MARGIN_SECONDS)
        return self.gone

    def hurry(self) -> None:
        """Let it end at once."""
        self.stop()
        if self.pid is not None:
            self._post(HURRY)
            self._kill_in(_HURRY_SECONDS)

    def _kill_in(self, seconds: float) -> None:
        self._timers.append(self._reactor.callLater(seconds, self._kill_late))

    def _look_in(self, seconds: float) -> None:
        self._timers = [timer for timer in self._timers if timer.active()]
        self._timers.append(self._reactor.callLater(seconds, self._look))

    def _look(self) -> None:
        """See whether it still says something, as it does once a second, and end it where it hangs.

        Looks are counted, not seconds: a listener that stood still itself must not blame its workers.
        """
        self._quiet_looks += 1
        if self._quiet_looks >= _MOST_QUIET_LOOKS and not self.stopping:
            self._events.worker_killed(self.number, f"it did not answer for {_MOST_QUIET_LOOKS} s")
            self._kill()
        else:
            self._look_in(_LOOK_SECONDS)

    def _kill_late(self) -> None:
        if self.pid is not None:
            self._events.worker_killed(self.number, "it did not end in time")
            self._kill()

    def _kill(self) -> None:
        if self.pid is not None and self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess("KILL")

    def _cancel_timers(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            _cancel(timer)

    def _end(self) -> None:
        if not self.gone.called:
            self.gone.callback(None)

    # What it writes past its log

    def outReceived(self, data: bytes) -> None:
        """Pass it on."""
        *lines, self._said = (self._said + data).split(b"\n")
        if len(self._said) > _LONGEST_LINE:
            lines.append(self._said)
            self._said = b""
        for line in lines:
            self._events.worker_output(self.number, line[:_LONGEST_LINE].decode(errors="replace"))

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        """Pass the last of it on."""
        if self._said:
            self.outReceived(b"\n")

    # Connections

    def take(self, connection: Handed) -> None:
        """Have a connection, now or as soon as it can be had."""
        if not (self.ready and not self._waiting and self._hand_over(connection)):
            self._waiting[connection] = None

    def forget(self, connection: Handed) -> None:
        """Hear that a connection is gone; it may be one that never waited."""
        self._waiting.pop(connection, None)

    def channel_writable(self) -> None:
        """Hand over those that waited, oldest first."""
        while self.ready and self._waiting:
            connection = next(iter(self._waiting))
            if not self._hand_over(connection):
                return
            self._waiting.pop(connection, None)

    def _hand_over(self, connection: Handed) -> bool:
        assert self._channel is not None
        sent = self._channel.send(CONNECTION + connection.parcel(), connection.fileno())
        if sent:
            connection.handed_over()
        return sent

    # The channel

    def message_received(self, message: bytes, descriptor: int | None) -> None:
        """Take what it says."""
        kind, rest = message[:1], message[1:]
        self._quiet_looks = 0
        if kind == LOG:
            publish(rest, self.number)
        elif kind == NUMBERS:
            self._answer(json.loads(rest))
        elif kind == TROUBLES:
            self.unready_reasons = json.loads(rest)
        elif kind == READY and not self.stopping:
            self.ready = True
            self._events.worker_started(self.number, self.pid or 0)
            self._look_in(_LOOK_SECONDS)
            self.channel_writable()

    def channel_lost(self) -> None:
        """End a process that nobody can talk to; mostly it ends by itself, and then its status tells why."""
        self._kill_in(_HURRY_SECONDS)

    def _post(self, message: bytes) -> None:
        if self._channel is not None:
            self._channel.post(message)

    def ask(self) -> Deferred[Answer | None]:
        """Ask for its numbers; fires with None where it does not answer in time, or is not there."""
        question: Deferred[Answer | None] = Deferred()
        if self.pid is None or (not self.ready and not self.stopping):
            question.callback(None)
            return question
        if not self._questions:
            self._post(QUESTION)
        self._questions.append(question)
        late = self._reactor.callLater(_ANSWER_SECONDS, self._give_up, question)
        question.addCallback(_after, late)
        return question

    def _give_up(self, question: Deferred[Answer | None]) -> None:
        if question in self._questions:
            self._questions.remove(question)
            question.callback(None)

    def _answer(self, answer: Answer | None) -> None:
        questions, self._questions = self._questions, []
        for question in questions:
            question.callback(answer)


class Workers:
    """All of them.

    Args:
        reactor: watches them.
        plan: how they are run.
        events: the log.
    """

    def __init__(self, reactor: Any, plan: Plan, events: Events) -> None:
        self._all = [Worker(reactor, plan, number, events) for number in range(plan.count)]

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._all)

    def __getitem__(self, number: int) -> Worker:
        return self._all[number]

    def start(self) -> None:
        """Start them."""
        for worker in self._all:
            worker.start()

    def stop(self) -> None:
        """Do nothing: until they are drained, they are needed, and started again where they die."""

    @property
    def missing(self) -> list[str]:
        """What a balancer should know: one line for each that takes no connections."""
        return [worker.state for worker in self._all if worker.state is not None]

    @property
    def unready_reasons(self) -> list[str]:
        """What they themselves say that it should know, each once."""
        return list(dict.fromkeys(trouble for worker in self._all for trouble in worker.unready_reasons))

    def drain(self) -> Deferred[None]:
        """Let all of them close their peers and end; fires when the last has."""
        return gatherResults([_once(worker.stop()) for worker in self._all]).addCallback(lambda _: None)

    def hurry(self) -> None:
        """Let all of them end at once."""
        for worker in self._all:
            worker.hurry()

    def ask(self) -> Deferred[list[Answer | None]]:
        """Ask all of them for their numbers."""
        return gatherResults([worker.ask() for worker in self._all])


def _once(shared: Deferred[None]) -> Deferred[None]:
    """Return what fires with another that has several listeners."""
    own: Deferred[None] = Deferred()
    shared.addCallback(own.callback)
    return own


def _after(answer: Answer | None, late: Any) -> Answer | None:
    _cancel(late)
    return answer


def _cancel(timer: Any) -> None:
    if timer.active():
        timer.cancel()


def _how(error: BaseException | None) -> str:
    """Say how a process ended."""
    number = getattr(error, "signal", None)
    if number is not None:
        return f"signal {signal.Signals(number).name}"
    return f"exit status {0 if isinstance(error, ProcessDone) else getattr(error, 'exitCode', None)}"


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Let processes that are started meanwhile hear none of the signals that are the listener's to handle.

    A terminal's Ctrl-C and systemd's stop reach the whole group, and a worker that ends by them tells its peers
    nothing. A mask is inherited, so it holds from a worker's first instruction; a handler would come too late.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
