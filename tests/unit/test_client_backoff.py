"""When a client connects again, with a clock and a chance that are told what to say."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from signaling.client import Backoff, Refused
from signaling.client.backoff import STABLE_SECONDS, Loss, closing, refusal

CUT = Loss("cut")


def backoff(clock: Clock, chance: float) -> Backoff:
    return Backoff(1.0, 10.0, clock=clock.seconds, chance=lambda: chance)


def test_times_double_up_to_the_longest() -> None:
    waits = backoff(Clock(), 0.0)
    assert [waits.delay(CUT) for _ in range(6)] == [1, 2, 4, 8, 10, 10]


def test_chance_takes_up_to_a_half() -> None:
    waits = backoff(Clock(), 1.0)
    assert [waits.delay(CUT) for _ in range(3)] == [0.5, 1, 2]


@pytest.mark.parametrize(("lasted", "delay"), [(STABLE_SECONDS, 1), (STABLE_SECONDS - 1, 4)])
def test_only_a_connection_that_lasted_starts_anew(lasted: float, delay: float) -> None:
    clock = Clock()
    waits = backoff(clock, 0.0)
    waits.delay(CUT)
    waits.delay(CUT)
    waits.opened()
    clock.advance(lasted)
    assert waits.delay(CUT) == delay


@pytest.mark.parametrize(
    ("code", "least", "most"), [(1001, 0, 4), (1012, 0, 4), (1013, 1.25, 2.5), (1008, 5, 10), (1006, 0.5, 1)]
)
def test_a_close_code_tells_how_soon(code: int, least: float, most: float) -> None:
    # Of a server that stops everyone comes back, so chance decides on the whole time; else on half of it.
    delays = sorted(backoff(Clock(), chance).delay(Loss("closed", code)) for chance in (0.0, 1.0))
    assert delays == [least, most]


def test_a_new_token_is_tried_at_once_but_not_again_and_again() -> None:
    clock = Clock()
    waits = backoff(clock, 0.0)
    anew = Loss("the token has expired", at_once=True)
    assert [waits.delay(anew) for _ in range(4)] == [0, 1, 2, 4]
    waits.opened()
    clock.advance(STABLE_SECONDS)
    assert [waits.delay(anew) for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_and_spread(status: int) -> None:
    loss = refusal(status, "later", None, {"retry-after": "7"})
    assert [backoff(Clock(), chance).delay(loss) for chance in (0.0, 1.0)] == [7, 8]


@pytest.mark.parametrize("value", ["", "soon", "-1", "Tue, 01 Jan 2030 00:00:00 GMT"])
def test_a_retry_after_that_is_no_number_of_seconds_counts_as_none(value: str) -> None:
    assert refusal(503, "later", None, {"retry-after": value}).retry_after_seconds == 0


def test_a_retry_after_of_days_is_cut() -> None:
    assert refusal(503, "later", None, {"retry-after": "999999"}).retry_after_seconds == 3_600


@pytest.mark.parametrize("status", [400, 403, 404, 405, 426])
def test_what_would_be_refused_again_is_an_end(status: int) -> None:
    with pytest.raises(Refused, match=str(status)):
        refusal(status, "no", None, {})


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_passes_is_a_loss(status: int) -> None:
    assert str(status) in refusal(status, "later", None, {}).reason


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"the topic is longer than 256 bytes\n", "the topic is longer than 256 bytes"),
        (b"", "Bad Request"),
        (None, "Bad Request"),
        (b"two\r\nlines, \x1b[2J and \xff", "two lines, [2J and \ufffd"),
        (b"x" * 1_000_000, "x" * 500),
    ],
)
def test_a_refusal_tells_what_the_server_wrote_as_one_printable_line(body: bytes | None, told: str) -> None:
    with pytest.raises(Refused) as refused:
        refusal(400, "Bad Request", body, {})
    assert (refused.value.status, refused.value.reason) == (400, told)
    assert refusal(500, "Bad Request", body, {}).reason == f"HTTP 500: {told}"


def test_a_token_that_has_expired_is_an_end() -> None:
    with pytest.raises(Refused, match="close code 4401: the token has expired"):
        closing(4401, "the token has expired")


@pytest.mark.parametrize(("code", "unexplained"), [(4403, "removed this peer"), (4404, "closed the topic")])
def test_an_operator_who_ends_the_stay_of_a_peer_is_an_end(code: int, unexplained: str) -> None:
    with pytest.raises(Refused, match=f"^close code {code}: an operator {unexplained}") as refused:
        closing(code, "")
    assert refused.value.status == code
    with pytest.raises(Refused, match=f"^close code {code}: Enough, Mallory x+$") as refused:
        closing(code, "Enough,\r\n\x1b\u202eMallory " + "x" * 100_000)
    assert len(refused.value.reason) < 500


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [(1001, "", "1001"), (1008, "slow\ndown", "1008: slow down"), (None, "", "no close frame")],
)
def test_any_other_end_of_a_connection_is_a_loss(code: int | None, reason: str, told: str) -> None:
    assert closing(code, reason) == Loss(f"the connection was lost ({told})", code)
