"""Reading an upgrade request."""

from __future__ import annotations

import subprocess
import sys

from signaling.upgrade import parse_head

# Well beyond any limit on headers: only by its square would this take longer than the process may.
HOSTILE = """
from signaling.upgrade import parse_head
assert parse_head(b"GET /ws/a HTTP/1.1\\r\\nHost: a\\r\\na:" + b" " * 4_000_000 + b"\\x01") is None
assert parse_head(b"GET /ws/a HTTP/1.1\\r\\nHost: a\\r\\na:" + b"x \\t" * 1_000_000 + b"\\x01") is None
"""


def test_a_header_line_that_almost_matches_is_given_up_in_linear_time() -> None:
    subprocess.run([sys.executable, "-c", HOSTILE], check=True, timeout=60)


def test_space_around_a_value_is_no_part_of_it() -> None:
    parsed = parse_head(b"GET /ws/a HTTP/1.1\r\nHost: \t a b \t\r\nX:")
    assert parsed is not None
    assert (parsed[0], parsed[1](b"host"), parsed[1](b"x")) == (b"/ws/a", [b"a b"], [b""])


def test_a_value_with_a_control_character_is_for_a_whole_http_server() -> None:
    assert parse_head(b"GET /ws/a HTTP/1.1\r\nHost: a\x01b") is None
