"""STUN and TURN servers that peers are told of, with credentials that live for a limited time.

The credentials follow draft-uberti-behave-turn-rest-00, which coturn calls ``use-auth-secret``: the user name is the
time of its end and a name, the password its HMAC under a secret that only the two servers know.
"""

from __future__ import annotations

import base64
import hmac
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

IceServer = dict[str, Any]
"""One ``RTCIceServer`` dictionary of the WebRTC specification, section 4.2.4."""

_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
# RFC 7064 and RFC 7065.
_STUN_URI = re.compile(rf"stuns?:{_HOST}(?::\d{{1,5}})?")
_TURN_URI = re.compile(rf"turns?:{_HOST}(?::\d{{1,5}})?(?:\?transport=(?:udp|tcp))?")
DEFAULT_TTL_SECONDS = 3_600
_KEYS = {"urls", "username", "credential"}


@dataclass(frozen=True, slots=True)
class Turn:
    """TURN servers that share a secret with us.

    Args:
        uris: for example ``turn:turn.example.com:3478?transport=udp``.
        secret: coturn's ``static-auth-secret``.
        ttl_seconds: how long a credential is good.

    Raises:
        ValueError: where an argument is of no use; the text says which and what would be.
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
        """Make one peer's credential.

        Args:
            name: of the peer; anything without a colon.
            now: seconds since the Unix epoch.
        """
        user = f"{int(now) + self.ttl_seconds}:{name}"
        digest = hmac.digest(self.secret, user.encode(), "sha1")
        return {"urls": list(self.uris), "username": user, "credential": base64.b64encode(digest).decode()}


class IceServers:
    """What peers are told of STUN and TURN servers; of none by default.

    Args:
        fixed: the same for every peer.
        turn: servers with a credential for each peer.
        wall_clock: tells the seconds since the Unix epoch.
    """

    def __init__(
        self, fixed: Sequence[IceServer] = (), turn: Turn | None = None, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._fixed = list(fixed)
        self._turn = turn
        self._wall_clock = wall_clock
        self._text = msgspec.json.encode(self._fixed) if self._fixed else None

    @property
    def renewal_seconds(self) -> float:
        """After how long a peer needs new ones, with half of their life left; 0 means never."""
        return self._turn.ttl_seconds / 2 if self._turn else 0.0

    def text(self, peer_id: str) -> bytes | None:
        """Return the JSON text of what ``peer_id`` is told, or None where there is nothing to tell."""
        if self._turn is None:
            return self._text
        return msgspec.json.encode([*self._fixed, self._turn.server(peer_id, self._wall_clock())])


def check_turn_uri(uri: str) -> None:
    """Refuse what is no TURN URI.

    Raises:
        ValueError: with an example of one.
    """
    if not _TURN_URI.fullmatch(uri):
        raise ValueError(f"{uri!r} is not a TURN URI (for example turn:turn.example.com:3478?transport=udp)")


def parse_ice_servers(text: bytes) -> list[IceServer]:
    """Read a JSON array of ``RTCIceServer`` dictionaries.

    Raises:
        ValueError: says where what is wrong. Never quotes a credential.
    """
    try:
        servers = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(servers, list):
        raise ValueError('not an array, for example [{"urls": "stun:stun.example.com"}]')
    for number, server in enumerate(servers):
        _check_server(f"[{number}]", server)
    return servers


def _check_server(where: str, server: Any) -> None:
    if not isinstance(server, dict):
        raise ValueError(f'{where}: not an object, for example {{"urls": "stun:stun.example.com"}}')
    unknown = sorted(server.keys() - _KEYS)
    if unknown:
        raise ValueError(f"{where}: {unknown[0]!r} is not one of urls, username and credential")
    urls = server.get("urls")
    uris = [urls] if isinstance(urls, str) else urls
    if not isinstance(uris, list) or not uris:
        raise ValueError(f"{where}.urls: neither a URI nor an array of them")
    for uri in uris:
        if not isinstance(uri, str) or not (_STUN_URI.fullmatch(uri) or _TURN_URI.fullmatch(uri)):
            # Not quoted: people put passwords into URIs.
            raise ValueError(f"{where}.urls: not a STUN or TURN URI (for example stun:stun.example.com:3478)")
    if any(_TURN_URI.fullmatch(uri) for uri in uris):
        for key in ("username", "credential"):
            # A browser throws InvalidAccessError where one is missing.
            if not isinstance(server.get(key), str):
                raise ValueError(f"{where}.{key}: a TURN server needs one, a string")
