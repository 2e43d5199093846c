"""The Dockerfile, as a list of instructions."""

from __future__ import annotations

import re
from pathlib import Path

TREE = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """Return each instruction's keyword and the rest of its line, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (TREE / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(keyword, rest) for keyword, _, rest in (line.partition(" ") for line in lines if line)]


def stage(number: int) -> list[tuple[str, str]]:
    """Return the instructions of one stage, from 0 on, without its FROM."""
    stages: list[list[tuple[str, str]]] = []
    for keyword, rest in instructions():
        if keyword == "FROM":
            stages.append([])
        else:
            stages[-1].append((keyword, rest))
    return stages[number]
