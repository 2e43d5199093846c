"""The HTTP API of a provider of ICE servers: its URL, its token, and the request that it expects."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

from signaling.files import read_regular_file

DEFAULT_TTL_SECONDS = 86_400
MIN_TTL_SECONDS = 60
MAX_TTL_SECONDS = 31 * 86_400
TOKEN_IN_URL = "{token}"
JSON = b"application/json"
_FORM = b"application/x-www-form-urlencoded"
_EXAMPLE = "for example https://example.com/credentials"
_MAX_TOKEN_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Provider:
    """The URL of a provider's API.

    Its text has neither path nor query, which may be secrets, and may be logged.

    Args:
        url: ``https:``, or ``http:`` of this machine. ``{token}`` in it stands for the token.

    Raises:
        ValueError: it is not one; the text says what would be right, and quotes nothing of it.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise ValueError(f"it is not a URL ({_EXAMPLE})") from None
        if parts.scheme not in ("https", "http") or not parts.hostname or port == 0:
            raise ValueError(f"it is not a URL that begins with https:// and names a host ({_EXAMPLE})")
        if not (self.url.isascii() and self.url.isprintable()) or " " in self.url:
            raise ValueError("it may have ASCII characters alone, without spaces: percent-encode the others")
        if "@" in parts.netloc:
            raise ValueError(
                "it may have no user name and password: put them in the file of the token, as NAME:PASSWORD"
            )
        if parts.fragment:
            raise ValueError("it may have no fragment (#)")
        if parts.scheme == "http" and not _is_this_machine(parts.hostname):
            raise ValueError("it has to begin with https://, as others could read the credentials on their way")

    def __str__(self) -> str:
        """Return scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Request:
    """A request for ICE servers.

    Args:
        content_type: of the body; None if there is none.
        authorization: the header of that name; None if there is none.
    """

    method: bytes
    url: bytes = field(repr=False)
    authorization: bytes | None = field(default=None, repr=False)
    content_type: bytes | None = None
    body: bytes = b""


def make_request(provider: Provider, token: str, ttl_seconds: int) -> Request:
    """Return the request for a provider, by where its token belongs.

    A token in the URL, or none: GET. Otherwise POST: with ``Basic`` and a form if the token is a name and a password
    (``NAME:PASSWORD``), as Twilio takes it; else with ``Bearer`` and JSON, as Cloudflare does.

    Args:
        token: in ASCII; empty for none.
        ttl_seconds: how long the credentials should be valid.
    """
    parts = urlsplit(provider.url)
    # Twisted's Agent would send a query alone, which no server takes.
    text = parts._replace(path=parts.path or "/").geturl()
    if not token or TOKEN_IN_URL in text:
        return Request(b"GET", text.replace(TOKEN_IN_URL, quote(token, safe="")).encode())
    url, secret = text.encode(), token.encode()
    if ":" in token:
        return Request(b"POST", url, b"Basic " + base64.b64encode(secret), _FORM, b"Ttl=%d" % ttl_seconds)
    return Request(b"POST", url, b"Bearer " + secret, JSON, b'{"ttl":%d}' % ttl_seconds)


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """What an operator says of a provider.

    Args:
        url: as for ``Provider``.
        token_file: with the token; None for none.
        ttl_seconds: how long credentials should be valid.
    """

    url: str = field(repr=False)
    token_file: str | None = None
    ttl_seconds: int = DEFAULT_TTL_SECONDS

    def read_token(self) -> str:
        """Read the token, without the white space around it; empty if there is no file for it.

        Raises:
            ValueError: there is no such file, or no token in it; the text does not quote it.
        """
        if self.token_file is None:
            return ""
        try:
            text = read_regular_file(self.token_file).strip()
        except OSError as error:
            raise ValueError(f"{self.token_file}: {error.strerror}") from None
        if not text or len(text) > _MAX_TOKEN_BYTES or not (text.isascii() and text.decode().isprintable()):
            wanted = f"one line of ASCII, at most {_MAX_TOKEN_BYTES} bytes"
            raise ValueError(f"{self.token_file}: not a token: {wanted}")
        return text.decode()
