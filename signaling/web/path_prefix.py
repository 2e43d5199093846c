"""The path below which a server's own resources are (``--path-prefix``)."""

from __future__ import annotations

import re

_MAX_CHARACTERS = 200
# What no client percent-encodes (RFC 3986, section 2.3).
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_AT_THE_ROOT = ("healthz", "readyz")


def check_path_prefix(text: str) -> str:
    """Check a path prefix.

    Args:
        text: for example ``/signal``; empty for none.

    Returns:
        The same.

    Raises:
        ValueError: it is not one; the text says what would be right.
    """
    wrong = _wrong(text) if text else None
    if wrong is not None:
        raise ValueError(f"{text!r} is not a path prefix: {wrong}")
    return text


def _wrong(text: str) -> str | None:
    if len(text) > _MAX_CHARACTERS:
        return f"at most {_MAX_CHARACTERS} characters"
    if _PREFIX.fullmatch(text) is None:
        return _advice(text)
    segments = text.split("/")[1:]
    if {".", ".."}.intersection(segments):
        return "clients leave out the segments . and .. of a path"
    if segments[0] in _AT_THE_ROOT:
        return f"/{segments[0]} is answered at the root as well, for balancers"
    return None


def _advice(text: str) -> str:
    if text.strip("/") == "":
        return "without a prefix, leave it out"
    right = "/" + "/".join(segment for segment in text.split("/") if segment)
    if _PREFIX.fullmatch(right) is None:
        return "segments of letters, digits, and the characters - . _ ~, for example /signal"
    return f"it begins with one slash and does not end with one; write {right}"
