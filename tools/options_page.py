"""Writes the tables of docs/options.md from the options; with ``--check`` only compares them.

Hand-written text stands outside the lines ``<!-- table NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from signaling.app.option_table import CONFIGURABLE, OPTIONS
from signaling.limits import LIMIT_OPTIONS, Option, Unit

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def code(text: str | None) -> str:
    """Return ``text`` as Markdown code, or nothing."""
    return f"`{text}`" if text else ""


def meaning(option: Option) -> str:
    """Return what an option does, for a cell of a table."""
    zero = "" if option.zero is None else f"0: {option.zero}."
    return " ".join(filter(None, (option.help, zero, option.details)))


def row(*cells: str) -> str:
    """Return one row of a table."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|\n"


def reload(option: Option) -> str:
    """Return whether SIGHUP changes an option."""
    return "yes" if option.reloads else ""


def options_table() -> str:
    """Return the table of the options that are not limits."""
    text = row("option", "other variable", "SIGHUP", "default", "meaning") + "|---|---|---|---|---|\n"
    for option in OPTIONS:
        default = "off" if option.unit is Unit.FLAG and option.name in CONFIGURABLE else option.default_text
        text += row(code(f"--{option.name}"), code(option.variable), reload(option), default, meaning(option))
    return text


def limits_table() -> str:
    """Return the table of the limits."""
    text = (
        row("option", "field of `Limits`", "SIGHUP", "default", "meaning", "beyond it") + "|---|---|---|---|---|---|\n"
    )
    for field, option in LIMIT_OPTIONS.items():
        name = code(option.name and f"--{option.name}")
        text += row(name, code(field), reload(option), option.default_text, meaning(option), option.exceeded)
    return text


def main(arguments: list[str]) -> None:
    """Write the page, or compare it.

    Raises:
        SystemExit: the page is not up to date (``--check``).
    """
    tables = {"options": options_table, "limits": limits_table}
    page = PAGE.read_text()
    new = TABLE.sub(lambda found: found[1] + tables[found[2]](), page)
    if "--check" not in arguments:
        PAGE.write_text(new)
    elif new != page:
        raise SystemExit(f"{PAGE} is not up to date: run python tools/options_page.py")


if __name__ == "__main__":
    main(sys.argv[1:])
