"""One run of the Autobahn|Testsuite against an echo server of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.installation import python2_environment
from tests.conformance.verdicts import Case
from tests.harness.server import Server, launch

# How the echo server is started; the suite has to pass with each.
MODES: dict[str, tuple[str, ...]] = {"default": ()}

ALL_CASES = ("*",)
# Without the sizes of group 9, and compression.
QUICK_CASES = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")

_TREE = Path(__file__).parents[2]
_AGENT = "lean"


class Broken(Exception):
    """A run did not come to its end, or cannot be trusted; says why."""


@dataclass(frozen=True)
class Suite:
    """An installed suite.

    Args:
        python: a Python 2.7.
        folder: what the suite was installed into.
        report: where ``index.html``, the reports of the cases and the suite's log go.
    """

    python: Path
    folder: Path
    report: Path

    def run(self, cases: Sequence[str], server_arguments: Sequence[str], seconds: float) -> list[Case]:
        """Run the suite to its end.

        Args:
            cases: patterns such as ``"7.*"``.
            seconds: how long it may take.

        Raises:
            Broken: where a case was not run, it took too long, or the server logged an error.
        """
        self.report.mkdir(parents=True, exist_ok=True)
        with _echo_server(server_arguments) as server:
            self._fuzz(f"ws://127.0.0.1:{server.port}", cases, seconds)
        if len(server.lines) != 1:
            raise Broken(f"the echo server logged an error:\n{server.log}")
        return self._read_cases()

    @property
    def log(self) -> Path:
        """What the suite prints."""
        return self.report / "wstest.log"

    def _fuzz(self, url: str, cases: Sequence[str], seconds: float) -> None:
        spec = self.report / "spec.json"
        servers = [{"agent": _AGENT, "url": url}]
        spec.write_text(json.dumps({"outdir": str(self.report), "servers": servers, "cases": list(cases)}))
        command = [self.python, "-u", self.folder / "bin" / "wstest", "-m", "fuzzingclient", "-s", spec]
        environment = {**python2_environment(), "PYTHONPATH": str(self.folder)}
        with self.log.open("w") as log:
            try:
                subprocess.run(
                    command,
                    cwd=self.report,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                    check=True,
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise Broken(f"{error}; its log is {self.log}") from None

    def _read_cases(self) -> list[Case]:
        entries = json.loads((self.report / "index.json").read_text()).get(_AGENT, {})
        planned = re.search(r"will run (\d+) test cases", self.log.read_text())
        # It also ends, and with status 0, when it finds no server any more.
        if planned is None or len(entries) != int(planned[1]):
            raise Broken(f"only {len(entries)} cases were run; the suite's log is {self.log}")
        cases = [self._read_case(entry["reportfile"]) for entry in entries.values()]
        return sorted(cases, key=lambda case: [int(part) for part in case.id.split(".")])

    def _read_case(self, name: str) -> Case:
        found = json.loads((self.report / name).read_text())
        return Case(
            id=found["id"],
            behaviour=found["behavior"],
            closing=found["behaviorClose"],
            result=found["result"],
            closing_result=found["resultClose"],
        )


@contextmanager
def _echo_server(arguments: Sequence[str]) -> Iterator[Server]:
    command = [sys.executable, "-m", "tests.conformance.echo", *arguments]
    server = launch(command, cwd=_TREE)
    try:
        server.port = int(server.wait_for(r"^listening on (\d+)$")[1])
        yield server
        server.stop()
    finally:
        server.end()
