"""A cluster of three nodes under steady calls, and faults of every kind: ``python -m benchmarks.failures``.

Each fault is tried on a cluster of its own, in the middle of a load, and healed. The report says after how long all
peers agreed again who is in their topics, whom the fault disturbed, and what became of each relay.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.faults import FAULTS, Cluster, Fault, Readiness, counters
from benchmarks.processes import Child, judge, wait_until
from benchmarks.report import Latency, drawing, latency
from benchmarks.steady_load import OBSERVED, LoadPeer, LoadRecord, ResumingPeer, SteadyLoad, join
from tests.harness.delivery_log import DeliveryLog, Relay, describe

_AGREE_SECONDS = 20.0
_ANNOUNCE_SECONDS = 15.0
_GAP_SECONDS = 0.5
_JOIN_SECONDS = 3.0
_P99_MS = 250.0
_QUIET_SECONDS = 3.0
_FINISH_SECONDS = 45.0
_OBSERVER_RATE = 20.0
# Within so much of a fault a node may have written a relay, and not have said so.
_INSTANT_SECONDS = 1.0
_FEW = 5
_ASK_SECONDS = 0.5
_MOST_SHOWN = 700
_MANY = "lose-many-peers"
_LARGE = "lose-large-topic"
_MOVES = "move-peers"
_DEADLY = ("kill-node", _MANY, _LARGE)
_SPECIAL = {
    _MANY: "a node with very many peers is killed",
    _LARGE: "a node with a third of a very large topic is killed",
    _MOVES: "peers resume at other nodes, again and again",
}
_SESSIONS = ("--resume-window=30",)
_JOIN_ELSEWHERE_SECONDS = 0.5


@dataclass
class Trial:
    """One fault, and what it did. Times are the monotonic clock's."""

    name: str
    seconds: float
    hits: str
    cluster: Cluster
    record: LoadRecord
    load: SteadyLoad
    readiness: Readiness
    began: float = field(default_factory=time.monotonic)
    fault_at: float = 0.0
    healed_at: float = 0.0
    closed_at: float = 0.0
    agreed_after: float = 0.0
    agreed: bool = False
    failing: list[LoadPeer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    goals: dict[str, bool] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)

    @property
    def log(self) -> DeliveryLog:
        """The log of all relays."""
        return self.record.log

    @property
    def victim(self) -> str:
        """The name of the only node that fails, or nothing."""
        return self.cluster.victim.name if self.hits in ("node", "link") else ""

    @property
    def disturbed(self) -> str:
        """The name of the node whose own peers have to notice, or nothing."""
        return self.cluster.victim.name if self.hits == "node" else ""

    async def run(self, fault: Fault, calm: float) -> None:
        """Let the fault happen in the middle of the load."""
        self.record.failing = self.victim
        await asyncio.sleep(calm)
        self.hit()
        await asyncio.to_thread(fault.begin, self.cluster)
        await asyncio.sleep(self.fault_at + self.seconds - time.monotonic())
        self.healed_at = time.monotonic()
        await asyncio.to_thread(fault.heal, self.cluster)
        await self.agree(self.fault_at if self.name in _DEADLY else self.healed_at)
        await asyncio.sleep(calm)

    def hit(self) -> None:
        """Note that the fault begins now, and which peers are at the node that fails."""
        present = [peer for peers in self.record.present.values() for peer in peers.values()]
        self.failing = [peer for peer in present if peer.node == self.victim]
        self.fault_at = time.monotonic()

    async def agree(self, since: float) -> None:
        """Wait until the views have agreed for a while."""
        deadline = max(since + _AGREE_SECONDS, time.monotonic()) + 2 * _QUIET_SECONDS
        record = self.record
        self.agreed = await wait_until(
            lambda: time.monotonic() - max(since, record.disagreed_at) > _QUIET_SECONDS, deadline - time.monotonic()
        )
        self.agreed_after = max(0.0, record.disagreed_at - since)
        if not self.agreed:
            self.notes += [f"views differ: {text}" for text in record.disagreements()[:_FEW]]

    async def close(self) -> None:
        """Wait for the ends of all relays, and close the log."""
        self.closed_at = time.monotonic()
        await self.load.finish(_FINISH_SECONDS)
        # An answer to what was delivered would come now.
        await asyncio.sleep(_QUIET_SECONDS)
        for task in self.readiness.tasks:
            task.cancel()
        self.log.close()
        self.counted = await counters(self.cluster.nodes)
        await self.load.end()
        for node in self.cluster.nodes:
            self.notes += [f"the log of {node.name}: {line}" for line in node.server.problems[:_FEW]]

    # What it found

    @property
    def announced_after(self) -> float | None:
        """After how long the last peer of the dead node was announced; None if none had to be."""
        # Visitors leave by themselves.
        dead = {each.id for each in self.failing if self.name in _DEADLY or (each.ended_at or 0) > self.closed_at}
        left = [left.at - self.fault_at for left in self.record.left if left.peer in dead and left.at >= self.fault_at]
        return max(left, default=None) if self.victim else None

    def gap(self, node: str) -> float:
        """Return the longest time since the fault in which no relay arrived between the two observers of a node."""
        peers = self.record.peers
        times = sorted(
            relay.delivered_at
            for relay in self.log.relays.values()
            if (relay.delivered_at or 0.0) > self.fault_at
            and peers[relay.sender].node == node
            and peers[relay.sender].topic == OBSERVED + node
        )
        return max((b - a for a, b in pairwise(times)), default=0.0)

    @property
    def longest_gap(self) -> float:
        """The longest gap of all nodes whose own peers must not notice."""
        return max(self.gap(node.name) for node in self.cluster.nodes if node.name != self.disturbed)

    @property
    def longest_join(self) -> float:
        """The longest time that a join took at a healthy node."""
        joins = self.record.joins
        return max((each.seconds for each in joins if each.node != self.disturbed), default=0.0)

    def latency(self, since: float, until: float, *, crosses: bool) -> Latency:
        """Sum up how long relays took that were sent within a time."""
        return latency(
            1000 * (relay.delivered_at - relay.sent_at)
            for relay in self.log.relays.values()
            if since <= relay.sent_at < until
            and relay.delivered_at is not None
            and self.record.crosses(relay) == crosses
        )

    @property
    def unexcused(self) -> list[Relay]:
        """The relays that were delivered and answered, though no node died in that instant."""
        return [
            relay
            for relay in self.log.relays.values()
            if relay.outcome == "both"
            and (
                not self.victim
                or self.record.peers[relay.target].node != self.victim
                or abs((relay.delivered_at or 0.0) - self.fault_at) > _INSTANT_SECONDS
            )
        ]

    @property
    def untrue(self) -> int:
        """How often a peer-left named a peer that was there, and whose node was not taken for dead."""
        peers = self.record.peers
        there = [(left.at, peers[left.peer]) for left in self.record.left if left.peer in peers]
        return sum(peer.node != self.victim and (peer.ended_at is None or at < peer.ended_at) for at, peer in there)

    def judge(self) -> None:
        """Compare with the goals."""
        breaches, both = self.log.breaches, self.log.count["both"]
        gap, late = self.longest_gap, self.record.late_seconds
        problems = sum(len(node.server.problems) for node in self.cluster.nodes)
        most = _JOIN_ELSEWHERE_SECONDS if self.name == _LARGE else _JOIN_SECONDS
        self.goals |= {
            f"views agree within {_AGREE_SECONDS:g} s: {self.agreed_after:.1f} s": self.agreed
            and self.agreed_after <= _AGREE_SECONDS,
            f"nothing is announced twice, lost, doubled or out of order: {dict(breaches) or 0}": not breaches,
            f"peer-left of peers that are there: {self.untrue}": not self.untrue,
            f"delivered and answered: {both}, of those without a dying node: {len(self.unexcused)}": (
                not self.unexcused
            ),
            f"longest gap between peers of one node at most {_GAP_SECONDS:g} s:"
            f" {gap:.2f} s (the load itself was late by {late:.2f} s)": gap <= _GAP_SECONDS + late,
            f"longest join at most {most:g} s: {self.longest_join:.2f} s": self.longest_join <= most + late,
            f"exceptions in the logs: {problems}": not problems,
            f"failures of the load: {dict(self.load.failures) or 0}": not self.load.failures,
        }
        if self.name in _DEADLY:
            announced = self.announced_after or 0.0
            self.goals[f"its peers are announced within {_ANNOUNCE_SECONDS:g} s: {announced:.1f} s"] = (
                0 < announced <= _ANNOUNCE_SECONDS
            )
        else:
            self._judge_counters()
        if self.healed_at:
            self._judge_readiness()

    def _judge_counters(self) -> None:
        """Compare the nodes' counters with the log, within the relays whose senders or targets were gone."""
        count, counted, both = self.log.count, self.counted, self.log.count["both"]
        gone = count["cut"] + count["unread"]
        written = counted["relays accepted"] - counted["relays_undelivered"]
        arrived = count["delivered"]
        self.goals[f"all nodes: written {written}, and {arrived} arrived (within {gone}); {both} count as refused"] = (
            abs(written - arrived) <= gone
        )
        answered = self.log.answers.total() + both
        refused = sum(counted[f"errors_sent {code}"] for code in ("dropped", "target_not_found"))
        self.goals[f"all nodes: refused {refused}, and {answered} were answered (within {gone})"] = (
            abs(refused - answered) <= gone
        )
        waiting = counted["relays_queued"] + counted["relays_in_flight"]
        self.goals[f"all nodes: without an end: {waiting}"] = not waiting

    def _judge_readiness(self) -> None:
        everybody = [node.name for node in self.cluster.nodes]
        hit = {"store": everybody, "link": [self.victim]}.get(self.hits, [])
        for node in self.cluster.nodes:
            unready = self.readiness.first(node.name, 503, self.fault_at)
            again = self.readiness.first(node.name, 200, self.healed_at)
            if node.name in hit:
                self.goals[f"/readyz of {node.name}: 503 after {_text(unready)}, 200 {_text(again)} after the end"] = (
                    unready is not None and unready < self.seconds + 1 and again is not None and again <= _AGREE_SECONDS
                )
            elif node.name != self.disturbed:
                self.goals[f"/readyz of {node.name} stays 200"] = unready is None

    def row(self) -> list[str]:
        """Return the line of the table."""
        count, breaches = self.log.count, self.log.breaches
        answered = " ".join(f"{code} {number}" for code, number in sorted(self.log.answers.items()) if number)
        return [
            f"{self.name} {self.seconds:g} s",
            f"{self.agreed_after:.1f} s" if self.agreed else "never",
            _text(self.announced_after),
            str(self.untrue),
            f"{1000 * self.longest_gap:.0f} ms",
            str(count["sent"]),
            str(count["delivered"]),
            answered or "0",
            f"{count['both']} ({len(self.unexcused)})",
            str(count["cut"]),
            str(count["unread"]),
            str(breaches["delivered twice"]),
            str(count["lost"]),
            str(breaches["out of order"]),
        ]


