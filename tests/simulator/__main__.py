"""Tells stories of a cluster, one for each seed: ``python -m tests.simulator --help``."""

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

from tests.simulator.story import Breach, Story
from tests.simulator.travels import TravelStory

LONGEST_SECONDS = 60


def story_of(seed: int, log: Callable[[str], None] | None = None) -> Story:
    """Make a seed's story; in every fourth peers come back."""
    return TravelStory(seed, log) if seed % 4 == 3 else Story(seed, log)


def outcome(seed: int) -> tuple[int, str | None, Counter[str]]:
    """Tell one seed's story; returns what was wrong, None where nothing was, and counts of what happened."""
    story = story_of(seed)
    # Whatever turns in circles is interrupted.
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(LONGEST_SECONDS)
    try:
        story.tell()
    except Breach as breach:
        return seed, str(breach), story.counts
    except (Exception, KeyboardInterrupt):
        return seed, traceback.format_exc(), story.counts
    finally:
        signal.alarm(0)
    return seed, None, story.counts + Counter({"relays": len(story.sent), "early": story.early})


def main() -> int:
    """Tell what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="tell one story")
    parser.add_argument("--trace", action="store_true", help="with --seed: print everything that happens")
    parser.add_argument("--seeds", default="0-999", help="tell many, like 0-99,120 (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at the same time (default: %(default)s)")
    parser.add_argument("--most", type=int, default=10, help="stop after so many failures (default: %(default)s)")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed, options.trace)
    return _many(_seeds(options.seeds), options.jobs, options.most)


def _seeds(text: str) -> list[int]:
    ranges = [part.split("-") for part in text.split(",")]
    return [seed for part in ranges for seed in range(int(part[0]), int(part[-1]) + 1)]


def _one(seed: int, trace: bool) -> int:
    story = story_of(seed, print if trace else None)
    try:
        story.tell()
    except Breach as breach:
        print(f"seed {seed} FAILED:\n{breach}")
        return 1
    print(f"seed {seed} passed: {dict(story.counts)}")
    return 0


def _many(seeds: list[int], jobs: int, most: int) -> int:
    started = time.monotonic()
    failed = done = 0
    totals: Counter[str] = Counter()
    with ProcessPoolExecutor(jobs) as pool:
        waiting = iter(seeds)
        # A few at a time, so that there is an end after the first failures.
        while batch := list(islice(waiting, 64 * jobs)):
            for seed, fault, counts in pool.map(outcome, batch, chunksize=4):
                done += 1
                totals += counts
                if fault is not None:
                    failed += 1
                    print(f"seed {seed} FAILED:\n{fault}\n", flush=True)
            if failed >= most:
                break
    seconds = time.monotonic() - started
    print(f"{done} stories in {seconds:.1f} s ({done / seconds:.1f} a second), {failed} failed; {dict(totals)}")
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
