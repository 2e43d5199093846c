"""The comparison with other servers: whether it runs and prints its figures, not what they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare.scenarios import SCENARIOS
from benchmarks.compare.servers import OTHERS
from tests.harness.server import running

TREE = Path(__file__).parents[2]


def compare(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.compare", "--quick", "--rounds=1", "--no-plot", f"--output={folder}"]
    environment = {**os.environ, **variables}
    return subprocess.run(
        [*command, *options], cwd=TREE, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def lines_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_ours_is_compared_with_a_peer_and_with_a_variant_of_itself(tmp_path: Path) -> None:
    scenarios = ["--scenario=relay", "--scenario=connect"]
    done = compare(tmp_path, *scenarios, "--peer=websockets", "--variant=poll=--reactor=poll LOG_LEVEL=error")
    assert (done.returncode, done.stderr) == (0, "")
    _, _, *lines = lines_of(done.stdout)
    assert [line[0:3] for line in lines] == [
        ["relay", "µs CPU", "poll"],
        ["relay", "µs CPU", "websockets"],
        ["connect", "µs CPU", "poll"],
        ["connect", "µs CPU", "websockets"],
    ]
    assert all(float(line[5]) > 0 for line in lines)
    assert (tmp_path / "results.md").read_text() == done.stdout
    written = json.loads((tmp_path / "results.json").read_text())
    assert {name: len(rounds) for name, rounds in written["rounds"]["relay"].items()} == {
        "ours": 1,
        "poll": 1,
        "websockets": 1,
    }


def test_every_scenario_runs(tmp_path: Path) -> None:
    done = compare(tmp_path, "--peer=websockets")
    assert (done.returncode, done.stderr) == (0, "")
    measured = {line[0] for line in lines_of(done.stdout)[2:]}
    assert measured == {*SCENARIOS} - {"steady"}


def test_a_server_that_runs_already_is_measured_alone(tmp_path: Path) -> None:
    with running() as server:
        scenarios = ["--scenario=relay", "--scenario=latency"]
        done = compare(tmp_path, *scenarios, f"--url={server.url}", f"--pid={server.process.pid}")
    assert (done.returncode, done.stderr) == (0, "")
    _, _, *lines = lines_of(done.stdout)
    assert [line[2] for line in lines if line[0] == "relay"] == [
        "per_second",
        "cpu_us",
        "starved",
        "p50_ms",
        "p99_ms",
        "p999_ms",
        "max_ms",
    ]
    assert {line[2] for line in lines if line[0] == "latency"} > {"p50_ms", "p99_ms"}


@pytest.mark.parametrize("name", ["peerjs-server", "y-webrtc", "socket.io"])
def test_a_server_with_a_dialect_of_its_own_is_compared(tmp_path: Path, name: str) -> None:
    if missing := OTHERS[name].missing():
        pytest.skip(f"{name} needs {missing}")
    done = compare(tmp_path, "--scenario=relay", "--scenario=call", f"--peer={name}")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[0] for line in lines_of(done.stdout)[2:]] == ["relay", "call"]


def test_a_server_that_needs_what_is_not_installed_is_left_out(tmp_path: Path) -> None:
    done = compare(tmp_path, "--scenario=relay", "--peer=ws", "--peer=websockets", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "ws is left out: it needs node and npm\n")
    assert [line[2] for line in lines_of(done.stdout)[2:]] == ["websockets"]


GARBLING = """
import json, runpy
dumps = json.dumps
json.dumps = lambda message: dumps({**message, "payload": {}} if "payload" in message else message)
runpy.run_module("benchmarks.peers.plain_websockets", run_name="__main__")
"""


def test_a_server_that_garbles_payloads_has_no_figures(tmp_path: Path) -> None:
    script = tmp_path / "garbling.py"
    script.write_text(GARBLING)
    command = f"garbling=env PYTHONPATH={TREE} {sys.executable} {script} {{port}}"
    done = compare(tmp_path, "--scenario=relay", "--no-peers", f"--server={command}")
    assert done.returncode == 1
    assert done.stderr.startswith("compare: garbling: unexpected message")
    assert done.stdout == ""
