"""The files for browsers: the JavaScript client, and the demo that uses it."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Page:
    """One file.

    Args:
        body: its bytes.
        headers: of the answer.
        etag: of this version (RFC 9110, section 8.8.3), without quotes.
    """

    body: bytes
    headers: dict[bytes, bytes]
    etag: bytes


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
    return Page(body, headers, sha256(body).hexdigest()[:16].encode())
