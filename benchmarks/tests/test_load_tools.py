"""The load tools, for a few seconds each: the delivery log has to balance in a short run too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import need

TREE = Path(__file__).parents[2]
SHORT_LIMITS = ["--limit=write_timeout_seconds=1", "--limit=handshake_timeout_seconds=1"]


def run(module: str, *options: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{module}", *options]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert done.stderr == ""
    return done.stdout


def test_a_short_soak_accounts_for_every_message(tmp_path: Path) -> None:
    figures = tmp_path / "soak.json"
    output = run("soak", "--minutes=0.04", "--load=0.5", "--plot=", f"--json={figures}", *SHORT_LIMITS)
    assert "ok   server: accepted " in output
    assert "ok   lost, doubled, misordered or misdirected: 0" in output
    assert "ok   left at the end: 0 connections, 0 topics, 0 descriptors" in output
    assert "soak: passed" in output
    written = json.loads(figures.read_text())
    assert all(written["checks"].values())
    assert written["at_last"]["accepted"] > 0
    assert written["started"].keys() == {"call", "churn", "garbage", "stall"}


def test_a_short_flood_accounts_for_every_message() -> None:
    output = run("flood", "--seconds=2.5", "--readers=5", "--payload-bytes=30000", "--report-only", *SHORT_LIMITS)
    assert "ok   clients: sent " in output
    assert "ok   lost, doubled, misordered or misdirected: 0" in output
    assert "aborted: it read nothing for 1 s" in output
    assert "flood: passed" in output


@pytest.mark.parametrize("workers", [1, 2])
def test_the_metrics_agree_with_a_load_to_the_last_message(workers: int) -> None:
    command = [sys.executable, "-m", "benchmarks.observe", "--seconds=1.5", f"--workers={workers}"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok   every counter agrees" in done.stdout


def test_a_worker_that_is_killed_costs_no_message_of_the_others() -> None:
    output = run("killed_worker", "--seconds=2", "--pairs=10")
    assert "ok   worker 1: its peers noticed nothing (0 disturbances)" in output
    assert "ok   server: 1 restart" in output


def test_the_worst_case_of_each_place_is_printed() -> None:
    output = run("worst_case", "metadata", "--repeats=1")
    assert " ms  port      a string of metadata: " in output


def test_a_rolling_restart_behind_haproxy_costs_no_call() -> None:
    need("haproxy")
    output = run(
        "rolling", "--seconds=0.5", "--rate=10", "--rooms=10", "--check-ms=200", "--drain-delay=0.6", "--plot="
    )
    assert "HAProxy uses b again" in output
    assert "ok   calls given up: 0" in output
    assert "ok   rooms in which a new peer meets everybody at the end: 10" in output
    assert "rolling: passed" in output


def test_a_cluster_accounts_for_every_message_while_a_node_is_paused() -> None:
    need("redis-server")
    output = run("failures", "--fault=pause-node", "--seconds=1", "--calm=1", "--topics=4")
    assert "ok   nothing is announced twice, lost, doubled or out of order: 0" in output
    assert "ok   all nodes: without an end: 0" in output
    assert "failures: passed" in output


def test_a_cluster_accounts_for_every_message_while_peers_resume_at_other_nodes() -> None:
    need("redis-server")
    output = run("failures", "--fault=move-peers", "--seconds=2", "--calm=1", "--topics=4")
    assert "ok   nothing is announced twice, lost, doubled or out of order: 0" in output
    assert "ok   peer-left of peers that are there: 0" in output
    assert "failures: passed" in output


def test_a_mass_leave_loses_no_relay_elsewhere() -> None:
    output = run("mass_leave", "--peers=60")
    assert "60 peers in 1 topic(s) joined" in output
    assert "all were gone" in output


def test_all_peers_of_a_dead_node_are_announced_and_nobody_else() -> None:
    need("redis-server")
    output = run("failures", "--fault=lose-large-topic", "--large=90", "--calm=1", "--topics=4")
    assert "ok   30 of 90 peers died; peer-left of peers that are there: 0" in output
    assert "ok   not announced to everybody exactly once: 0" in output


def test_answers_that_nobody_reads_are_measured() -> None:
    assert "KB for each connection" in run("unread_answers", "--connections=5")


def test_each_step_of_a_relay_is_measured() -> None:
    assert "| a relay: one SDP to ten candidates | " in run("relay_steps", "--passes=1")


def test_the_collections_of_a_server_are_counted() -> None:
    output = run("garbage", "--peers=50", "--seconds=0.2", "--settings=50,2,2 frozen")
    rows = {cells[1].strip(): cells[2:-1] for line in output.splitlines() if len(cells := line.split("|")) > 2}
    assert float(rows["50 peers join"][0]) > 0
    assert float(rows["5 full collections"][4]) == 5
