"""The STUN and TURN servers that peers receive, with time-limited TURN credentials.

The credentials follow draft-uberti-behave-turn-rest-00 (coturn's ``use-auth-secret``): the user name is an expiry time
and a name, the password its HMAC with a secret that both servers know.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

IceServer = dict[str, Any]
"""One ``RTCIceServer`` dictionary of the WebRTC specification, section 4.2.4."""

# RFC 7064 and RFC 7065 without stuns, which no browser supports and some throw on.
_URI = re.compile(
    r"(?P<scheme>stun|turns?):(?:\[(?P<ipv6>[^\]]*)\]|(?P<host>[^:/?#@\[\]]*))"
    r"(?P<port>:[0-9]{0,5})?(?P<transport>\?transport=(?:udp|tcp))?"
)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_MAX_HOST_LENGTH = 253
# Browsers throw if a user name is longer (RFC 8489, section 14.3).
_MAX_USERNAME_BYTES = 509
DEFAULT_TTL_SECONDS = 3_600
_Uri = Annotated[str, Meta(pattern="^(?:stun|turns?):")]


class RTCIceServer(msgspec.Struct, forbid_unknown_fields=True):
    """A STUN or TURN server: a dictionary of the WebRTC specification, section 4.2.4."""

    urls: Annotated[
        _Uri | Annotated[list[_Uri], Meta(min_length=1)],
        Meta(description="Of one or more servers.", examples=["turn:turn.example.com:3478?transport=udp"]),
    ]
    username: Annotated[
        str | UnsetType, Meta(description="For TURN; at most 509 bytes of UTF-8.", examples=["1764345600:name"])
    ] = UNSET
    credential: Annotated[str | UnsetType, Meta(description="For TURN.", examples=["j0m5lLsUNyLa..."])] = UNSET


_KEYS = set(RTCIceServer.__struct_fields__)


@dataclass(frozen=True, slots=True)
class Turn:
    """TURN servers that share a secret with this server.

    Args:
        uris: for example ``turn:turn.example.com:3478?transport=udp``.
        secret: coturn's ``static-auth-secret``.
        ttl_seconds: lifetime of a credential.

    Raises:
        ValueError: an argument is invalid; the text says which, and what would be right.
    """

    uris: tuple[str, ...]
    secret: bytes = field(repr=False)
    ttl_seconds: int = DEFAULT_TTL_SECONDS

    def __post_init__(self) -> None:
        for uri in self.uris:
            check_turn_uri(uri)
        if not self.secret:
            raise ValueError("the secret of the TURN servers is empty")
        if self.ttl_seconds < 2:
            raise ValueError(f"{self.ttl_seconds} is not a whole number of seconds from 2 up")

    def server(self, name: str, now: float) -> IceServer:
        """Return the servers with a new credential.

        Args:
            name: identifies the peer; no colon.
            now: seconds since the Unix epoch.
        """
        user = f"{int(now) + self.ttl_seconds}:{name}"
        digest = hmac.digest(self.secret, user.encode(), "sha1")
        return {"urls": list(self.uris), "username": user, "credential": base64.b64encode(digest).decode()}


class IceServers:
    """The STUN and TURN servers that peers receive; none by default.

    Args:
        fixed: servers that are the same for every peer.
        turn: TURN servers with a credential for each peer.
        wall_clock: returns seconds since the Unix epoch.

    Attributes:
        fixed: as given, or replaced.
        turn: the same.

    Raises:
        ValueError: browsers would not accept ``fixed``.
    """

    def __init__(
        self, fixed: Sequence[IceServer] = (), turn: Turn | None = None, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self.fixed = list(fixed)
        check_ice_servers(self.fixed)
        self.turn = turn
        self._wall_clock = wall_clock
        self._provided: list[IceServer] = []
        self._watchers: list[Callable[[], None]] = []
        self._text = msgspec.json.encode(self.fixed) if self.fixed else None

    def provide(self, servers: Sequence[IceServer]) -> None:
        """Give peers these servers as well, in place of those that were provided before.

        Raises:
            ValueError: browsers would not accept them.
        """
        check_ice_servers(servers)
        if list(servers) == self._provided:
            return
        self._provided = list(servers)
        self._changed()

    def replace_with(self, other: IceServers) -> None:
        """Give peers the fixed and the TURN servers of ``other`` in place of these; what is provided stays."""
        self.fixed, self.turn = other.fixed, other.turn
        self._changed()

    def _changed(self) -> None:
        shared = self.fixed + self._provided
        self._text = msgspec.json.encode(shared) if shared else None
        for on_change in self._watchers:
            on_change()

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change`` each time there are other servers."""
        self._watchers.append(on_change)

    @property
    def renewal_seconds(self) -> float:
        """When a peer receives new credentials: after half of their lifetime; 0 means never."""
        return self.turn.ttl_seconds / 2 if self.turn else 0.0

    def text(self, peer_id: str) -> bytes | None:
        """Return the servers for a peer as a JSON array, or None if there are none."""
        if self.turn is None:
            return self._text
        turn = self.turn.server(peer_id, self._wall_clock())
        return msgspec.json.encode([*self.fixed, turn, *self._provided])


