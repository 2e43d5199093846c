"""Fuzzes the decoder, the handshake, frames and connections: ``python -m tests.fuzz --help`` (docs/fuzzing.md)."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import CORPUS, TARGETS

# Long enough for two or three messages; what is longer is mostly slower, and the corpus has what has to be long.
_MAX_BYTES = {"decoder": 256, "handshake": 512, "parser": 256, "frames": 256}
_LONGEST_INPUT_SECONDS = 10
_DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)
_FIND = re.compile(r"Test unit written to (\S+)")


@dataclass(frozen=True)
class Verdict:
    """What came of one target.

    Args:
        runs: how many inputs were tried, None where libFuzzer ended without saying so.
        find: the input that broke a property, or None.
    """

    runs: int | None
    find: Path | None

    @property
    def passed(self) -> bool:
        return self.runs is not None and self.find is None


def main() -> int:
    """Fuzz what the command line asks for; returns the exit status."""
    options = _parse()
    verdicts = {}
    for target in [options.target] if options.target else TARGETS:
        started = time.monotonic()
        verdicts[target] = verdict = _fuzz(target, options)
        runs = "?" if verdict.runs is None else f"{verdict.runs:,}"
        seconds = time.monotonic() - started
        print(f"{target}: {'passed' if verdict.passed else 'FAILED'}, {runs} inputs in {seconds:.0f} s", flush=True)
        if verdict.find is not None:
            kept = os.path.relpath(CORPUS / target)
            print(f"  the input: {verdict.find}\n  to keep it: cp {verdict.find} {kept}/A-TELLING-NAME")
    return 0 if all(verdict.passed for verdict in verdicts.values()) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=list(TARGETS), help="what is fuzzed (default: all, in turn)")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=0, help="stop each target after this time (default: never)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/fuzz"), help="for what is found (default: %(default)s)"
    )
    return parser.parse_args()


def _fuzz(target: str, options: argparse.Namespace) -> Verdict:
    """Run one target in a process of its own, which libFuzzer ends."""
    work: Path = options.work / target
    work.mkdir(parents=True, exist_ok=True)
    with (work / "log").open("wb") as log:
        status = subprocess.run(_command(target, options), stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    text = (work / "log").read_text(errors="replace")
    done, find = _DONE.search(text), _FIND.search(text)
    if status or find or done is None:
        print("\n".join(text.splitlines()[-40:]))
    return Verdict(int(done[1]) if done and not status else None, Path(find[1]) if find else None)


def _command(target: str, options: argparse.Namespace) -> list[str]:
    work: Path = options.work / target
    reached = work / "inputs"
    shutil.rmtree(reached, ignore_errors=True)
    reached.mkdir()
    return [
        *(sys.executable, "-m", "tests.fuzz.libfuzzer", target),
        # libFuzzer writes what reaches new code into the first folder, and only reads the other.
        *(str(reached), str(CORPUS / target), f"-dict={CORPUS.parent / target}.dict"),
        *(f"-runs={options.runs}", f"-max_total_time={options.seconds}", f"-max_len={_MAX_BYTES[target]}"),
        *(f"-timeout={_LONGEST_INPUT_SECONDS}", f"-artifact_prefix={work}/", "-print_final_stats=1"),
    ]


if __name__ == "__main__":
    sys.exit(main())
