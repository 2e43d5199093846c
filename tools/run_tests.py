"""Run the tests in parts, several at a time, and end with one verdict: ``run_tests.py check`` or ``run_tests.py all``.

``check`` is the inner loop: unit tests, and the integration tests on the server's own port. ``all`` is everything; its
coverage has to reach the floor. Many tests mostly wait, so there are five parts at a time for two cores. PYTEST_OPTIONS
are passed on to pytest.
"""

from __future__ import annotations

import math
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COVERAGE_FLOOR = 86
"""Percent of lines and branches; what is reached, minus a little."""

_OWN_PORT = "not cluster and not redis and not site"
_MEASURED = "not redis and not unmeasured"
_UNMEASURED = "redis or unmeasured"


@dataclass(frozen=True)
class Part:
    """Some of the tests, in a process of their own.

    Args:
        name: as the verdict has it.
        arguments: of pytest.
        covered: whether coverage watches.
        fast_path: whether the server may read frames itself; otherwise Autobahn reads every one.
    """

    name: str
    arguments: Sequence[str]
    covered: bool = False
    fast_path: bool = True


CHECK = [
    Part("unit", ["tests/unit"]),
    Part("integration", ["tests/integration", "-m", _OWN_PORT]),
]


def system(*names: str) -> list[str]:
    """Name files of tests of real processes."""
    return [f"tests/system/test_{name}.py" for name in names]


_SYSTEM = [
    Part("aiortc and proxies", system("aiortc_client", "client_interop", "mesh_restarts", "turn", "proxies")),
    Part("browsers", system("javascript", "firefox", "webkit", "webrtc")),
    Part("npm", system("npm", "react")),
    Part("workers", system("workers")),
    Part("demo", system("demo")),
    Part(
        "Python clients",
        system(
            "clients", "python_client", "twisted_client", "client_tokens", "sealed", "hostile_peers", "hostile_servers"
        ),
    ),
    Part("cluster", system("cluster", "redis_engine", "wall_clock")),
    Part("starting", system("options", "starting", "health", "systemd", "access", "kubernetes", "platforms")),
]
_NAMED = [path for part in _SYSTEM for path in part.arguments]
ALL = [
    # The longest first, so that all processes end at about the same time. Coverage doubles the time of what it watches,
    # so it watches the tests in memory that show most.
    Part("unmeasured integration", ["tests/integration", "-m", _UNMEASURED]),
    Part("measured units", ["tests/unit", "-m", _MEASURED], covered=True),
    Part("other system tests", ["tests/system", *(f"--ignore={path}" for path in _NAMED)]),
    *_SYSTEM,
    # What reads frames runs once more, over one way in, as all ways read frames alike, and without nodes and the admin
    # API, where there are none.
    Part(
        "frames read by Autobahn",
        [
            *("tests/integration", "tests/fuzz", *system("conformance", "wire_transcript")),
            *("-m", _OWN_PORT, "--ignore-glob=*/test_admin_*"),
        ],
        fast_path=False,
    ),
    Part("measured integration", ["tests/integration", "-m", _MEASURED], covered=True),
    Part("unmeasured units", ["tests/unit", "-m", _UNMEASURED]),
    Part("simulator and fuzz", ["tests/simulator", "tests/fuzz"]),
]


class Running:
    """A part that runs, and its output."""

    def __init__(self, part: Part, folder: Path) -> None:
        self.part = part
        self.failures: list[str] = []
        self._log = folder / part.name.replace(" ", "-")
        self._started = time.monotonic()
        self._cpu_seconds = 0.0
        command = [sys.executable, "-m", *(("coverage", "run", "-m") if part.covered else ()), "pytest"]
        environment = dict(os.environ)
        # Without caches, each of the hundreds of servers and Pythons that tests start compiles the whole package.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if not part.fast_path:
            environment["SIGNALING_FAST_PATH"] = "off"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *shlex.split(os.environ.get("PYTEST_OPTIONS", "")), *part.arguments],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def has_ended(self) -> bool:
        """Whether it ended; then its CPU time is known, with that of all processes that it waited for."""
        before = _seconds_of_ended()
        ended = self.process.poll() is not None
        self._cpu_seconds = _seconds_of_ended() - before
        return ended

    def report(self) -> Counter[str]:
        """Print how the part ended, with all its output if it failed; return how many tests passed, failed, ..."""
        output = self._log.read_text(errors="replace")
        lines = output.splitlines() or [""]
        counts = Counter[str]()
        for count, what in re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1]):
            counts["failed" if what == "error" else what] += int(count)
        # Exit status 5: PYTEST_OPTIONS selected none of this part's tests.
        if self.process.returncode not in (0, 5) and not counts["failed"]:
            counts["failed"] = 1
        skipped = [line for line in lines if line.startswith("SKIPPED")]
        self.failures = [line for line in lines if line.startswith(("FAILED ", "ERROR "))] if counts["failed"] else []
        print(*([output] if counts["failed"] else skipped), sep="\n", end="\n" if skipped or counts["failed"] else "")
        seconds = time.monotonic() - self._started
        print(f"{self.part.name}: {words(counts)} in {seconds:.0f} s, {self._cpu_seconds:.0f} s of CPU", flush=True)
        return counts


def _seconds_of_ended() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def words(counts: Counter[str]) -> str:
    """Write counts as pytest does, the failed always."""
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    return f"{counts['passed']} passed, {counts['failed']} failed{skipped}"


def run(parts: Sequence[Part]) -> tuple[Counter[str], list[str]]:
    """Run parts, some at a time; add up their counts, and list the lines of pytest that name a failed test."""
    at_once = math.ceil(2.5 * (os.cpu_count() or 1))
    waiting, running, total, failures = list(parts), list[Running](), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(Running(waiting.pop(0), Path(folder)))
                for ended in [each for each in running if each.has_ended()]:
                    running.remove(ended)
                    total += ended.report()
                    failures += ended.failures
                time.sleep(0.1)
        finally:
            for each in running:
                each.process.terminate()
                each.process.wait()
    return total, failures


def coverage_is_enough() -> bool:
    """Print the coverage report; return whether it reaches the floor."""
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "combine", "--quiet"], cwd=ROOT, check=True)
    report = [*coverage, "report", "--skip-covered", f"--fail-under={COVERAGE_FLOOR}"]
    return subprocess.run(report, cwd=ROOT, check=False).returncode == 0


def main() -> int:
    """Run what the command line names; return the exit status."""
    started = time.monotonic()
    everything = sys.argv[1:] == ["all"]
    if everything:
        subprocess.run([sys.executable, "-m", "coverage", "erase"], cwd=ROOT, check=True)
    counts, failures = run(ALL if everything else CHECK)
    # A selection of tests cannot reach the floor.
    if everything and not os.environ.get("PYTEST_OPTIONS") and not coverage_is_enough():
        print(f"coverage is below {COVERAGE_FLOOR} %")
        counts["failed"] += 1
    passed = counts["passed"] and not counts["failed"]
    print(*failures, sep="\n", end="\n" if failures else "")
    print(f"{'PASSED' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s")
    print(words(counts))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
