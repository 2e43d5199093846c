"""The steps of a relay and of a connection: whether each is measured, not how long it takes."""

from __future__ import annotations

from benchmarks.relay_steps import steps


def test_every_step_takes_time() -> None:
    costs = list(steps(passes=1))
    assert all(cost.whole > 0 for cost in costs if cost.system_calls is not None)
    assert [cost.step for cost in costs if cost.system_calls is not None] == [
        "a relay: one SDP to ten candidates",
        "a relay of a candidate",
        "a relay of an SDP",
        "a relay with a rate limit",
        "accept",
        "a request: join, welcome and peer-list",
        "a request as Chromium sends it",
        "a close frame: answer, leave and close",
        "leave and close without a close frame",
        "a whole connection, with a close frame",
    ]
