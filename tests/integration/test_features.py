"""The optional features that ``welcome`` names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import issuer
from tests.integration.harness import Harness

MakeHarness = Callable[..., Harness]


@pytest.mark.parametrize(
    ("limits", "named"),
    [({}, None), ({"resume_window_seconds": 30.0}, ["resume"])],
    ids=["nothing", "sessions"],
)
def test_the_welcome_names_what_is_on(make_harness: MakeHarness, limits: Any, named: Any) -> None:
    welcome, _ = make_harness(**limits).peer("/ws/room").heard()
    assert welcome.get("features") == named


def test_the_names_are_sorted_and_stand_last(make_server: MakeHarness, tmp_path: Path) -> None:
    server = make_server(portal=issuer.portal(tmp_path), resume_window_seconds=30.0)
    welcome, _ = server.peer(f"/ws/room?token={issuer.token()}").heard()
    assert welcome["features"] == ["resume", "token"]
    assert list(welcome)[-1] == "features"


def test_the_welcome_of_a_resumed_session_names_them_as_well(make_harness: MakeHarness) -> None:
    harness = make_harness(resume_window_seconds=30.0)
    peer = harness.peer("/ws/room")
    token = peer.heard()[0]["resume"]["token"]
    peer.reset()
    welcome = harness.peer(f"/ws/room?resume={token}&seen=2").heard()[0]
    assert welcome["resumed"]
    assert welcome["features"] == ["resume"]
