"""The URL that webhooks are delivered to."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote, urlsplit

_EXAMPLE = "for example https://example.com/presence"


@dataclass(frozen=True, slots=True)
class WebhookUrl:
    """A URL, and what has to be known of it; its text has no password, and may be logged.

    Args:
        url: without user name, password and fragment, as a request needs it.
        host: a name, or an address without brackets.
        port: the scheme's if the URL has none.
        is_tls: whether it is ``https:``.
        authorization: for the header ``Authorization``: of the URL's user name and password; None without.
    """

    url: bytes = field(repr=False)
    host: str
    port: int
    is_tls: bool
    authorization: bytes | None = field(repr=False)

    def __str__(self) -> str:
        """Return scheme, host and port: the path may be a secret as well."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}"

    @property
    def is_readable_on_its_way(self) -> bool:
        """Whether the events cross a network without encryption."""
        if self.is_tls or self.host == "localhost":
            return False
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:
            return True


def parse_webhook_url(text: str) -> WebhookUrl:
    """Parse the URL of a receiver.

    Raises:
        ValueError: it is not one; the text says what would be right, and quotes nothing of it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"it is not a URL ({_EXAMPLE})") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"it has to begin with https:// or http:// ({_EXAMPLE})")
    if not parts.hostname or port == 0:
        raise ValueError(f"it names no host, or the port 0 ({_EXAMPLE})")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError(f"it may have ASCII characters alone, without spaces: percent-encode the others ({_EXAMPLE})")
    is_tls = parts.scheme == "https"
    netloc = parts.netloc.rpartition("@")[2]
    request = _path_and_query(parts)
    return WebhookUrl(
        f"{parts.scheme}://{netloc}{request}".encode(),
        parts.hostname,
        port or (443 if is_tls else 80),
        is_tls,
        _authorization(parts),
    )


def _path_and_query(parts: SplitResult) -> str:
    """Return path and query, as a request has them."""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _authorization(parts: SplitResult) -> bytes | None:
    if parts.username is None:
        return None
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return b"Basic " + base64.b64encode(user.encode())
