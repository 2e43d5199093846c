"""The files for browsers: the JavaScript client, and the demo that uses it."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
}
# Only what the demo needs: otherwise a peer's name could become a script.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    b" form-action 'none'; frame-ancestors 'none'"
)
_CLIENT = (("client", "signaling.js"), ("client", "sealing.js"))
_INDEX = "index.html"
_DEMO = tuple(("demo", name) for name in (_INDEX, "demo.js", "demo-text.js", "demo.css", "favicon.svg"))


# A weight that is not zero (RFC 9110, section 12.4.2).
_ACCEPTED = re.compile(rb"q=(?:1(?:\.0{0,3})?|0\.(?!0*$)[0-9]{1,3})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Representation:
    """One encoding of a file (RFC 9110, section 8).

    Args:
        body: its bytes.
        headers: of the answer.
        etag: of these bytes, without quotes.
    """

    body: bytes
    headers: dict[bytes, bytes]
    etag: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """One file, compressed in advance.

    Args:
        plain: the file as it is.
        gzipped: the file compressed; None if that is not shorter.
    """

    plain: Representation
    gzipped: Representation | None

    def choose(self, accept_encoding: Sequence[bytes]) -> Representation:
        """Return what to answer.

        Args:
            accept_encoding: the request's Accept-Encoding headers.
        """
        return self.gzipped if self.gzipped and _accepts_gzip(accept_encoding) else self.plain


def pages(*, client: bool, demo: bool) -> dict[str, Page]:
    """Read the files that are served.

    Args:
        client: whether to serve the JavaScript client.
        demo: whether to serve the demo, and the client with it.

    Returns:
        Files by their path without its first slash.
    """
    paths = [*(_CLIENT if client or demo else ()), *(_DEMO if demo else ())]
    return {"" if name == _INDEX else name: _page(folder, name) for folder, name in paths}


def _page(folder: str, name: str) -> Page:
    body = (files("signaling") / "browser" / folder / name).read_bytes()
    headers = {
        b"Content-Type": _TYPES[name.rpartition(".")[2]],
        # A browser asks each time, and is seldom sent the file: after an upgrade no browser runs the old one.
        b"Cache-Control": b"no-cache",
        b"X-Content-Type-Options": b"nosniff",
        b"Content-Security-Policy": _POLICY,
        b"Referrer-Policy": b"no-referrer",
    }
    etag = sha256(body).hexdigest()[:16].encode()
    # Without a time, so that all servers answer with the same bytes.
    compressed = gzip.compress(body, mtime=0)
    gzipped = Representation(compressed, {**headers, b"Content-Encoding": b"gzip"}, etag + b"-gzip")
    return Page(Representation(body, headers, etag), gzipped if len(compressed) < len(body) else None)


def _accepts_gzip(accept_encoding: Sequence[bytes]) -> bool:
    """Return whether a client reads gzip (RFC 9110, section 12.5.3); False for a header that is not well-formed."""
    weights = {}
    for item in b",".join(accept_encoding).split(b","):
        coding, _, weight = item.partition(b";")
        weights[coding.strip().lower()] = weight.strip()
    weight = weights.get(b"gzip", weights.get(b"*", b"q=0"))
    return not weight or _ACCEPTED.fullmatch(weight) is not None
