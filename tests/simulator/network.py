"""Simulated time, processes that can be paused, and links that keep the order of what they deliver."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any


class Call:
    """A scheduled call: as much of an ``IDelayedCall`` as the server uses."""

    __slots__ = ("_state", "arguments", "function", "when")

    def __init__(self, when: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.when = when
        self.function = function
        self.arguments = arguments
        self._state = True

    def active(self) -> bool:
        return self._state

    def cancel(self) -> None:
        assert self._state, "it is over"
        self._state = False

    def getTime(self) -> float:
        return self.when

    def run(self) -> None:
        if self._state:
            self._state = False
            self.function(*self.arguments)


class Timeline:
    """The scheduled calls, in order, and the random generator: a seed decides everything.

    Args:
        seed: of the random generator.
        log: is called with each line of the trace; None traces nothing.
    """

    def __init__(self, seed: int, log: Callable[[str], None] | None = None) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self._log = log
        self._calls: list[tuple[float, int, Call]] = []
        self._count = 0
        self.tracing = log is not None

    def trace(self, source: str, what: str, *details: Any) -> None:
        if self._log is not None:
            self._log(f"{self.now:10.4f} {source:10} {what} {' '.join(map(str, details))}")

    def at(self, when: float, function: Callable[..., Any], *arguments: Any) -> Call:
        call = Call(max(when, self.now), function, arguments)
        self._count += 1
        heapq.heappush(self._calls, (call.when, self._count, call))
        return call

    def after(self, delay: float, function: Callable[..., Any], *arguments: Any) -> Call:
        return self.at(self.now + delay, function, *arguments)

    def run_until(self, end: float) -> None:
        calls = self._calls
        while calls and calls[0][0] <= end:
            self.now, _, call = heapq.heappop(calls)
            call.run()
        self.now = end


class Process:
    """A process that runs, is paused, or has ended. What arrives during a pause waits.

    Args:
        timeline: on which it lives.
        name: for the trace.
    """

    def __init__(self, timeline: Timeline, name: str) -> None:
        self.timeline = timeline
        self.name = name
        self.alive = True
        self.paused = False
        self._timers: list[Call] = []
        self._arrived: dict[int, list[tuple[Callable[[Any], None], Any]]] = {}
        self.calls: set[Call] = set()

    # The process is its own clock

    def seconds(self) -> float:
        return self.timeline.now

    def callLater(self, delay: float, function: Callable[..., Any], *arguments: Any) -> Call:
        call = Call(self.timeline.now + delay, function, arguments)
        self.calls.add(call)
        self.timeline.at(call.when, self._due, call)
        return call

    @property
    def timers(self) -> int:
        """How many timers it has."""
        self.calls = {call for call in self.calls if call.active()}
        return len(self.calls)

    def _due(self, call: Call) -> None:
        if not self.alive or not call.active():
            self.calls.discard(call)
        elif self.paused:
            self._timers.append(call)
        else:
            self.calls.discard(call)
            call.run()

    # What happens to it

    def take(self, source: object, take: Callable[[Any], None], item: Any) -> None:
        """Let an item arrive."""
        if self.paused:
            self._arrived.setdefault(id(source), []).append((take, item))
        elif self.alive:
            take(item)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        """End the pause: what is due happens now, in a random order of timers and sources."""
        if not self.paused:
            return
        self.paused = False
        timers, self._timers = self._timers, []
        sources, self._arrived = list(self._arrived.values()), {}
        random = self.timeline.random
        random.shuffle(sources)
        late = [
            lambda calls=timers: self._run_timers(calls),
            *[lambda s=source: self._run_arrived(s) for source in sources],
        ]
        if random.random() < 0.5:
            late.append(late.pop(0))
        for run in late:
            run()

    def _run_timers(self, timers: list[Call]) -> None:
        for call in timers:
            self._due(call)

    def _run_arrived(self, arrived: list[tuple[Callable[[Any], None], Any]]) -> None:
        for take, item in arrived:
            if self.alive:
                take(item)

    def end(self) -> None:
        self.alive = False
        self._timers.clear()
        self._arrived.clear()
        self.calls.clear()


class Link:
    """One direction of a connection: what is sent arrives later, in order, or not at all.

    Args:
        receiver: to which it leads.
        take: has what arrives.
        latency: draws how long something is on its way.
    """

    def __init__(self, receiver: Process, take: Callable[[Any], None], latency: Callable[[], float]) -> None:
        self._receiver = receiver
        self._take = take
        self._latency = latency
        self._timeline = receiver.timeline
        self._queue: deque[Any] = deque()
        self._last = 0.0
        self._held = 0
        self.swallowing = False

    def send(self, item: Any) -> None:
        self._queue.append(item)
        self._last = max(self._last, self._timeline.now + self._latency())
        self._timeline.at(self._last, self._arrive)

    def cut(self, keep: bool = True) -> None:
        """Lose what is on its way; if ``keep``, a random part from its beginning still arrives."""
        kept = self._timeline.random.randint(0, len(self._queue)) if keep and self._queue else 0
        while len(self._queue) > kept:
            self._queue.pop()

    def heal(self) -> None:
        """Stop swallowing; what was swallowed arrives."""
        self.swallowing = False
        held, self._held = self._held, 0
        for _ in range(held):
            self._last = max(self._last, self._timeline.now)
            self._timeline.at(self._last, self._arrive)

    def _arrive(self) -> None:
        if self.swallowing:
            self._held += 1
        elif self._queue:
            self._receiver.take(self, self._take, self._queue.popleft())
