"""What is saved by code that could be plainer: whether each way works, not how long it takes."""

from __future__ import annotations

from benchmarks.shortcuts import shortcuts


def test_every_shortcut_is_measured_beside_its_plainer_way() -> None:
    found = list(shortcuts(passes=1, idle_bytes=1_000))
    assert len({shortcut.name for shortcut in found}) == len(found) == 13
    assert all(shortcut.plain > 0 and shortcut.whole > 0 for shortcut in found)
