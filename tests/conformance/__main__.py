"""Run the Autobahn|Testsuite and print what it found: ``python -m tests.conformance``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.conformance.installation import NotInstalled, find_python, install
from tests.conformance.suite import ALL_CASES, MODES, Broken, Suite
from tests.conformance.verdicts import summary


def main() -> int:
    """Return the exit status: 0 where every verdict is OK or accepted."""
    options = _options()
    python = find_python()
    if python is None:
        return _fail("the Autobahn|Testsuite needs a Python 2.7 with pip, on the PATH or in pyenv")
    try:
        folder = install(python)
        passed = [
            _run(Suite(python, folder, (options.report / mode).resolve()), mode, options.cases, options.minutes)
            for mode in MODES
        ]
    except (NotInstalled, Broken) as error:
        return _fail(str(error))
    return 0 if all(passed) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="Run the Autobahn|Testsuite.")
    parser.add_argument("--cases", nargs="+", default=ALL_CASES, help="patterns such as '7.*' (default: all)")
    parser.add_argument("--report", type=Path, default=Path("build/conformance"), help="folder (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long one run may take (default: %(default)g)")
    return parser.parse_args()


def _run(suite: Suite, mode: str, cases: list[str], minutes: float) -> bool:
    print(f"{mode}: running, {suite.log} tells how far", flush=True)
    found = suite.run(cases, MODES[mode], minutes * 60)
    print(*summary(found), f"report: {suite.report / 'index.html'}", sep="\n", flush=True)
    return all(case.passed for case in found)


def _fail(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
