"""The tokens that the admin API accepts, from a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hmac import compare_digest
from pathlib import Path

# RFC 6750, section 2.1.
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]{16,1024}=*")
_MAX_FILE_BYTES = 65_536


class AdminTokens:
    """The bearer tokens of one file: one on each line, any of which is right.

    Args:
        path: of the file; an empty line, and one that starts with ``#``, is skipped.

    Raises:
        ValueError: the file cannot be read, or a line is no token; the text says which, and never quotes it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._tokens: list[bytes] = []
        self.reload()

    def reload(self) -> None:
        """Read the file anew; if that raises, the tokens stay as they are.

        Raises:
            ValueError: as at first.
        """
        try:
            with Path(self._path).open("rb") as file:
                text = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ValueError(f"{self._path}: {error.strerror}") from None
        if len(text) > _MAX_FILE_BYTES:
            raise ValueError(f"{self._path}: at most {_MAX_FILE_BYTES} bytes")
        tokens = []
        for number, line in enumerate(text.splitlines(), 1):
            token = line.strip()
            if not token or token.startswith(b"#"):
                continue
            if not _TOKEN.fullmatch(token):
                raise ValueError(
                    f"{self._path}: line {number}: a token has at least 16 of the characters A-Z a-z 0-9 . _ ~ + / -"
                    " (for example of openssl rand -hex 32)"
                )
            tokens.append(token)
        if not tokens:
            raise ValueError(f"{self._path}: there is no token in it")
        self._tokens = tokens

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
