"""Some hundred stories, and those that found something once; for more: ``python -m tests.simulator --seeds 0-9999``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulator.story import Story

# A seed tells another story whenever the simulator changes; these are kept as long as they tell theirs.
KEPT = {
    48: "a call of a broken connection came late and took a peer away that is there",
    120: "the store lost its data, and a join's reply hid that it lacked the node's other peers",
    225: "a node that was taken for dead moved its peers, and its former id kept their topics",
    804: "a call of a broken connection came late and brought back a peer that had left",
    863: "the store lost its latest writes, and a peer that had left stayed in a topic that its node had forgotten",
    979: "a node that stopped had still something to tell",
    1000: "a relay waited for the snapshot of a topic whose last peer left",
    1615: "a relay waited in a queue while its node was taken for dead",
    2671: "a link to a node that was buried by mistake counted from 1 again",
    22385: "a store that lost its data counted a node's beats from 1 again, and the others took them for old ones",
}


@pytest.mark.parametrize("seed", KEPT)
def test_what_was_found_once_is_not_found_again(seed: int) -> None:
    Story(seed).tell()


@pytest.mark.parametrize("first", range(10_000, 10_240, 20))
def test_whatever_happens_all_is_true_in_the_end(first: int) -> None:
    for seed in range(first, first + 20):
        Story(seed).tell()


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    command = [sys.executable, "-m", "tests.simulator", "--seed", "7", "--trace"]
    traces = [subprocess.run(command, capture_output=True, check=True, env=_environment(n)).stdout for n in range(2)]
    assert len(traces[0].splitlines()) > 100
    assert traces[0] == traces[1]


def _environment(number: int) -> dict[str, str]:
    # The order of sets differs from process to process, unless the simulator sees to it.
    return {**os.environ, "PYTHONHASHSEED": str(number + 1)}
