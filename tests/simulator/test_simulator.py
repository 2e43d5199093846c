"""Some hundred stories, and those that found something once; for more: ``python -m tests.simulator --seeds 0-9999``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulator.story import Story

# A seed tells another story whenever the simulator changes; these are kept as long as they tell theirs.
KEPT = {
    "48": "a call of a broken connection came late and took a peer away that is there",
    "120": "the store lost its data, and a join's reply hid that it lacked the node's other peers",
    "225": "a node that was taken for dead moved its peers, and its former id kept their topics",
    "804": "a call of a broken connection came late and brought back a peer that had left",
    "863": "the store lost its latest writes, and a peer that had left stayed in a topic that its node had forgotten",
    "979": "a node that stopped had still something to tell",
    "1000": "a relay waited for the snapshot of a topic whose last peer left",
    "1615": "a relay waited in a queue while its node was taken for dead",
    "4556": "relays that waited while their node took another id were sent when their senders had given up on them",
    "6102": "a node that was taken for dead was late with a join, and nobody buried what it brought back",
    "6430": "a slow network made a dead node's end known too late",
    "9547": "a peer was taken out of the store while its own call was on its way",
    "31735": "a join's reply showed a node its own peers under its former id",
    "52467": "a late call left a peer under a node's former id, which nobody looked for",
    "t26": "the session of one peer was given to another",
    "t28": "an event that was sent again brought back who had left meanwhile",
    "t50968": "an arrival was claimed twice, and left a peer behind that nobody was",
    "t50964": "a peer's window ended while another node took it over",
    "t60884": "relays that were given up waited on, and were sent with the next one",
    "t70": "one token was shown twice at once",
    "t48": "a late call took a node's last peer out of a topic, and that node was not told",
    "t1389": "a peer came back to a node whose peers had heard that it left, and they did not hear of it again",
    "t1828": "a store that lost its data was told of a peer by the node that it had left",
    "2671": "a link to a node that was buried by mistake counted from 1 again",
    "2710": "a relay waited for a topic's snapshot while its node was taken for dead",
    "22385": "a store that lost its data counted a node's beats from 1 again, and the others took them for old ones",
}


def test_what_was_found_once_is_not_found_again() -> None:
    tell(",".join(KEPT))


def test_whatever_happens_all_is_true_in_the_end() -> None:
    tell("10000-10199,t10000-10059")


def tell(seeds: str) -> None:
    # In a process of its own, where sets have the order that they have wherever a seed is told.
    command = [sys.executable, "-m", "tests.simulator", "--seeds", seeds]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("seed", range(5))
def test_a_store_that_loses_its_data_makes_nobody_leave_who_is_there(seed: int) -> None:
    story = Story(seed)
    story.run_for(3)
    for _ in range(8):
        story.join()
    story.run_for(3)
    gone = story.live()[0]
    story.store.crash(None)
    story.run_for(1)
    gone.node.disconnect(gone)
    story.run_for(4)
    story.store.restart()
    story.run_for(20)
    assert len(story.live()) == 7
    for client in story.live():
        assert client.known is not None
        assert client.known.keys() == {other.id for other in story.live() if other.topic == client.topic} - {client.id}
    assert not story.counts["left for a while"]


@pytest.mark.parametrize("seed", range(5))
def test_a_store_that_is_emptied_while_it_runs_makes_nobody_leave(seed: int) -> None:
    story = Story(seed)
    story.run_for(3)
    for _ in range(6):
        story.join()
    story.run_for(3.3)
    story.store.model.load(None)
    for _ in range(2):
        story.join()
    story.run_for(20)
    for client in story.live():
        assert client.known is not None
        assert client.known.keys() == {other.id for other in story.live() if other.topic == client.topic} - {client.id}
    assert not story.counts["left for a while"]


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    command = [sys.executable, "-m", "tests.simulator", "--seed", "7", "--trace"]
    traces = [subprocess.run(command, capture_output=True, check=True, env=environment(n)).stdout for n in range(2)]
    assert len(traces[0].splitlines()) > 100
    assert traces[0] == traces[1]


def environment(number: int) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": str(number + 1)}
