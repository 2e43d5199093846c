"""Which token a client presents, what a refusal means, and when a token is replaced, with a clock that is told."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.task import Clock

from signaling.client.credential import (
    LONGEST_RENEWAL_SECONDS,
    Credential,
    NoToken,
    Renewal,
    Step,
    checked,
    raised,
)
from signaling.client.errors import Refused


def function() -> str:
    return "fresh"


@pytest.mark.parametrize("token", ["", "two words", "a\r\nX: y", "=", "a=b", "ü", "a\n"])
def test_text_that_is_no_token_is_refused_at_once_and_never_repeated(token: str) -> None:
    with pytest.raises(ValueError, match="characters") as error:
        Credential(token)
    with pytest.raises(NoToken, match="characters") as missing:
        checked(token)
    for text in (str(error.value), str(missing.value)):
        assert not token.strip("=\n") or token not in text


@pytest.mark.parametrize("token", [1, b"token", ["token"]])
def test_a_token_is_text_or_a_function(token: Any) -> None:
    with pytest.raises(TypeError, match="string or a function"):
        Credential(token)


@pytest.mark.parametrize("answer", [None, b"token", 7])
def test_a_function_has_to_return_text(answer: object) -> None:
    with pytest.raises(NoToken, match=f"returned {type(answer).__name__}"):
        checked(answer)


def test_an_exception_of_the_function_is_named_by_type_and_line_without_its_text() -> None:
    try:
        raise KeyError("the secret")
    except KeyError as error:
        text = str(raised(error))
    assert text.startswith("the token function raised KeyError (test_client_credential.py, line ")
    assert "secret" not in text


@pytest.mark.parametrize("status", [401, 403, 4401])
def test_a_function_is_asked_anew_once_and_at_once(status: int) -> None:
    credential = Credential(function)
    assert credential.refused(Refused(status, "no")).at_once
    for second in (401, 403, 4401):
        with pytest.raises(Refused, match=str(second)):
            credential.refused(Refused(second, "no"))
    credential.accepted()
    assert credential.refused(Refused(status, "no")).at_once


@pytest.mark.parametrize("source", [None, "token"])
@pytest.mark.parametrize("status", [401, 403, 4401])
def test_without_a_function_a_refusal_is_the_end(source: str | None, status: int) -> None:
    with pytest.raises(Refused):
        Credential(source).refused(Refused(status, "no"))


@pytest.mark.parametrize("status", [400, 404, 421])
def test_what_has_nothing_to_do_with_the_token_is_the_end(status: int) -> None:
    with pytest.raises(Refused):
        Credential(function).refused(Refused(status, "no"))


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [
        (100, 80),
        (5, 4),
        (1, 1),
        (0, 1),
        (-5, 1),
        (float("nan"), 1),
        (10**400, 0.8 * LONGEST_RENEWAL_SECONDS),
        (float("inf"), 0.8 * LONGEST_RENEWAL_SECONDS),
    ],
)
def test_a_token_is_replaced_after_four_fifths_of_its_time(expires_in: float, seconds: float) -> None:
    renewal = Renewal(Clock().seconds)
    renewal.expires_in(expires_in)
    assert renewal.step() == Step(pytest.approx(seconds))
    assert renewal.step() is None


def test_a_token_that_never_expires_is_not_replaced() -> None:
    renewal = Renewal(Clock().seconds)
    renewal.expires_in(10)
    renewal.expires_in(None)
    assert renewal.step() is None
    renewal.failed("no")
    assert renewal.step() is None


def test_a_failure_is_repeated_while_there_is_time() -> None:
    clock = Clock()
    renewal = Renewal(clock.seconds)
    renewal.expires_in(3_600)
    step = renewal.step()
    times = []
    while step is not None and step.seconds is not None:
        clock.advance(step.seconds)
        times.append(clock.seconds())
        renewal.failed("down")
        step = renewal.step()
    assert step == Step(None, "down")
    # At 48 minutes, then more and more often, and never twice in a second.
    assert times[0] == 2_880
    assert 10 < len(times) < 30
    assert min(later - earlier for earlier, later in pairwise(times)) >= 1
    assert 3_597 < times[-1] < 3_600


def test_the_warning_says_what_follows() -> None:
    assert Step(3.0).warning == ""
    assert Step(3.0, "down").warning.endswith("no new one: down; asking again in 3.0 s")
    assert Step(None, "down").warning.endswith("no new one: down; the connection ends with it")
