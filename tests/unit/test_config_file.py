"""The lines of the keys in a configuration file, and the errors of a file that is not right."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from signaling.app.config_file import ConfigFile, ConfigProblem, key_lines

QUOTES = '"""'


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", {}),
        ("a = 1\nb = 2", {("a",): 1, ("b",): 2}),
        ("# b = 0\n\n a=1 # c = 3\nb =[\n1, # d = 4\n 2]\nc= 3", {("a",): 3, ("b",): 4, ("c",): 7}),
        ("a = '# no comment'\nb = 'x = 1'", {("a",): 1, ("b",): 2}),
        (f"a = {QUOTES}\nb = 1\n[t]\n{QUOTES}\nb = 2", {("a",): 1, ("b",): 5}),
        (f'a = {QUOTES}x\\{QUOTES}\nb = 1""\n{QUOTES}""\nb = 2', {("a",): 1, ("b",): 4}),
        ("a = '''\nb = ''1\n'''''\nb = 2", {("a",): 1, ("b",): 4}),
        (f"a = {QUOTES}{QUOTES}\nb = \"\"\nc = ''\nd = 1", {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4}),
        ('"a" = 1\n\'b\' = 2\n"\\u0063" = 3\n"d = 1" = 4', {("a",): 1, ("b",): 2, ("c",): 3, ("d = 1",): 4}),
        ("a.b = 1\na . 'c' = 2", {("a",): 1, ("a", "b"): 1, ("a", "c"): 2}),
        ("a = {b = 1, c = [\n2]}\nd = 1", {("a",): 1, ("d",): 3}),
        (
            "a = 1\n[t]\na = 2\n[ 'u' . v ]\na = 3",
            {("a",): 1, ("t",): 2, ("t", "a"): 3, ("u",): 4, ("u", "v"): 4, ("u", "v", "a"): 5},
        ),
        (
            "[[t]]\na = 1\n[[t]]\n# x\na = 2\n[t.u]\nb = 3",
            {("t",): 1, ("t", 0): 1, ("t", 0, "a"): 2, ("t", 1): 3, ("t", 1, "a"): 5, ("t", 1, "u"): 6},
        ),
        ("a = 2020-01-02 03:04:05\nb = 1.5\nc = -inf", {("a",): 1, ("b",): 2, ("c",): 3}),
        ("a.b.c.d.e = 1", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1}),
    ],
)
def test_each_key_has_its_line(text: str, lines: dict[tuple[Any, ...], int]) -> None:
    assert key_lines(text) == lines


TEXTS = strategies.text("""ab=[]{}#.\\"'\n\t """, max_size=8)
ENTRIES = strategies.tuples(TEXTS, TEXTS, strategies.integers(0, 3))


def quoted(text: str, style: int) -> str:
    """Write a text as TOML: on one line, or on as many as it has."""
    if style == 0 and not {"'", "\n"} & set(text):
        return f"'{text}'"
    if style == 1 and "'''" not in f"{text}'":
        return f"'''\n{text}'''"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if style == 2:
        return f"{QUOTES}\n{escaped}{QUOTES}"
    return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t") + '"'


@settings(deadline=None)
@given(strategies.lists(ENTRIES, max_size=6, unique_by=lambda entry: entry[0]))
def test_no_text_is_taken_for_a_key_and_every_key_is_found(entries: list[tuple[str, str, int]]) -> None:
    document, lines, values = "", {}, {}
    for key, text, style in entries:
        lines[key,] = document.count("\n") + 1
        values[key] = [text, {"k": text}]
        comment = f"# ] {text.splitlines()[:1]}"
        document += f"{quoted(key, 3)} = [{quoted(text, style)}, {comment}\n{{k = {quoted(text, 3)}}}]\n"
    assert tomllib.loads(document) == values
    assert key_lines(document) == lines


# Coverage would measure itself.
@pytest.mark.unmeasured
@pytest.mark.parametrize(
    "text",
    [
        "a = [" + "1,\n" * 100_000 + "]",
        "a = " + QUOTES + '""\\"' * 100_000 + QUOTES,
        "a = '''" + "''x" * 100_000 + "'''",
        "a" + ".a" * 100_000 + " = 1",
        "\n".join(f"a{number} = {{b = '{number}'}}" for number in range(30_000)),
        "[[a]]\nb = 1\n" * 30_000,
        " " * 300_000,
    ],
)
def test_the_time_is_linear(text: str) -> None:
    def seconds(text: str) -> float:
        started = time.process_time()
        key_lines(text)
        return time.process_time() - started

    key_lines(text[:100])
    assert seconds(text) < 2


def read(folder: Path, data: bytes) -> ConfigFile:
    path = folder / "signaling.toml"
    path.write_bytes(data)
    return ConfigFile(str(path))


def test_a_place_is_a_file_and_a_line(tmp_path: Path) -> None:
    file = read(tmp_path, b"\xef\xbb\xbfa = 1\r\n[[b]]\r\nc = [1, 2]\r\n")
    assert file.values == {"a": 1, "b": [{"c": [1, 2]}]}
    assert file.place("b", 0, "c") == f"{file.path}: line 3"
    assert file.place("b", 0, "d") == f"{file.path}: line 2"
    assert file.place("x") == file.path


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a = 1\nb", "line 2: not TOML: Expected '=' after a key in a key/value pair"),
        (b"a = 1\nb = debug", 'line 2: not TOML: Invalid value; text needs quotes, as in log-level = "info"'),
        (b"a = 1\na = 2", "line 2: not TOML: Cannot overwrite a value"),
        (b"a = 1\nb = [1,\n\n", "line 2: not TOML: Invalid value"),
        (b"a = 1\nb = '\xff'", "line 2: not UTF-8"),
        (b"a = " + b"1" * 5_000, "a number is too long, or arrays are nested too deeply"),
        (b"a = " + b"[" * 100_000, "a number is too long, or arrays are nested too deeply"),
    ],
)
def test_what_is_no_toml_is_named_with_its_line(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        read(tmp_path, data)
    assert str(caught.value) == f"{tmp_path}/signaling.toml: {reason}"


def test_a_file_that_is_far_too_long_is_refused_before_it_takes_time(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match=r"signaling.toml: longer than 1048576 bytes"):
        read(tmp_path, b"a = 1\n" * 200_000)


def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ConfigProblem, match="--config: /no/such: No such file or directory"):
        ConfigFile("/no/such")
