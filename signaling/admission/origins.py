"""The checks of the ``Origin`` header (RFC 6454), for handshakes and CORS, and of the ``Host`` header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from signaling.errors import Refused

_PATTERN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>(?:\*\.)?[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?P<port>:[0-9]+)?"
)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_ANY = "*"
_MAX_SHOWN = 100


class Origins:
    """The list of allowed origins.

    It protects users of browsers from foreign pages. Other programs can send any Origin, so a request without one is
    allowed.

    Args:
        patterns: origins as browsers write them (``https://example.com``, ``null``); a host that starts with ``*.``
            means all subdomains. An empty list, or ``*``, allows every origin.

    Attributes:
        allow_any: whether every origin is allowed: ``check`` need not be called.

    Raises:
        ValueError: a pattern is not an origin.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        given = [pattern.lower() for pattern in patterns]
        self.allow_any = not given or _ANY in given
        self._exact: set[str] = set()
        self._parents: set[tuple[str, str]] = set()
        for pattern in given:
            if pattern != _ANY:
                self._add(pattern)

    def _add(self, pattern: str) -> None:
        origin = _normalized(pattern)
        if origin is None:
            raise ValueError(f"{pattern!r} is not an origin (for example https://example.com or https://*.example.com)")
        scheme, wildcard, parent = origin.partition("://*.")
        if wildcard:
            self._parents.add((scheme, f".{parent}"))
        else:
            self._exact.add(origin)

    def check(self, values: Sequence[bytes]) -> None:
        """Refuse a request from an origin that is not allowed.

        Args:
            values: the request's Origin headers.

        Raises:
            Refused: 403.
        """
        if not self._allow(values):
            # Only a well-formed origin is quoted: it has no characters that could harm a log.
            origin = _normalized(values[0].decode("latin-1").lower()) if len(values) == 1 else None
            named = f"the origin {origin[:_MAX_SHOWN]}" if origin else "this origin"
            raise Refused(403, f"{named} is not on the server's list (--allow-origin)")

    def cors(self, values: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the CORS headers, which let a page of an allowed origin read the answer.

        Args:
            values: the request's Origin headers.
        """
        if self.allow_any and not values:
            return {b"Access-Control-Allow-Origin": b"*"}
        if not values or not self._allow(values):
            return {b"Vary": b"Origin"}
        return {b"Access-Control-Allow-Origin": values[0], b"Vary": b"Origin"}

    @staticmethod
    def cors_of_all(values: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the CORS headers of an answer that every page may read; the argument is that of ``cors``."""
        return {b"Access-Control-Allow-Origin": values[0] if values else b"*", b"Vary": b"Origin"}

    def _allow(self, values: Sequence[bytes]) -> bool:
        if self.allow_any or not values:
            return True
        origin = _normalized(values[0].decode("latin-1").lower()) if len(values) == 1 else None
        return origin is not None and "*" not in origin and (origin in self._exact or self._has_parent(origin))

    def _has_parent(self, origin: str) -> bool:
        scheme, _, host = origin.partition("://")
        return any(scheme == allowed and host.endswith(parent) and host != parent for allowed, parent in self._parents)


_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]*)?")


class Hosts:
    """The host names that requests may ask for; a defence against DNS rebinding.

    A web page can make its own host name resolve to an address in its visitor's network, and then read the answers of a
    server there. Such a name has a dot. So addresses, ``localhost`` and names of one label (containers) are always
    allowed, and so is a request without a Host, which no browser sends.

    Args:
        names: additional names.

    Raises:
        ValueError: an entry is not a host name.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = {name.lower() for name in names}
        for name in self._names:
            match = _HOST.fullmatch(name)
            if match is None or match[2] != name:
                raise ValueError(f"{name!r} is not a host name (for example metrics.example.com)")

    def check(self, values: Sequence[bytes]) -> None:
        """Refuse a request for a host name that is not allowed.

        Args:
            values: the request's Host headers.

        Raises:
            Refused: 421.
        """
        if not all(self._allow(value.decode("latin-1").lower()) for value in values):
            raise Refused(421, "this host name is not on the server's list (--metrics-host); ask by address")

    def _allow(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1] or match[2]
        return "." not in name or name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _normalized(origin: str) -> str | None:
    """Return the origin without its scheme's default port; None if it is not an origin."""
    if origin == "null":
        return origin
    match = _PATTERN.fullmatch(origin)
    if match is None:
        return None
    port = match["port"] or ""
    return f"{match['scheme']}://{match['host']}{'' if port == _DEFAULT_PORTS.get(match['scheme']) else port}"
