"""Runs scenarios of a cluster, one for each seed: ``python -m tests.simulator --help``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from tests.simulator.queries import QueryingScenario
from tests.simulator.resuming import ResumingScenario
from tests.simulator.scenario import InvariantViolation, Scenario

LONGEST_SECONDS = 60


def scenario_of(seed: str, log: Callable[[str], None] | None = None) -> Scenario:
    """Make a seed's scenario: of a number; of clients that resume, with a t in front; of queries besides, with a q."""
    kinds = {"t": ResumingScenario, "q": QueryingScenario}
    return kinds[seed[0]](int(seed[1:]), log) if seed[0] in kinds else Scenario(int(seed), log)


def seeds_in(text: str) -> list[str]:
    """Write out a list like ``0-2,t7`` as ``0``, ``1``, ``2`` and ``t7``."""
    found = []
    for part in text.split(","):
        kind = part[:1] if part[:1] in "tq" else ""
        first, _, last = part.removeprefix(kind).partition("-")
        found += [f"{kind}{number}" for number in range(int(first), int(last or first) + 1)]
    return found


def outcome(seed: str) -> tuple[str, str | None, Counter[str], Counter[str]]:
    """Run one seed's scenario; returns the violation or None, counts of what happened, and excuses."""
    scenario = scenario_of(seed)
    # Whatever turns in circles is interrupted.
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(LONGEST_SECONDS)
    try:
        scenario.run()
    except InvariantViolation as violation:
        return seed, str(violation), scenario.counts, scenario.excuses + scenario.presence.excuses
    except (Exception, KeyboardInterrupt):
        return seed, traceback.format_exc(), scenario.counts, scenario.excuses + scenario.presence.excuses
    finally:
        signal.alarm(0)
    counts = scenario.counts + Counter({"relays": len(scenario.sent), "early": scenario.early})
    return seed, None, counts, scenario.excuses + scenario.presence.excuses


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", help="run one scenario, like 120, t28 or q7")
    parser.add_argument("--trace", action="store_true", help="with --seed: print everything that happens")
    parser.add_argument("--seeds", default="0-499,t0-499", help="run many (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at the same time (default: %(default)s)")
    parser.add_argument("--most", type=int, default=10, help="stop after so many failures (default: %(default)s)")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed, options.trace)
    return _many(seeds_in(options.seeds), options.jobs, options.most)


def _one(seed: str, trace: bool) -> int:
    scenario = scenario_of(seed, print if trace else None)
    try:
        scenario.run()
    except InvariantViolation as violation:
        print(f"seed {seed} FAILED:\n{violation}")
        return 1
    print(f"seed {seed} passed: {dict(scenario.counts)}; excused: {dict(scenario.excuses + scenario.presence.excuses)}")
    return 0


def _many(seeds: list[str], jobs: int, most: int) -> int:
    started = time.monotonic()
    failed = done = 0
    totals: Counter[str] = Counter()
    excused: Counter[str] = Counter()
    with ProcessPoolExecutor(jobs) as pool:
        waiting = iter(seeds)
        # A few at a time, so that there is an end after the first failures.
        while batch := list(islice(waiting, 64 * jobs)):
            for seed, fault, counts, excuses in pool.map(outcome, batch, chunksize=4):
                done += 1
                totals += counts
                excused += excuses
                if fault is not None:
                    failed += 1
                    print(f"seed {seed} FAILED:\n{fault}\n", flush=True)
            if failed >= most:
                break
    seconds = time.monotonic() - started
    print(f"{done} scenarios in {seconds:.1f} s ({done / seconds:.1f} a second), {failed} failed; {dict(totals)}")
    told = totals["told joined"] + totals["told left"]
    print(f"excused of {totals['relays']} relays and {told} joins and leaves: {dict(excused.most_common())}")
    return 1 if failed else 0


if __name__ == "__main__":
    # Chance is the seed's alone: no set may have another order in another run.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulator", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
