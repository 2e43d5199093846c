"""What a provider answers: its ICE servers as browsers accept them, whatever their JSON looks like.

Cloudflare answers ``{"iceServers": [...]}`` or, by its older address, ``{"iceServers": {...}}``; Twilio
``{"ice_servers": [...], "ttl": "86400"}``, with ``url`` beside ``urls``; Metered an array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from signaling.core.ice import IceServer, check_ice_servers
from signaling.ice_source.provider import MAX_TTL_SECONDS

# Each welcome contains them.
_MAX_BYTES = 8_192
_MAX_TTL_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Answer:
    """The ICE servers of a provider.

    Args:
        servers: as ``RTCIceServer`` dictionaries that clients accept.
        ttl_seconds: how long their credentials are valid; None if the answer does not say.
        left_out: why some of its servers are not among them, for the log; empty if all are.
    """

    servers: list[IceServer]
    ttl_seconds: int | None = None
    left_out: str = ""


def parse_answer(body: bytes) -> Answer:
    """Parse the body of an answer.

    Raises:
        ValueError: it has no ICE servers that clients accept; the text says why, and quotes nothing.
    """
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("the answer is not JSON") from None
    servers, reason = [], ""
    for entry in _entries(answer):
        server, refused = _server(entry)
        reason = reason or refused
        if server is not None:
            servers.append(server)
    if not servers:
        raise ValueError(f"the answer has no ICE servers that clients accept{reason and ': '}{reason}")
    if len(msgspec.json.encode(servers)) > _MAX_BYTES:
        raise ValueError(f"the answer has more than {_MAX_BYTES} bytes of ICE servers, and each peer would get them")
    return Answer(servers, _ttl(answer), reason)


def _entries(answer: Any) -> list[Any]:
    if isinstance(answer, dict):
        answer = answer.get("iceServers", answer.get("ice_servers"))
    return answer if isinstance(answer, list) else [answer]


def _server(entry: Any) -> tuple[IceServer | None, str]:
    """Return what clients accept of an entry, if anything, and why not all of it."""
    if not isinstance(entry, dict):
        return None, "a server is not an object"
    urls = entry.get("urls", entry.get("url"))
    credential = {key: entry[key] for key in ("username", "credential") if isinstance(entry.get(key), str)}
    accepted, reason = [], "" if urls else "a server has no urls"
    for uri in urls if isinstance(urls, list) else [urls]:
        try:
            # In a list: a list in place of one URI would be taken for several.
            check_ice_servers([{"urls": [uri], **credential}])
        except ValueError as error:
            reason = reason or str(error).removeprefix("[0].")
        else:
            accepted.append(uri)
    return ({"urls": accepted, **credential} if accepted else None), reason


def _ttl(answer: Any) -> int | None:
    value = answer.get("ttl") if isinstance(answer, dict) else None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[: _MAX_TTL_DIGITS + 1])
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
        # A float: languages without integers write 3600.0, or what is left of a life.
        return int(min(value, MAX_TTL_SECONDS))
    return None
