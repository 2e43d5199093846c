"""RFC 6455 by the Autobahn|Testsuite; ``make conformance`` runs the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conformance.installation import NotInstalled, find_python, install
from tests.conformance.suite import MODES, QUICK_CASES, Suite
from tests.programs import missing


# The first run installs the suite, once for each user.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("server_arguments", MODES.values(), ids=MODES)
def test_frames_fragments_utf8_and_closing_are_as_rfc_6455_says(
    server_arguments: Sequence[str], tmp_path: Path
) -> None:
    python = find_python()
    if python is None:
        # The one skip that CI permits: current systems have no package of Python 2.7.
        pytest.skip("Python 2.7 with pip is not installed")
    try:
        folder = install(python)
    except NotInstalled as error:
        raise missing(f"{error}\nso the Autobahn|Testsuite") from error
    cases = Suite(python, folder, tmp_path).run(QUICK_CASES, server_arguments, 240)
    assert [str(case) for case in cases if not case.passed] == []
