"""Servers that are measured in turns, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from benchmarks.compare.dialects import Dialect
from benchmarks.compare.generator import LoadGenerator, WrongAnswerError
from benchmarks.compare.meter import Meter
from benchmarks.compare.results import Results
from benchmarks.compare.scenarios import SCENARIOS, Figures, Scale, Scenario, Stage
from benchmarks.compare.servers import Running, RunningServers


def measure(  # noqa: PLR0913, PLR0917 - a server is all of these
    scenario: Scenario,
    dialect: Dialect,
    addresses: Sequence[tuple[str, int]],
    meter: Meter | None,
    scale: Scale,
    store: Meter | None = None,
) -> Figures:
    """Run one burst against one server.

    Raises:
        WrongAnswerError: if the server does not do what it was asked for.
    """
    try:
        with LoadGenerator(addresses) as generator:
            stage = Stage(dialect, generator, meter, scale, store)
            scenario.run(stage)
    except OSError as error:
        raise WrongAnswerError(str(error)) from error
    # The connections that were just reset must not cost the next server's time.
    stage.wait_until_idle()
    return stage.figures


class Contest:
    """All rounds of the scenarios that were asked for.

    Args:
        rounds: how often each server is measured; a first time, which warms it up, is not counted.
        seed: of the order of the servers, which is another in each round.
        per_process: whether a server of several processes has as much to do for each of them as one of one process.
    """

    def __init__(
        self, running: RunningServers, scale: Scale, rounds: int, seed: int, *, per_process: bool = False
    ) -> None:
        self._servers = running
        self._scale = scale
        self._per_process = per_process
        self._rounds = rounds
        self._random = random.Random(seed)
        self.results = Results()

    def bursts(self, names: Sequence[str]) -> int:
        """Return how many bursts there will be."""
        return sum(len(self._runners(name)) * len(self._numbers(name)) for name in names)

    def run(self, names: Sequence[str]) -> Iterator[str]:
        """Measure scenarios; yields the name of each burst before it runs."""
        for name in names:
            runners = self._runners(name)
            # They are listed in this order, whichever is the first of a round.
            self.results.rounds[name].update({running.server.name: [] for running in runners})
            for number in self._numbers(name):
                self._random.shuffle(runners)
                for running in runners:
                    yield f"{name} {running.server.name}"
                    figures = self._measure(SCENARIOS[name], running)
                    if number:
                        self.results.add(name, running.server.name, figures)

    def _runners(self, name: str) -> list[Running]:
        return [each for each in self._servers.running.values() if SCENARIOS[name].suits(each.server)]

    def _numbers(self, name: str) -> range:
        """Number the rounds; 0 warms up. Memory hardly varies, and many connections take their time."""
        if SCENARIOS[name].fresh:
            return range(1, 1 + max(1, self._rounds // 3))
        return range(self._rounds + 1)

    def _measure(self, scenario: Scenario, running: Running) -> Figures:
        try:
            if not scenario.fresh:
                return self._burst(scenario, running)
            with Running(running.server, self._servers.folder) as fresh:
                return self._burst(scenario, fresh)
        except WrongAnswerError as error:
            raise WrongAnswerError(f"{running.server.name}: {error}") from error

    def _burst(self, scenario: Scenario, running: Running) -> Figures:
        dialect, meter, store = running.server.dialect, running.meter, running.store_meter
        scale = self._scale.times(running.server.processes) if self._per_process else self._scale
        return measure(scenario, dialect, running.addresses, meter, scale, store)
