"""Which path prefixes are accepted, and what is said of the others."""

from __future__ import annotations

import pytest

from signaling.web.path_prefix import check_path_prefix


@pytest.mark.parametrize("text", ["", "/signal", "/a/b.c/~d_e-f", "/ws", "/v1/healthz", "/" + "a" * 199])
def test_a_prefix_is_accepted(text: str) -> None:
    assert check_path_prefix(text) == text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("signal", "write /signal"),
        ("/a//b", "write /a/b"),
        ("/a/", "write /a"),
        ("//a", "write /a"),
        ("/", "leave it out"),
        ("//", "leave it out"),
        ("/ws?", "for example /signal"),
        ("/a b", "for example /signal"),
        ("/a#b", "for example /signal"),
        ("/%61", "for example /signal"),
        ("/\u00e4", "for example /signal"),
        ("/a\n", "for example /signal"),
        ("/signal/..", "leave out"),
        ("/./a", "leave out"),
        ("/healthz", "for balancers"),
        ("/readyz/a", "for balancers"),
        ("/" + "a" * 200, "at most 200"),
        ("/a" * 100_000, "at most 200"),
    ],
)
def test_what_is_no_prefix_is_refused_with_what_would_be_right(text: str, right: str) -> None:
    with pytest.raises(ValueError, match="is not a path prefix") as caught:
        check_path_prefix(text)
    assert right in str(caught.value)
