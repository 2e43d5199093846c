"""Calls of an application's functions, plain ones and coroutine functions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from signaling.client import callbacks
from signaling.client.callbacks import Calls

Function = Callable[..., Awaitable[object] | None]


class Played:
    """The calls of a function, with their tasks."""

    def __init__(self, function: Function) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.calls = Calls(function, self.tasks)

    async def end(self) -> None:
        """Wait until all calls have ended."""
        while self.tasks:
            await asyncio.wait(self.tasks)


def test_a_plain_function_is_called_at_once() -> None:
    async def scenario() -> None:
        heard: list[str] = []
        played = Played(heard.append)
        played.calls.call("one")
        assert (heard, played.tasks) == (["one"], set())

    asyncio.run(scenario())


def test_calls_of_a_coroutine_function_run_one_after_the_other() -> None:
    heard: list[str] = []

    async def hear(text: str) -> None:
        heard.append(f"{text} begins")
        await asyncio.sleep(0)
        heard.append(f"{text} ends")

    async def scenario() -> None:
        played = Played(hear)
        for text in ("one", "two"):
            played.calls.call(text)
        await played.end()
        played.calls.call("three")
        await played.end()

    asyncio.run(scenario())
    assert heard == [f"{text} {what}" for text in ("one", "two", "three") for what in ("begins", "ends")]


def test_a_function_whose_calls_are_coroutines_now_and_then_keeps_their_order() -> None:
    heard: list[str] = []

    async def later(text: str) -> None:
        await asyncio.sleep(0)
        heard.append(text)

    def hear(text: str) -> Awaitable[None] | None:
        return later(text) if text == "one" else heard.append(text)

    async def scenario() -> None:
        played = Played(hear)
        for text in ("one", "two"):
            played.calls.call(text)
        await played.end()
        assert heard == ["one", "two"]

    asyncio.run(scenario())


def test_a_function_that_starts_tasks_of_its_own_is_not_waited_for() -> None:
    started: list[asyncio.Task[None]] = []
    heard: list[str] = []

    async def scenario() -> None:
        answered = asyncio.Event()

        async def hear(text: str) -> None:
            if text == "answer":
                answered.set()
            await answered.wait()
            heard.append(text)

        def start(text: str) -> asyncio.Task[None]:
            started.append(asyncio.create_task(hear(text)))
            return started[-1]

        played = Played(start)
        for text in ("question", "answer"):
            played.calls.call(text)
        assert (len(started), played.tasks) == (2, set())
        await asyncio.gather(*started)

    asyncio.run(scenario())
    assert sorted(heard) == ["answer", "question"]


@pytest.mark.parametrize("error", [RuntimeError("oops"), asyncio.CancelledError("oops")])
def test_a_call_that_raises_is_logged_and_the_next_one_runs(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    async def hear(text: str) -> None:
        if text == "one":
            raise error
        heard.append(text)

    async def scenario() -> None:
        played = Played(hear)
        for text in ("one", "two"):
            played.calls.call(text)
        await played.end()

    asyncio.run(scenario())
    assert heard == ["two"]
    assert "oops" in caplog.text


@pytest.mark.parametrize(
    ("texts", "heard"), [(["x"] * 2_000, callbacks.MAX_WAITING), (["x" * 6 * 1_048_576] * 4, 2)], ids=["calls", "bytes"]
)
def test_what_waits_for_a_call_that_does_not_end_has_a_bound(
    texts: list[str], heard: int, caplog: pytest.LogCaptureFixture
) -> None:
    count = 0

    async def scenario() -> None:
        go_on = asyncio.Event()

        async def hear(_: str) -> None:
            nonlocal count
            count += 1
            await go_on.wait()

        played = Played(hear)
        for text in texts:
            played.calls.call(text)
        go_on.set()
        await played.end()
        assert count == 1 + heard
        played.calls.call("once more")
        await played.end()
        assert count == 2 + heard

    asyncio.run(scenario())
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("begins", [True, False])
def test_a_task_that_is_cancelled_ends_all_calls(begins: bool) -> None:
    events: list[str] = []

    async def hear(text: str) -> None:
        events.append(text)
        try:
            await asyncio.Event().wait()
        finally:
            events.append("ended")

    async def scenario() -> None:
        played = Played(hear)
        for text in ("one", "two"):
            played.calls.call(text)
        if begins:
            await asyncio.sleep(0)
        for task in played.tasks:
            task.cancel()
        await played.end()

    asyncio.run(scenario())
    assert events == (["one", "ended"] if begins else [])


def test_calls_get_some_more_time_after_the_end() -> None:
    ended: list[Any] = []

    async def hear(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append(seconds)

    async def scenario() -> None:
        played = Played(hear)
        played.calls.call(0)
        played.calls.call(1_000)
        played.calls.cancel_after(0.1)
        await played.end()
        played.calls.cancel_after(0.1)

    asyncio.run(scenario())
    assert ended == [0, "cancelled"]
