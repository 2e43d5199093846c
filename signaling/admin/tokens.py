"""The tokens that the admin API accepts, from a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hmac import compare_digest

# RFC 6750, section 2.1.
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]{16,1024}=*")
_MAX_FILE_BYTES = 65_536


class AdminTokens:
    """The bearer tokens of one file: one on each line, any of which is right.

    Args:
        data: of the file; an empty line, and one that starts with ``#``, is skipped.

    Raises:
        ValueError: a line is no token, or there is none; the text says which, and never quotes it.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) > _MAX_FILE_BYTES:
            raise ValueError(f"at most {_MAX_FILE_BYTES} bytes")
        self._tokens = [
            _token(number, line.strip()) for number, line in enumerate(data.splitlines(), 1) if _counts(line)
        ]
        if not self._tokens:
            raise ValueError("there is no token in it")

    def accept(self, headers: Sequence[bytes]) -> bool:
        """Return whether a request may be carried out; the time that takes reveals nothing of a token.

        Args:
            headers: the values of its ``Authorization`` headers.
        """
        scheme, _, token = (headers[0] if len(headers) == 1 else b"").partition(b" ")
        given = token.strip(b" ")
        # All of them, even after one was found.
        found = [compare_digest(given, token) for token in self._tokens]
        return scheme.lower() == b"bearer" and any(found)


def _counts(line: bytes) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith(b"#")


def _token(number: int, text: bytes) -> bytes:
    if not _TOKEN.fullmatch(text):
        raise ValueError(
            f"line {number}: a token has at least 16 of the characters A-Z a-z 0-9 . _ ~ + / -"
            " (for example of openssl rand -hex 32)"
        )
    return text
