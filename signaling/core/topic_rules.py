"""Bounds of topics by their names: the ``[[topics]]`` tables of a configuration file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

MAX_RULES = 100
_MAX_MATCH_CHARACTERS = 256
_MOST_PEERS = 999_999_999
_MATCH, _MAX_PEERS = "match", "max-peers"
_KEYS = (_MATCH, _MAX_PEERS)


@dataclass(frozen=True, slots=True)
class TopicRule:
    """The bounds of the topics whose names match a pattern.

    Args:
        match: a pattern for the whole name. ``*`` stands for any characters or none, ``?`` for exactly one; all others
            stand for themselves.
        max_peers: the most peers of a topic, from 1 to 999,999,999.

    Raises:
        ValueError: an argument is invalid; the text names it as the configuration file does.
    """

    match: str
    max_peers: int

    def __post_init__(self) -> None:
        if not isinstance(self.match, str) or not 0 < len(self.match) <= _MAX_MATCH_CHARACTERS:
            most = f"a pattern of at most {_MAX_MATCH_CHARACTERS} characters"
            raise ValueError(f"{_MATCH}: not {most} for names of topics (for example 'call-*')")
        is_number = isinstance(self.max_peers, int) and not isinstance(self.max_peers, bool)
        if not (is_number and 1 <= self.max_peers <= _MOST_PEERS):
            raise ValueError(f"{_MAX_PEERS}: not a whole number from 1 to {_MOST_PEERS} (for example 2)")


class TopicRules:
    """The rules of one server; for each topic, the first that matches its name counts.

    They are tried one after the other at each join, about 30 us for a hundred. The time for one is at most proportional
    to the length of the name, whatever its pattern.

    Args:
        rules: in order, at most ``MAX_RULES``.

    Raises:
        ValueError: there are more.
    """

    def __init__(self, rules: Sequence[TopicRule] = ()) -> None:
        if len(rules) > MAX_RULES:
            raise ValueError(f"topics: at most {MAX_RULES} tables, not {len(rules)}")
        self._rules = [(_compiled(rule.match).fullmatch, rule) for rule in rules]

    def __len__(self) -> int:
        return len(self._rules)

    def max_peers(self, name: str) -> int | None:
        """Return the most peers of the topic ``name``; None if no rule matches."""
        return next((rule.max_peers for matches, rule in self._rules if matches(name)), None)


def _compiled(pattern: str) -> re.Pattern[str]:
    first, *rest = ["".join("." if each == "?" else re.escape(each) for each in part) for part in pattern.split("*")]
    if not rest:
        return re.compile(first, re.DOTALL)
    *middle, last = rest
    # What is between two asterisks is found as far left as possible, and never looked for again: an atomic group is not
    # tried at another place, so the time does not grow with each asterisk.
    found = "".join(f"(?>.*?{part})" for part in middle if part)
    return re.compile(f"{first}{found}.*{last}", re.DOTALL)


def parse_topic_rules(tables: Any) -> TopicRules:
    """Return the rules of the ``[[topics]]`` tables of a configuration file.

    Args:
        tables: a list with a mapping for each table, with the keys ``match`` and ``max-peers``.

    Raises:
        ValueError: the text says which table, which key and what would be right.
    """
    if not isinstance(tables, list):
        raise ValueError("topics: has to be an array of tables, each with the heading [[topics]]")
    return TopicRules([_rule(f"[[topics]] {number}", table) for number, table in enumerate(tables, 1)])


def _rule(path: str, table: Any) -> TopicRule:
    if not isinstance(table, Mapping):
        raise ValueError(f"{path}: not a table with the keys {' and '.join(_KEYS)}")
    for key in table:
        if key not in _KEYS:
            near = get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {' and '.join(_KEYS)}"
            raise ValueError(f"{path}: there is no key {str(key)[:60]!r}; {hint}")
    for key in _KEYS:
        if key not in table:
            raise ValueError(f"{path}: {key} is missing")
    try:
        return TopicRule(table[_MATCH], table[_MAX_PEERS])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
