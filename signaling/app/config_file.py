"""Reads a configuration file in TOML, and finds the line of each of its keys.

``tomllib`` decides what is TOML, but has no positions of values. So the lines are found in a second pass over the text,
which only has to be right for valid TOML.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from signaling.files import read_file

KeyPath = tuple[str | int, ...]
"""The keys that lead to a value: names, and the index of a table in an array of tables."""

_TOKEN = re.compile(
    r'''
      (?P<space> [ \t\r]++ | \#[^\n]*+ )
    | (?P<newline> \n )
    | (?P<string>
        """ (?: [^"\\]++ | \\. | "{1,2}(?!") )* "{3,5}
      | \'\'\' (?: [^']++ | '{1,2}(?!') )* '{3,5}
      | " (?: [^"\\\n]++ | \\. )* "
      | ' [^'\n]*+ '
      )
    | (?P<mark> [\[\]{}=.,] )
    | (?P<bare> [^\s\#"'\[\]{}=.,]++ )
    ''',
    re.VERBOSE | re.DOTALL,
)
# The key of a table in an array of tables.
_DEEPEST = 3
# To read ten times as much would keep a running server busy for seconds.
_MAX_BYTES = 1_048_576
_POSITION = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)$")


class ConfigProblem(ValueError):
    """A configuration file cannot be used; the text names the line, or the option if there is none."""


class ConfigFile:
    """A file that was read.

    Args:
        path: as the operator wrote it; errors name it so.

    Attributes:
        path: the same.
        values: by the keys at the top.
        is_empty: whether it has nothing but white space, not even a comment.

    Raises:
        ConfigProblem: it cannot be read, or is no TOML.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            data = read_file(path)
        except (OSError, ValueError) as error:
            raise ConfigProblem(f"--config: {path}: {getattr(error, 'strerror', None) or error}") from None
        if len(data) > _MAX_BYTES:
            raise ConfigProblem(f"{path}: longer than {_MAX_BYTES} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigProblem(f"{path}: line {line}: not UTF-8") from None
        # As tomllib reads it; a carriage return alone ends no line.
        self._text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        self.is_empty = not self._text.strip()
        self.values = self._parse()
        self._lines: dict[KeyPath, int] | None = None

    def _parse(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            position = _POSITION.search(str(error))
            at = position[1] if position is not None else None
            line = int(at or self._text.rstrip().count("\n") + 1)
            reason = _POSITION.sub("", str(error))
            hint = '; text needs quotes, as in log-level = "info"' if at and reason == "Invalid value" else ""
            raise ConfigProblem(f"{self.path}: line {line}: not TOML: {reason}{hint}") from None
        except (ValueError, RecursionError):
            raise ConfigProblem(f"{self.path}: a number is too long, or arrays are nested too deeply") from None

    @property
    def folder(self) -> Path:
        """The folder of the file: relative paths in it start there."""
        return Path(self.path).absolute().parent

    def place(self, *keys: str | int) -> str:
        """Return the file and the line of a key, for people."""
        if self._lines is None:
            self._lines = key_lines(self._text)
        path: KeyPath = keys
        while path and path not in self._lines:
            # Inside of an inline table or an array, the line of which is near enough.
            path = path[:-1]
        return f"{self.path}: line {self._lines[path]}" if path else self.path


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line of each key of a TOML document, counted from 1; for a table, the line where it begins.

    Left out are keys inside of an inline table or an array, and those deeper than any option. The time is linear in the
    length of the text.

    Args:
        text: valid TOML, whose lines end with a line feed.
    """
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    indexes: dict[KeyPath, int] = {}
    line, keys, header, depth, in_value = 1, list[str](), 0, 0, False
    for token in _TOKEN.finditer(text + "\n"):
        kind, piece = token.lastgroup, token[0]
        if kind == "newline" and header:
            table = _table(keys, indexes, is_array=header == 2)
            _note(lines, table, line)
        if in_value and (kind != "newline" or depth):
            depth += (piece in "[{") - (piece in "]}") if kind == "mark" else 0
        elif kind == "newline":
            keys, header, in_value = [], 0, False
        elif piece == "=":
            in_value = True
            _note(lines, (*table, *keys), line)
        elif piece == "[":
            header += 1
        elif kind in ("bare", "string") and len(keys) < _DEEPEST:
            keys.append(piece if kind == "bare" else tomllib.loads(f"key = {piece}")["key"])
        line += piece.count("\n")
    return lines


def _table(keys: list[str], indexes: dict[KeyPath, int], *, is_array: bool) -> KeyPath:
    """Return the path of the table that a header begins."""
    path: KeyPath = ()
    for key in keys[:-1]:
        path += (key,)
        if path in indexes:
            path += (indexes[path],)
    path += (keys[-1],)
    if not is_array:
        return path
    indexes[path] = indexes.get(path, -1) + 1
    return (*path, indexes[path])


def _note(lines: dict[KeyPath, int], path: KeyPath, line: int) -> None:
    for length in range(1, min(len(path), _DEEPEST) + 1):
        lines.setdefault(path[:length], line)
