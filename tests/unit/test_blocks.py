"""Who is kept out of which topic, for how long, and how many there can be."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from signaling.core.blocks import MAX_BLOCKS, Blocks
from signaling.core.grants import Grant

ADA = Grant(subject="Ada", issuer="north")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def blocks(clock: Clock) -> Blocks:
    return Blocks(clock.seconds)


def test_a_block_counts_for_one_owner_in_one_topic_and_ends(blocks: Blocks, clock: Clock) -> None:
    blocks.add("room", "Ada", "north", 10)
    clock.advance(4)
    assert blocks.seconds_left("room", ADA) == 6
    assert blocks.seconds_left("other", ADA) == 0
    assert blocks.seconds_left("room", Grant(subject="Ada", issuer="south")) == 0
    assert blocks.seconds_left("room", Grant(subject="Bob", issuer="north")) == 0
    assert blocks.seconds_left("room", Grant()) == 0
    clock.advance(6)
    assert blocks.seconds_left("room", ADA) == 0
    assert not blocks


@pytest.mark.parametrize("seconds", [5, 50])
def test_a_second_block_replaces_the_first(blocks: Blocks, seconds: int) -> None:
    blocks.add("room", "Ada", "north", 10)
    blocks.add("room", "Ada", "north", seconds)
    assert (blocks.seconds_left("room", ADA), len(blocks)) == (seconds, 1)


def test_names_do_not_run_into_each_other(blocks: Blocks) -> None:
    blocks.add("room", "1 Ada", None, 10)
    assert blocks.seconds_left("room 1", Grant(subject="Ada")) == 0


def test_of_too_many_the_one_that_ends_first_is_removed(blocks: Blocks) -> None:
    blocks.add("room", "Ada", "north", 1)
    for number in range(MAX_BLOCKS):
        blocks.add("room", f"{number}", None, 100)
    assert blocks.seconds_left("room", ADA) == 0
    assert blocks.seconds_left("room", Grant(subject="0")) == 100
    assert (len(blocks), blocks.displaced) == (MAX_BLOCKS, 1)


def test_blocks_that_are_over_are_removed_first(blocks: Blocks, clock: Clock) -> None:
    for number in range(MAX_BLOCKS):
        blocks.add("room", f"{number}", None, 1 + number % 2)
    clock.advance(1)
    blocks.add("room", "Ada", "north", 1)
    assert (len(blocks), blocks.displaced) == (MAX_BLOCKS // 2 + 1, 0)
