"""Which of the conformance suite's verdicts make a run fail."""

from __future__ import annotations

import pytest

from tests.conformance.verdicts import ACCEPTED, Case, summary


def case(number: str, behaviour: str = "OK", closing: str = "OK") -> Case:
    return Case(id=number, behaviour=behaviour, closing=closing, result="what it did", closing_result="how it ended")


@pytest.mark.parametrize("closing", ["OK", "INFORMATIONAL"])
def test_an_ok_case_passes(closing: str) -> None:
    assert case("1.1.1", closing=closing).passed


@pytest.mark.parametrize("verdict", ["FAILED", "NON-STRICT", "UNIMPLEMENTED", "INFORMATIONAL", "a new word"])
def test_a_behaviour_that_the_table_does_not_name_fails(verdict: str) -> None:
    assert not case("6.4.1", verdict).passed


@pytest.mark.parametrize("verdict", ["FAILED", "UNCLEAN", "WRONG CODE", "FAILED BY CLIENT", "a new word"])
def test_no_wrong_closing_is_accepted(verdict: str) -> None:
    assert not case("1.1.1", closing=verdict).passed
    assert not case("12.1.1", "UNIMPLEMENTED", closing=verdict).passed


@pytest.mark.parametrize(("pattern", "verdict", "reason"), ACCEPTED)
def test_an_accepted_case_passes_with_its_verdict_alone(pattern: str, verdict: str, reason: str) -> None:
    number = pattern.replace("*", "1")
    assert case(number, verdict).accepted_because == reason
    assert case(number, verdict).passed
    assert not case(number, "FAILED").passed


def test_the_summary_totals_and_names_what_is_not_ok() -> None:
    cases = [
        case("1.1.1"),
        case("6.4.1", "NON-STRICT"),
        case("7.13.1", "INFORMATIONAL", "INFORMATIONAL"),
        case("12.1.1", "UNIMPLEMENTED"),
        case("13.7.18", "UNIMPLEMENTED"),
    ]
    lines = list(summary(cases))
    assert lines[:4] == [
        "5 cases",
        "behaviour: 2 UNIMPLEMENTED, 1 OK, 1 NON-STRICT, 1 INFORMATIONAL",
        "closing: 4 OK, 1 INFORMATIONAL",
        "6.4.1 NOT ACCEPTED: behaviour NON-STRICT (what it did), closing OK (how it ended)",
    ]
    assert lines[4].startswith("7.13.1 INFORMATIONAL: ")
    assert lines[5].startswith("12.1.1 to 13.7.18 UNIMPLEMENTED: ")
    assert len(lines) == 6
