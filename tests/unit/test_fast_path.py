"""The fast path is on with the versions that are installed, and off where it was asked to be or does not fit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PRINT_FAST = "from signaling.websocket.fast_path import FrameReader; print(FrameReader.fast)"
BROKEN = """
from autobahn.websocket.protocol import WebSocketProtocol
def broken(self):
    raise AttributeError("another Autobahn")
WebSocketProtocol.processControlFrame = broken
"""


def printed(code: str, fast_path: str) -> str:
    environ = {**os.environ, "SIGNALING_FAST_PATH": fast_path}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60, env=environ
    ).stdout.strip()


@pytest.mark.parametrize(("switch", "fast"), [("on", "True"), ("off", "False"), ("", "True")])
def test_the_fast_path_fits_what_is_installed(switch: str, fast: str) -> None:
    assert printed(PRINT_FAST, switch) == fast


def test_where_autobahn_is_another_the_fast_path_turns_itself_off() -> None:
    assert printed(BROKEN + PRINT_FAST, "on") == "False"
