"""Two hundred scenarios, and those that found a bug once; for more: ``python -m tests.simulator --help``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulator.scenario import Scenario

# A seed runs another scenario whenever the simulator changes; these are kept as long as they run theirs.
KEPT = {
    "t3": "ICE servers from before a resume came behind those of its welcome",
    "t4": "a sender that had moved got no outcome of what it had sent before",
    "t12": "what waited for a peer that moved was said to be written",
    "t15": "a node that got a peer too late did not say that what waited is dropped",
    "t45": "what a sender sent after it had moved overtook what it had sent before",
    "t167": "a client counted the error that it got in place of a welcome, and could not resume any more",
    "t325": "a relay ended while its sender was offered to another node, which did not take it",
    "t3566": "answers that waited for the end of a hand-off pushed out what its client had not seen",
    "t405": "nobody was told that a peer had left whose move had no answer",
    "t795": "a node that stopped told that a peer had left which had moved to another node",
    "t4128": "a comparison with the store from before a leave decided that nobody had left",
    "t20342": "a late call of a node put back a peer that the store had just given to another one",
    "t20804": "a client resumed on the node that it was leaving, which had not heard yet that it had left",
    "t21925": "a node stopped while another one took over one of its peers",
    "t7311": "nobody was told that a peer had left before its node, which had been evicted, was back",
    "t4224": "the store moved a peer by a late call, after the comparison that looked for it",
    "t65": "a late reply of the store made a node say that a peer had left which a third node had taken",
    "t9826": "a node that missed two moves said that what its peer had received was dropped",
}


def test_a_bug_that_was_found_once_is_not_found_again() -> None:
    run(",".join(KEPT))


def test_all_invariants_hold_after_random_faults() -> None:
    run("10000-10099,t10000-10099,q10000-10019")


def run(seeds: str) -> None:
    # In a process of its own, in which sets have the same order in every run.
    command = [sys.executable, "-m", "tests.simulator", "--seeds", seeds]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("seed", range(5))
def test_a_store_that_loses_its_data_makes_nobody_leave_who_is_there(seed: int) -> None:
    scenario = Scenario(seed, with_join_conditions=False)
    scenario.run_for(3)
    for _ in range(8):
        scenario.join()
    scenario.run_for(3)
    gone = scenario.live()[0]
    scenario.store.crash(None)
    scenario.run_for(1)
    gone.node.lose(gone.connection)
    scenario.run_for(4)
    scenario.store.restart()
    scenario.run_for(20)
    assert len(scenario.live()) == 7
    for client in scenario.live():
        assert client.known is not None
        assert client.known.keys() == {other.id for other in scenario.live() if other.topic == client.topic} - {
            client.id
        }
    assert not scenario.counts["left for a time"]


@pytest.mark.parametrize("seed", range(5))
def test_a_store_that_is_emptied_while_it_runs_makes_nobody_leave(seed: int) -> None:
    scenario = Scenario(seed, with_join_conditions=False)
    scenario.run_for(3)
    for _ in range(6):
        scenario.join()
    scenario.run_for(3.3)
    scenario.store.model.load(None)
    for _ in range(2):
        scenario.join()
    scenario.run_for(20)
    for client in scenario.live():
        assert client.known is not None
        assert client.known.keys() == {other.id for other in scenario.live() if other.topic == client.topic} - {
            client.id
        }
    assert not scenario.counts["left for a time"]


def test_a_seed_runs_the_same_scenario_in_every_process() -> None:
    command = [sys.executable, "-m", "tests.simulator", "--seed", "7", "--trace"]
    traces = [subprocess.run(command, capture_output=True, check=True, env=environment(n)).stdout for n in range(2)]
    assert len(traces[0].splitlines()) > 100
    assert traces[0] == traces[1]


def environment(number: int) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": str(number + 1)}
