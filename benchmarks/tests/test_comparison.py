"""What the comparison makes of its figures."""

from __future__ import annotations

import unittest

from benchmarks.compare.results import MEASURES, Results, table
from benchmarks.compare.scenarios import SCENARIOS
from benchmarks.compare.servers import OTHERS


def results(scenario: str, figure: str, **rounds: list[float]) -> Results:
    filled = Results()
    for server, values in rounds.items():
        for value in values:
            filled.add(scenario, server.replace("_", "-"), {figure: value})
    return filled


def lines(measured: Results) -> list[list[str]]:
    return [
        [cell.strip() for cell in line[1:-1].split("|")] for line in table(measured).splitlines()[2:] if line[:1] == "|"
    ]


class Ratios(unittest.TestCase):
    def test_a_round_in_which_another_server_grew_by_nothing_has_no_finite_ratio(self) -> None:
        measured = results("idle", "bytes", ours=[800, 900, 1000], bun=[0, 4500, 4000])
        self.assertEqual(lines(measured)[-1][3:7], ["900", "4,000", "0.25", "0.20 to inf"])

    def test_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians(self) -> None:
        # While the second round ran, the machine was three times as slow for both.
        measured = results("relay", "cpu_us", ours=[10, 30, 12], peerjs_server=[20, 60, 30])
        self.assertEqual(
            lines(measured),
            [["relay", "µs CPU", "peerjs-server", "12.0", "30.0", "0.50", "0.40 to 0.50", "≤ 0.5", "met"]],
        )

    def test_a_goal_that_is_missed(self) -> None:
        measured = results("relay", "cpu_us", ours=[51], peerjs_server=[100])
        self.assertEqual(lines(measured)[0][-2:], ["≤ 0.5", "missed"])

    def test_a_cluster_may_cost_six_times_as_much(self) -> None:
        measured = results("relay", "cpu_us", ours=[10, 10], cluster_2=[50, 70])
        self.assertEqual(lines(measured)[0][-2:], ["≥ 0.17", "met"])
        measured = results("relay", "cpu_us", ours=[10], cluster_2=[61])
        self.assertEqual(lines(measured)[0][-2:], ["≥ 0.17", "missed"])

    def test_a_cluster_has_a_bound_of_its_own_on_latency(self) -> None:
        measured = results("steady", "p99_ms", ours=[1], cluster_2=[20.1])
        self.assertEqual(lines(measured)[0][-2:], ["theirs ≤ 20", "missed"])

    def test_a_server_without_a_goal(self) -> None:
        measured = results("relay", "cpu_us", ours=[61], variant=[100])
        self.assertEqual(lines(measured)[0][-2:], ["", ""])

    def test_a_bound_on_ours_alone(self) -> None:
        measured = results("idle", "bytes", ours=[1_300], websockets=[10_000])
        self.assertEqual(
            lines(measured),
            [
                ["idle", "bytes", "", "1,300", "", "", "", "≤ 1,300", "met"],
                ["idle", "bytes", "websockets", "1,300", "10,000", "0.13", "0.13 to 0.13", "", ""],
            ],
        )

    def test_what_was_not_measured_is_no_part_of_the_json(self) -> None:
        measured = results("relay", "cpu_us", ours=[10], websockets=[40])
        table(measured)
        self.assertEqual(list(measured.as_json()["rounds"]), ["relay"])
        self.assertEqual(
            measured.as_json()["ratios"],
            [{"scenario": "relay", "figure": "cpu_us", "other": "websockets", "ratio": 0.25}],
        )

    def test_how_much_others_took_of_the_servers_core(self) -> None:
        measured = results("relay", "starved", ours=[0.1, 0.3], websockets=[0.2])
        self.assertTrue(table(measured).endswith("for 20% of the time."))

    def test_how_late_the_generator_was(self) -> None:
        measured = results("latency", "late_p99_ms", ours=[0.004, 4.0], bun=[3.9])
        self.assertIn("left 3.9 ms late or more", table(measured))

    def test_every_server_that_a_goal_names_is_known(self) -> None:
        self.assertLess({name for measure in MEASURES for name in measure.goals}, set(OTHERS))

    def test_every_scenario_has_a_measure(self) -> None:
        self.assertEqual({measure.scenario for measure in MEASURES}, set(SCENARIOS))
