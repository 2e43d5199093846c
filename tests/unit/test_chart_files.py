"""The Helm chart has the alerts, the dashboard, the options and the values that there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).parents[2]


def test_what_the_chart_repeats_is_up_to_date() -> None:
    command = [sys.executable, str(TREE / "tools" / "chart.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
