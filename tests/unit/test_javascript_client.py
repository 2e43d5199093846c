"""The JavaScript client without a browser."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.programs import need


def test_the_client_does_what_its_own_tests_say() -> None:
    command = [need("node"), "--test", str(Path(__file__).parent)]
    tested = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr
