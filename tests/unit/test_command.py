"""The command ``signaling``, and ``python -m signaling``."""

from __future__ import annotations

import sys

import pytest

from signaling.app import command
from signaling.app.option_table import CONFIGURABLE


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What ``twistd`` was started with."""
    runs: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["signaling", "--demo"])
    monkeypatch.setattr(command.twistd, "run", lambda: runs.append(sys.argv[1:]))
    return runs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["signaling"]),
        (["--port", "9000"], ["signaling", "--port", "9000"]),
        (["--demo", "--", "--reactor=poll"], ["--reactor=poll", "signaling", "--demo"]),
        (["--", "--logfile", "x"], ["--logfile", "x", "signaling"]),
        (["--", "--help"], ["--help", "signaling"]),
        (None, ["signaling", "--demo"]),
    ],
)
def test_it_is_twistd_in_the_foreground_without_a_pid_file(
    started: list[list[str]], arguments: list[str] | None, expected: list[str]
) -> None:
    command.main(arguments)
    assert started == [["-n", "--pidfile=", *expected]]


def test_its_help_shows_the_options_of_the_server_alone(
    started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--port=1", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert started == []
    assert text.startswith("Usage: signaling [options]")
    assert all(f"--{name}" in text for name in CONFIGURABLE)
    assert "--reactor" not in text
