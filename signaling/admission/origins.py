"""The checks of the ``Origin`` header (RFC 6454), for handshakes and CORS, and of the ``Host`` header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, ip_address

from signaling.errors import Refused

_SCHEME = r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
# An app's page may have an origin without a host, as file:// is.
_ORIGIN = re.compile(rf"{_SCHEME}(?:(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?P<port>:[0-9]{{1,5}})?)?")
_PATTERN = re.compile(rf"{_SCHEME}(?:(?P<host>(?:\*\.)?[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?P<port>:(?:[0-9]{{1,5}}|\*))?)?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_NO_PAGES = {"ws": "http", "wss": "https"}
_ANY = "*"
_ANY_PORT = ":*"
_SUBDOMAINS = "*."
_OPAQUE = "null"
_FILE = "file://"
_MAX_PORT = 65_535
_MAX_SHOWN = 100


class Origins:
    """The list of allowed origins.

    It protects users of browsers from foreign pages. Other programs can send any Origin, so a request without one is
    allowed.

    Args:
        patterns: origins as browsers and apps write them (``https://example.com``, ``capacitor://localhost``,
            ``null``); a host that starts with ``*.`` means all subdomains, the port ``*`` any port. An empty list, or
            ``*``, allows every origin.

    Attributes:
        allow_any: whether every origin is allowed: ``check`` need not be called.

    Raises:
        ValueError: a pattern is not an origin; the text says what would be right.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        given = [pattern.lower() for pattern in patterns]
        self.allow_any = not given or _ANY in given
        self._exact: set[str] = set()
        # Without their ports.
        self._any_port: set[str] = set()
        # Scheme, dot and host, and port; a port of None means any.
        self._parents: set[tuple[str, str, str | None]] = set()
        for pattern in given:
            if pattern != _ANY:
                self._add(pattern)

    def _add(self, pattern: str) -> None:
        if pattern == _OPAQUE:
            self._exact.add(pattern)
            return
        wrong = _wrong(pattern)
        if wrong is not None:
            raise ValueError(f"{pattern!r} is not an origin: {wrong}")
        scheme, host, port = _parts(_PATTERN, pattern) or ("", "", "")
        any_port = port == _ANY_PORT
        if host.startswith(_SUBDOMAINS):
            self._parents.add((scheme, host[1:], None if any_port else port))
        elif any_port:
            self._any_port.add(f"{scheme}://{host}")
        else:
            self._exact.add(f"{scheme}://{host}{port}")

    def check(self, values: Sequence[bytes]) -> None:
        """Refuse a request from an origin that is not allowed.

        Args:
            values: the request's Origin headers.

        Raises:
            Refused: 403.
        """
        if self._allow(values):
            return
        # Only a well-formed origin is quoted: it has no characters that could harm a log.
        origin = _normalized(values)
        named = f"the origin {origin[:_MAX_SHOWN]}" if origin else "this origin"
        hint = "; in browsers, a page of file:// has the origin null" if self._has_file_for(origin) else ""
        raise Refused(403, f"{named} is not on the server's list (--allow-origin){hint}")

    def _has_file_for(self, origin: str | None) -> bool:
        return origin == _OPAQUE and _FILE in self._exact

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

    def named(self, values: Sequence[bytes]) -> bool:
        """Return whether the operator named the origin: by ``*`` none is, and ``null`` is the origin of many pages.

        Args:
            values: the request's Origin headers.
        """
        origin = _normalized(values)
        return origin is not None and origin != _OPAQUE and self._listed(origin)

    def _allow(self, values: Sequence[bytes]) -> bool:
        if self.allow_any or not values:
            return True
        origin = _normalized(values)
        return origin is not None and self._listed(origin)

    def _listed(self, origin: str) -> bool:
        if origin in self._exact:
            return True
        if not (self._any_port or self._parents):
            return False
        scheme, host, port = _parts(_ORIGIN, origin) or ("", "", "")
        return f"{scheme}://{host}" in self._any_port or any(
            scheme == allowed and host.endswith(parent) and host != parent and port_allowed in (None, port)
            for allowed, parent, port_allowed in self._parents
        )


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


def _normalized(values: Sequence[bytes]) -> str | None:
    """Return the one origin without its scheme's default port; None if there is not one, or it is none."""
    if len(values) != 1:
        return None
    origin = values[0].decode("latin-1").lower()
    if origin == _OPAQUE:
        return origin
    parts = _parts(_ORIGIN, origin)
    return None if parts is None else f"{parts[0]}://{parts[1]}{parts[2]}"


def _parts(form: re.Pattern[str], origin: str) -> tuple[str, str, str] | None:
    """Return scheme, host and port; the port of the scheme is left out."""
    match = form.fullmatch(origin)
    if match is None:
        return None
    scheme, port = match["scheme"], match["port"] or ""
    return scheme, match["host"] or "", "" if port == _DEFAULT_PORTS.get(scheme) else port


def _wrong(pattern: str) -> str | None:
    """Return what would be right in place of a pattern; None if it is one."""
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        return _advice(pattern)
    scheme, host, port = match["scheme"], match["host"] or "", (match["port"] or "").removeprefix(":")
    if scheme in _NO_PAGES:
        return f"it is that of a page, for example {_NO_PAGES[scheme]}://{host or 'example.com'}"
    if scheme in _DEFAULT_PORTS and not host:
        return f"name a host, for example {scheme}://example.com"
    if port.isdigit() and int(port) > _MAX_PORT:
        return f"a port is at most {_MAX_PORT}"
    if f"{scheme}://" == _FILE and host:
        return f"write {_FILE}, without a host"
    return _wrong_host(scheme, host)


def _wrong_host(scheme: str, host: str) -> str | None:
    """Return what is wrong with a host that no browser writes like that; None if one may."""
    if not host.startswith("["):
        name = host.removeprefix(_SUBDOMAINS)
        is_empty = name.startswith(".") or ".." in name
        return f"a part of the name is empty; subdomains are {scheme}://*.example.com" if is_empty else None
    try:
        address = IPv6Address(host[1:-1])
    except ValueError:
        return f"{host} is no IPv6 address"
    # How Python writes a mapped address depends on its version.
    is_right = address.ipv4_mapped is not None or host == f"[{address}]"
    return None if is_right else f"browsers write {scheme}://[{address}]"


def _advice(pattern: str) -> str:
    if not pattern.isascii():
        return "browsers write names in ASCII, for example https://xn--bcher-kva.example"
    scheme, marks, rest = pattern.partition("://")
    host, slash, _ = rest.partition("/")
    if f"{scheme}{marks}" == _FILE:
        return f"write {_FILE}, without a path"
    if not marks and pattern and "*" not in pattern:
        return f"it begins with a scheme, for example https://{'example.com' if '/' in pattern else pattern}"
    if slash and _PATTERN.fullmatch(f"{scheme}://{host}"):
        return f"it has no path; write {scheme}://{host}"
    if "*" in rest:
        return "* stands for subdomains (https://*.example.com), or for any port (http://localhost:*)"
    return "for example https://example.com, https://*.example.com or http://localhost:*"