def check_turn_uri(uri: str) -> None:
    """Check that clients accept a TURN URI.

    Raises:
        ValueError: they do not; the text has an example.
    """
    try:
        if _scheme(uri) != "stun":
            return
        reason = "it is a STUN URI"
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{uri!r} is not a TURN URI (for example turn:turn.example.com:3478?transport=udp): {reason}")


def _scheme(uri: str) -> str:
    """Return the scheme of a STUN or TURN URI, after checking that browsers and aiortc accept it.

    Raises:
        ValueError: they do not. The text does not quote the URI: it may contain a password.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise ValueError("it has to be stun:HOST[:PORT] or turn:HOST[:PORT][?transport=udp|tcp], with turns: for TLS")
    if match["ipv6"] is not None:
        _check_ipv6(match["ipv6"])
    else:
        _check_host(match["host"])
    port = match["port"]
    if port is not None and not 1 <= int(port[1:] or 0) <= 65_535:
        raise ValueError("its port has to be a number from 1 to 65535")
    if match["scheme"] == "stun" and match["transport"]:
        raise ValueError("a STUN URI has no transport")
    return match["scheme"]


def _check_ipv6(text: str) -> None:
    try:
        if ipaddress.IPv6Address(text).scope_id is None:
            return
    except ValueError:
        pass
    raise ValueError("its host is no IPv6 address")


def _check_host(text: str) -> None:
    labels = text.removesuffix(".").split(".")
    if not text or len(text) > _MAX_HOST_LENGTH or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("its host is neither a name nor an address")
    if labels[-1].isdigit():
        try:
            ipaddress.IPv4Address(text)
        except ValueError:
            raise ValueError("its host is no IPv4 address") from None


def parse_ice_servers(text: bytes) -> list[IceServer]:
    """Parse a JSON array of ``RTCIceServer`` dictionaries.

    Raises:
        ValueError: it is invalid; the text says where and why, without quoting a credential.
    """
    try:
        servers = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(servers, list):
        raise ValueError('not an array, for example [{"urls": "stun:stun.example.com"}]')
    check_ice_servers(servers)
    return servers


def check_ice_servers(servers: Sequence[Any]) -> None:
    """Check that clients accept a list of ``RTCIceServer`` dictionaries.

    Raises:
        ValueError: they do not; the text says where and why, without quoting a credential.
    """
    for number, server in enumerate(servers):
        _check_server(f"[{number}]", server)


def _check_server(path: str, server: Any) -> None:
    if not isinstance(server, dict):
        raise ValueError(f'{path}: not an object, for example {{"urls": "stun:stun.example.com"}}')
    unknown = sorted(server.keys() - _KEYS)
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is not one of urls, username and credential")
    urls = server.get("urls")
    uris = [urls] if isinstance(urls, str) else urls
    if not isinstance(uris, list) or not uris:
        raise ValueError(f"{path}.urls: neither a URI nor an array of them")
    schemes = {_scheme_at(f"{path}.urls", uri) for uri in uris}
    for key in ("username", "credential"):
        if key in server and not isinstance(server[key], str):
            raise ValueError(f"{path}.{key}: not a string")
        if schemes != {"stun"} and not server.get(key):
            # Browsers throw InvalidAccessError if one is missing or empty.
            raise ValueError(f"{path}.{key}: a TURN server needs one, a string")
    if len(server.get("username", "").encode()) > _MAX_USERNAME_BYTES:
        raise ValueError(f"{path}.username: at most {_MAX_USERNAME_BYTES} bytes")


def _scheme_at(path: str, uri: Any) -> str:
    try:
        return _scheme(uri) if isinstance(uri, str) else _scheme("")
    except ValueError as error:
        example = "for example stun:stun.example.com:3478"
        raise ValueError(f"{path}: not a STUN or TURN URI ({example}): {error}") from None
