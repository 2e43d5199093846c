"""Bounds of topics by their names: which rule counts, what a pattern matches and how long that takes."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling.core.topic_rules import MAX_RULES, TopicRule, TopicRules, parse_topic_rules
from signaling.core.topics import TopicMap
from signaling.errors import Rejected
from tests.unit.test_values import Member


@pytest.mark.parametrize(
    ("match", "name", "expected"),
    [
        ("call-*", "call-1", True),
        ("call-*", "call-", True),
        ("call-*", "my-call-1", False),
        ("call-*", "Call-1", False),
        ("*", "", True),
        ("*", "line\nbreak", True),
        ("call", "call", True),
        ("call", "call-1", False),
        ("?", "é", True),
        ("?", "𝄞", True),
        ("?", "\n", True),
        ("?", "", False),
        ("??", "a", False),
        ("a*b*a", "aba", True),
        ("a*b*a", "ab", False),
        ("ab*ba", "aba", False),
        ("*a?c*", "xxabcxx", True),
        ("*a?c*", "xxac", False),
        ("**a**", "bab", True),
        ("a.c", "abc", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("a\\*", "a\\b", True),
    ],
)
def test_a_pattern_is_for_the_whole_name(match: str, name: str, expected: bool) -> None:
    assert (TopicRules([TopicRule(match, 7)]).max_peers(name) == 7) is expected


@given(st.text("ab*?", min_size=1, max_size=8), st.text("abc", max_size=10))
def test_patterns_match_as_those_of_the_shell_do(match: str, name: str) -> None:
    assert (TopicRules([TopicRule(match, 7)]).max_peers(name) == 7) is fnmatchcase(name, match)


@pytest.mark.parametrize(
    "match", ["*a" * 127 + "*b", "*?a" * 85 + "b", "a*" * 127 + "b", "*" * 255 + "b", "*aaaaaaaab" * 25]
)
def test_no_pattern_takes_long_whatever_the_name(match: str) -> None:
    rules = TopicRules([TopicRule(match, 7)])
    start = time.process_time()
    for _ in range(10):
        assert rules.max_peers("a" * 256) is None
    assert time.process_time() - start < 1


def test_the_first_rule_that_matches_counts() -> None:
    rules = parse_topic_rules(
        [{"match": "call-lobby", "max-peers": 100}, {"match": "call-*", "max-peers": 2}, {"match": "*", "max-peers": 9}]
    )
    names = ("call-lobby", "call-1", "room")
    assert [rules.max_peers(name) for name in names] == [100, 2, 9]
    assert parse_topic_rules([]).max_peers("room") is None


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"match": "*", "max-peers": 2}, r"topics: has to be an array of tables, each with the heading \[\[topics\]\]"),
        (7, "topics: has to be an array of tables"),
        (["call-*"], r"\[\[topics\]\] 1: not a table with the keys match and max-peers"),
        ([{"match": "*"}], r"\[\[topics\]\] 1: max-peers is missing"),
        ([{"max-peers": 2}], r"\[\[topics\]\] 1: match is missing"),
        (
            [{"match": "*", "max-peers": 2}, {"match": "*", "max_peers": 2}],
            r"\[\[topics\]\] 2: there is no key 'max_peers'; did you mean max-peers\?",
        ),
        ([{"match": "*", "ttl": 2}], r"\[\[topics\]\] 1: there is no key 'ttl'; there are match and max-peers"),
        ([{"match": 7, "max-peers": 2}], r"\[\[topics\]\] 1: match: not a pattern of at most 256 characters"),
        ([{"match": "", "max-peers": 2}], r"\[\[topics\]\] 1: match: not a pattern"),
        ([{"match": "x" * 257, "max-peers": 2}], r"\[\[topics\]\] 1: match: not a pattern of at most 256 characters"),
        ([{"match": "*", "max-peers": 0}], r"\[\[topics\]\] 1: max-peers: not a whole number from 1 to 999999999"),
        ([{"match": "*", "max-peers": True}], r"\[\[topics\]\] 1: max-peers: not a whole number"),
        ([{"match": "*", "max-peers": 2.5}], r"\[\[topics\]\] 1: max-peers: not a whole number"),
        ([{"match": "*", "max-peers": "2"}], r"\[\[topics\]\] 1: max-peers: not a whole number"),
        ([{"match": "*", "max-peers": 2}] * (MAX_RULES + 1), "topics: at most 100 tables, not 101"),
    ],
)
def test_what_is_wrong_is_named_with_its_table(tables: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        parse_topic_rules(tables)


def test_a_rule_may_raise_or_lower_the_bound_and_a_token_only_lowers_it() -> None:
    topics: TopicMap[Member] = TopicMap(5, 10_000, parse_topic_rules([{"match": "big-*", "max-peers": 8}]))
    assert topics.max_peers("room").number == topics.max_peers("room", 6).number == 5
    assert topics.max_peers("big-1").number == topics.max_peers("big-1", 9).number == 8
    assert topics.max_peers("big-1", 7).number == 7
    assert (topics.max_peers("big-1", 8).by_token, topics.max_peers("big-1", 7).by_token) == (False, True)


def test_another_set_of_rules_counts_from_the_next_join_on() -> None:
    topics: TopicMap[Member] = TopicMap(5, 10_000)
    topics.join("room", Member("a"))
    topics.rules = parse_topic_rules([{"match": "*", "max-peers": 1}])
    with pytest.raises(Rejected, match="the topic has 1 peers, which is the most"):
        topics.join("room", Member("b"))
