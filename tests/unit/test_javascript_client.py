"""The JavaScript client without a browser."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.wire_schema import check_from_client
from tests.programs import need


@pytest.fixture(scope="module")
def sent_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Name a file for all that the client sends in its tests."""
    return tmp_path_factory.mktemp("client") / "sent"


@pytest.fixture(scope="module")
def tested(sent_texts: Path) -> subprocess.CompletedProcess[str]:
    """Run the client's own tests."""
    command = [need("node"), "--test", str(Path(__file__).parent)]
    environment = {**os.environ, "SENT_TEXTS": str(sent_texts)}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)


def test_the_client_does_what_its_own_tests_say(tested: subprocess.CompletedProcess[str]) -> None:
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.usefixtures("tested")
def test_the_client_sends_what_the_schema_allows(sent_texts: Path) -> None:
    texts = sent_texts.read_text().splitlines()
    assert {json.loads(text)["type"] for text in texts} == {"offer", "answer", "ice-candidate", "metadata", "token"}
    for text in texts:
        # Some of the servers in these tests are hostile, and have a peer without an id.
        if json.loads(text).get("to") != "":
            check_from_client(text)