HEADS = [
    "fault",
    "views agree",
    "announced",
    "untrue",
    "local gap",
    "relays",
    "delivered",
    "answered",
    "both (unexcused)",
    "cut",
    "unread",
    "twice",
    "lost",
    "misordered",
]


def _text(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


async def _begin(stack: AsyncExitStack, name: str, seconds: float, options: argparse.Namespace) -> Trial:
    """Start a cluster and its load, and wait until all have joined."""
    fault = FAULTS.get(name)
    hits = fault.hits if fault is not None else "" if name == _MOVES else "node"
    cluster = Cluster(fault.linked if fault is not None else "", _SESSIONS if name == _MOVES else ())
    stack.callback(cluster.end)
    await cluster.start()
    record = LoadRecord()
    load = SteadyLoad(record, cluster.nodes, ResumingPeer if name == _MOVES else LoadPeer)
    stack.push_async_callback(load.end)
    topics = [f"call-{n}" for n in range(options.topics)]
    for n, topic in enumerate(topics):
        load.stay(topic, n, options.peers, options.rate)
    for n, node in enumerate(cluster.nodes):
        load.stay(OBSERVED + node.name, n, 2, _OBSERVER_RATE, step=0)
    async with asyncio.timeout(_AGREE_SECONDS):
        await load.all_joined()
    load.visit(topics, options.visitors)
    watching = asyncio.create_task(record.watch())
    stack.callback(watching.cancel)
    return Trial(name, seconds, hits, cluster, record, load, Readiness(cluster.nodes))


async def try_fault(name: str, seconds: float, options: argparse.Namespace) -> Trial:
    """Try one fault on a cluster of its own."""
    async with AsyncExitStack() as stack:
        trial = await _begin(stack, name, seconds, options)
        await trial.run(FAULTS[name], options.calm)
        await trial.close()
        trial.judge()
    return trial


async def lose_many_peers(options: argparse.Namespace) -> Trial:
    """Kill a node with very many peers, and watch from the other nodes how they are announced."""
    async with AsyncExitStack() as stack:
        trial = await _begin(stack, _MANY, 0.0, options)
        cluster = trial.cluster
        topics = min(options.lost_topics, options.lost_peers)
        arguments = map(str, (cluster.victim.port, topics, options.lost_peers, 50))
        lost = await Child.start("benchmarks.observers", *arguments)
        stack.callback(lost.kill)
        # Their views are of the lost peers, which keep no log.
        apart = LoadRecord()
        observers = [await join(apart, f"observed-{n}", node) for n in range(topics) for node in cluster.nodes[:-1]]
        await asyncio.sleep(options.calm)
        trial.notes.append(
            f"before: relays to other nodes {trial.latency(trial.began, time.monotonic(), crosses=True)}"
        )
        trial.record.failing = trial.victim
        trial.hit()
        await asyncio.to_thread(cluster.victim.end)
        await wait_until(lambda: all(len(each.view) == 1 for each in observers), 2 * _AGREE_SECONDS)
        _judge_many_peers(trial, apart, sum(len(each.view) - 1 for each in observers))
        await trial.agree(trial.fault_at)
        await trial.close()
        trial.judge()
    return trial


def _judge_many_peers(trial: Trial, apart: LoadRecord, left_over: int) -> None:
    """Compare with the goals for very many peers."""
    left = [left.at - trial.fault_at for left in apart.left]
    first, last = min(left, default=0.0), max(left, default=0.0)
    trial.goals[
        f"{len(left)} times a lost peer was announced, {first:.1f} to {last:.1f} s after its node's death,"
        f" at most {_AGREE_SECONDS:g} s; {left_over} never"
    ] = bool(left) and last <= _AGREE_SECONDS and not left_over
    since = trial.fault_at + first
    within = trial.latency(since, trial.fault_at + last, crosses=False)
    across = trial.latency(since, trial.fault_at + last, crosses=True)
    trial.goals[f"meanwhile relays within a node {within}, to other nodes {across}, p99 at most {_P99_MS:g} ms"] = (
        max(within.p99, across.p99) <= _P99_MS
    )
    trial.goals[f"no lost peer is announced twice: {dict(apart.log.breaches) or 0}"] = not apart.log.breaches


async def lose_large_topic(options: argparse.Namespace) -> Trial:
    """Kill a node with a third of the peers of one topic; the others watch how they are announced."""
    async with AsyncExitStack() as stack:
        trial = await _begin(stack, _LARGE, 0.0, options)
        cluster = trial.cluster
        groups = []
        for node in cluster.nodes:
            groups.append(await Child.start("benchmarks.observers", str(node.port), "1", str(options.large // 3), "8"))
            stack.callback(groups[-1].kill)
        ids = [set(group.ready["ids"]) for group in groups]
        await until_reported(groups, lambda report: _views(report) == {sum(map(len, ids)) - 1})
        await asyncio.sleep(options.calm)
        trial.record.joins.clear()
        trial.record.failing = trial.victim
        trial.hit()
        await asyncio.to_thread(cluster.victim.end)
        groups[-1].kill()
        reports = await until_reported(groups[:-1], lambda report: _views(report) == {len(ids[0]) + len(ids[1]) - 1})
        _judge_large_topic(trial, reports, ids)
        await trial.agree(trial.fault_at)
        await trial.close()
        trial.judge()
    return trial


def _views(report: dict[str, Any]) -> set[int]:
    """Return how many others the observers of one group know."""
    return {size for size, _ in report["views"]}


async def until_reported(
    groups: list[Child], condition: Callable[[dict[str, Any]], bool], seconds: float = 3 * _AGREE_SECONDS
) -> list[dict[str, Any]]:
    """Ask groups of observers until the condition is true of each report, or so many seconds are over."""
    deadline = time.monotonic() + seconds
    while True:
        reports = [await group.ask("report") for group in groups]
        if all(map(condition, reports)) or time.monotonic() > deadline:
            return reports
        await asyncio.sleep(_ASK_SECONDS)


def _judge_large_topic(trial: Trial, reports: list[dict[str, Any]], ids: list[set[str]]) -> None:
    """Compare with the goals for a large topic."""
    dead, each = ids[-1], len(ids[0])
    untrue = sum(count for report in reports for peer, count in report["left"].items() if peer not in dead)
    wrong = sum(report["left"].get(peer, 0) != each for report in reports for peer in dead)
    after = max(report["latest"] for report in reports) - trial.fault_at
    views = sorted(set().union(*map(_views, reports)))
    trial.goals |= {
        f"{len(dead)} of {sum(map(len, ids))} peers died; peer-left of peers that are there: {untrue}": not untrue,
        f"not announced to everybody exactly once: {wrong}": not wrong,
        f"its views agree after {after:.1f} s, at most {_AGREE_SECONDS:g} s; peers know {views} others": (
            after <= _AGREE_SECONDS and views == [2 * each - 1]
        ),
    }


async def move_peers(options: argparse.Namespace) -> Trial:
    """Let peers resume their sessions at other nodes, in the middle of their relays."""
    seconds = (options.seconds or [15.0])[0]
    async with AsyncExitStack() as stack:
        trial = await _begin(stack, _MOVES, seconds, options)
        await asyncio.sleep(options.calm)
        trial.hit()
        moving = asyncio.create_task(trial.load.move_steadily(options.moves))
        await asyncio.sleep(seconds)
        moving.cancel()
        trial.healed_at = time.monotonic()
        await trial.agree(trial.healed_at)
        trial.goals[f"peers resumed at other nodes: {trial.record.moves}"] = trial.record.moves > 0
        await asyncio.sleep(options.calm)
        await trial.close()
        trial.judge()
    return trial


async def run(options: argparse.Namespace) -> int:
    """Try all that was asked for; returns the exit status."""
    special = {_MANY: lose_many_peers, _LARGE: lose_large_topic, _MOVES: move_peers}
    trials = []
    for name in options.fault or [*FAULTS, *special]:
        if name in special:
            trials.append(await special[name](options))
            report(trials[-1])
            continue
        for seconds in options.seconds or FAULTS[name].seconds:
            trials.append(await try_fault(name, seconds, options))
            report(trials[-1])
    print(table([HEADS, *(trial.row() for trial in trials)]))
    if options.plot:
        plot([trial for trial in trials if trial.healed_at], Path(options.plot))
    held = all(held for trial in trials for held in trial.goals.values())
    print("failures: passed" if held else "failures: FAILED")
    return 0 if held else 1


def report(trial: Trial) -> None:
    """Print what one fault did."""
    print(f"{trial.name}: {_what(trial.name)}" + (f", for {trial.seconds:g} s" if trial.healed_at else ""))
    judge(trial.goals)
    shown = [describe(relay) for relay in trial.unexcused[:_FEW]]
    for note in trial.notes + trial.log.examples[:_FEW] + shown:
        print(f"       {note}")
    sys.stdout.flush()


def _what(name: str) -> str:
    return FAULTS[name].what if name in FAULTS else _SPECIAL[name]


def table(rows: list[list[str]]) -> str:
    """Align the columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def plot(trials: list[Trial], path: Path) -> None:
    """Draw relays delivered and answered over time, and each fault's span, into a PNG file."""
    rows = (len(trials) + 1) // 2
    with drawing(path, rows, 2, 80, figsize=(11, 2.3 * rows), squeeze=False) as (figure, grid):
        for axes, trial in zip(grid.flat, trials, strict=False):
            end = max(relay.sent_at for relay in trial.log.relays.values()) - trial.fault_at
            bins = [
                trial.began - trial.fault_at + n / 2 for n in range(int(2 * (end + trial.fault_at - trial.began)) + 1)
            ]
            for label, colour, times in _series(trial):
                seconds = [at - trial.fault_at for at in times]
                axes.hist(seconds, bins=bins, weights=[2.0] * len(seconds), histtype="step", color=colour, label=label)
            axes.axvspan(0, trial.healed_at - trial.fault_at, color="tab:red", alpha=0.12)
            axes.axvline(trial.agreed_after + (0 if trial.name == "kill-node" else trial.seconds), color="grey", ls=":")
            axes.set_title(f"{_what(trial.name)}, {trial.seconds:g} s", fontsize=9, loc="left")
            axes.grid(alpha=0.3)
            axes.set_ylabel("relays/s", fontsize=8)
            # What waited comes all at once, and would leave nothing to see of the rest.
            axes.set_ylim(0, _MOST_SHOWN)
        for axes in list(grid.flat)[len(trials) :]:
            axes.axis("off")
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="lower right", fontsize=9)
        figure.supxlabel("seconds; red: the fault; dotted: all views agree from then on", fontsize=9)


def _series(trial: Trial) -> list[tuple[str, str, list[float]]]:
    delivered: dict[bool, list[float]] = {False: [], True: []}
    answered = []
    for relay in trial.log.relays.values():
        if relay.delivered_at is not None:
            delivered[trial.record.crosses(relay)].append(relay.delivered_at)
        if relay.answered_at is not None:
            answered.append(relay.answered_at)
    return [
        ("delivered on their node", "tab:green", delivered[False]),
        ("delivered to other nodes", "tab:blue", delivered[True]),
        ("answered", "tab:red", answered),
    ]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.failures", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [*FAULTS, *_SPECIAL]
    parser.add_argument("--fault", action="append", choices=names, help="may be given again; default: all, one by one")
    parser.add_argument("--seconds", action="append", type=float, help="that a fault lasts; default: 5, and then 30")
    parser.add_argument("--calm", type=float, default=3.0, help="seconds before and after; default: %(default)g")
    parser.add_argument("--topics", type=int, default=18, help="with steady calls; default: %(default)d")
    parser.add_argument("--peers", type=int, default=4, help="that stay in each; default: %(default)d")
    parser.add_argument("--rate", type=float, default=5.0, help="relays of each a second; default: %(default)g")
    parser.add_argument("--visitors", type=float, default=2.0, help="that join a second; default: %(default)g")
    parser.add_argument("--lost-peers", type=int, default=10_000, help="of the lost node; default: %(default)d")
    parser.add_argument("--lost-topics", type=int, default=100, help="that they are in; default: %(default)d")
    parser.add_argument("--large", type=int, default=2_700, help="peers of the large topic; default: %(default)d")
    parser.add_argument("--moves", type=float, default=10.0, help="that peers make a second; default: %(default)g")
    parser.add_argument("--plot", default="", help="a PNG file; default: none")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(run(parse(sys.argv[1:]))))
