"""Calls of an application's function, which may be a coroutine function.

A function that is not one is called at once. Calls of a coroutine function run one after the other, so that messages
stay in order; what waits for one that takes long has a bound, since strangers send it. A task or a future that a
function returns is its own: nothing waits for it or cancels it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from inspect import iscoroutine
from typing import Any

_log = logging.getLogger("signaling.client")

MAX_WAITING = 1_024
MAX_WAITING_BYTES = 16 * 1_048_576
"""Calls of one function that wait for the one before them, and the bytes of their arguments."""


class Calls:
    """The calls of one function.

    An exception of the function is logged, and the next call goes on.

    Args:
        function: None if there is nothing to call.
        tasks: holds the task that runs calls, until they have ended. To cancel it cancels the calls that wait as well.
    """

    def __init__(self, function: Callable[..., Any] | None, tasks: set[asyncio.Task[None]]) -> None:
        self._function = function
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[tuple[tuple[Any, ...], int]] = deque()
        self._waiting_bytes = 0
        self._has_warned = False

    def cancel_after(self, seconds: float) -> None:
        """Give the calls that have not ended so much more time."""
        if self._task is not None:
            asyncio.get_running_loop().call_later(seconds, self._task.cancel)

    def call(self, *arguments: Any) -> None:
        """Call the function, or let the call wait; if too much waits, it is left out, with a warning in the log."""
        if self._task is None:
            running = self._begin(arguments)
            if running is not None:
                self._task = asyncio.create_task(self._run(running))
                self._tasks.add(self._task)
                self._task.add_done_callback(partial(self._ended, running))
            return
        size = sum(len(argument) for argument in arguments if isinstance(argument, str | bytes))
        if len(self._waiting) < MAX_WAITING and self._waiting_bytes + size <= MAX_WAITING_BYTES:
            self._waiting.append((arguments, size))
            self._waiting_bytes += size
        elif not self._has_warned:
            self._has_warned = True
            _log.warning("calls of a listener are left out: too many wait for one that has not ended")

    def _begin(self, arguments: tuple[Any, ...]) -> Coroutine[Any, Any, Any] | None:
        if self._function is None:
            return None
        try:
            outcome = self._function(*arguments)
        except Exception:
            # In aiortc, it would end the connection.
            _log.exception("a listener of the mesh failed")
            return None
        return outcome if iscoroutine(outcome) else None

    async def _run(self, running: Coroutine[Any, Any, Any]) -> None:
        await _finish(running)
        while self._waiting:
            arguments, size = self._waiting.popleft()
            self._waiting_bytes -= size
            following = self._begin(arguments)
            if following is not None:
                await _finish(following)
        # From now on, the next call begins at once.
        self._task = None

    def _ended(self, first: Coroutine[Any, Any, Any], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._task is task:
            self._task = None
            self._waiting.clear()
            self._waiting_bytes = 0
        first.close()  # The task may have been cancelled before it began.


async def _finish(running: Awaitable[Any]) -> None:
    try:
        await wait_for_call(running)
    except Exception:
        _log.exception("a listener of the mesh failed")


async def wait_for_call(running: Awaitable[Any]) -> None:
    """Wait for the end of a call.

    Raises:
        RuntimeError: if it was cancelled, and this task is not: it awaited something that was.
    """
    try:
        await running
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("it awaited something that was cancelled") from error
