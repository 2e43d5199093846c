"""Writes what the Helm chart has from elsewhere; with ``--check`` only compares it.

That is: the alert rules and the dashboard, the options of the server in the schema of ``config``, and the
table of values in the chart's README.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from signaling.app.option_table import CONFIGURABLE, help_text
from signaling.limits import Option, Unit

TREE = Path(__file__).parents[1]
CHART = TREE / "deploy" / "helm"
# A chart may only read files of its own folder, and some tools that fetch charts leave out symbolic links.
COPIED = ("alerts.yml", "grafana.json")
# The chart says where the server listens and where its configuration file is.
NOT_IN_CONFIG = ("config", "port", "listen")
TABLE = re.compile(r"(<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)
_TYPES = {
    Unit.FLAG: "boolean",
    Unit.COUNT: "integer",
    Unit.BYTES: "integer",
    Unit.SECONDS: "number",
    Unit.PER_SECOND: "number",
}


def option_schema(option: Option) -> dict[str, Any]:
    """Return the schema of one option in ``config``."""
    schema: dict[str, Any] = {"description": help_text(option)}
    if not option.repeats:
        return schema | {"type": _TYPES.get(option.unit, "string")}
    return schema | {"type": ["string", "array"], "items": {"type": "string"}}


def schema_json() -> str:
    """Return ``values.schema.json`` with the options of the server."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    options = {name: option_schema(option) for name, option in CONFIGURABLE.items() if name not in NOT_IN_CONFIG}
    options["topics"] = {
        "description": "Topics with a bound of their own.",
        "type": "array",
        "items": {
            "type": "object",
            "required": ["match", "max-peers"],
            "additionalProperties": False,
            "properties": {"match": {"type": "string"}, "max-peers": {"type": "integer", "minimum": 1}},
        },
    }
    schema["properties"]["config"] = {
        "description": "Options of the server by their names.",
        "type": "object",
        "additionalProperties": False,
        "properties": options,
    }
    return json.dumps(schema, indent=2) + "\n"


def rows() -> Iterator[tuple[str, str, str]]:
    """Walk through ``values.yaml``: the name of each value, its default and its comment.

    Raises:
        ValueError: a value has no comment.
    """
    text = (CHART / "values.yaml").read_text()
    lines = text.split("\n")
    yield from _rows("", yaml.compose(text), lines)


def _rows(above: str, node: yaml.MappingNode, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        name = f"{above}{key.value}"
        comment = _comment_above(lines, key.start_mark.line)
        group = isinstance(value, yaml.MappingNode) and not value.flow_style
        if group and (not comment or _comment_above(lines, value.value[0][0].start_mark.line)):
            if comment:
                yield name, "", comment
            yield from _rows(f"{name}.", value, lines)
        elif comment:
            plain = yaml.safe_load(yaml.serialize(value))
            yield name, json.dumps(plain), comment
        else:
            raise ValueError(f"values.yaml: {name} has no comment")


def _comment_above(lines: list[str], line: int) -> str:
    found: list[str] = []
    while line and (match := re.match(r" *# (.*)", lines[line - 1])):
        found.insert(0, match[1])
        line -= 1
    return " ".join(found)


def readme() -> str:
    """Return the chart's README with the table of its values."""
    table = "| value | default | meaning |\n|---|---|---|\n"
    for name, default, comment in rows():
        cells = (f"`{name}`", f"`{default}`" if default else "", comment)
        table += "|" + "|".join(f" {cell.replace('|', chr(92) + '|')} " if cell else " " for cell in cells) + "|\n"
    return TABLE.sub(lambda found: found[1] + table, (CHART / "README.md").read_text())


def written() -> dict[Path, str]:
    """Return the text of each file."""
    files = {CHART / "files" / name: (TREE / "deploy" / name).read_text() for name in COPIED}
    return files | {
        CHART / "values.schema.json": schema_json(),
        CHART / "README.md": readme(),
    }


def main(arguments: list[str]) -> None:
    """Write the files, or compare them.

    Raises:
        SystemExit: a file is not up to date (``--check``).
    """
    for path, text in written().items():
        if "--check" not in arguments:
            path.write_text(text)
        elif path.read_text() != text:
            raise SystemExit(f"{path.relative_to(TREE)} is not up to date: run python tools/chart.py")


if __name__ == "__main__":
    main(sys.argv[1:])
