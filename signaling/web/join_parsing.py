"""Reads a join request from a request's path and query: the topic, its metadata, and the session to resume."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Meta

from signaling.core.grants import TOKEN_PATTERN
from signaling.core.join_request import JoinRequest, ResumeClaim
from signaling.core.messages import check_metadata
from signaling.errors import Refused
from signaling.limits import Limits

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
MAX_PARAMETERS = 100
ENCODED = 3
"""How many bytes one takes that is percent-encoded."""
_MOST_DIGITS = 15


class JoinQuery(msgspec.Struct, omit_defaults=True):
    """The keys of the query of a join, percent-encoded; each at most once. Others are ignored."""

    metadata: Annotated[
        str,
        Meta(
            description=(
                "The JSON text of an object, for the other peers: at most 4,096 bytes by default, nested at most 64 "
                "deep, with numbers of at most 100 digits."
            ),
            extra_json_schema={"contentMediaType": "application/json"},
            examples=['{"name":"Ada"}'],
        ),
    ] = ""
    resume: Annotated[str, Meta(description="The token of the `welcome` whose session to resume, beside `seen`.")] = ""
    seen: Annotated[
        str,
        Meta(
            pattern=f"^[0-9]{{1,{_MOST_DIGITS}}}$",
            description="How many messages the peer received so far, on all its connections.",
            examples=["17"],
        ),
    ] = ""
    token: Annotated[
        str,
        Meta(
            pattern=f"^{TOKEN_PATTERN}$",
            description="If access is controlled: the token, unless it comes in a header.",
        ),
    ] = ""
    check: Annotated[
        str, Meta(description="Without an upgrade: answer whether one would be accepted; perhaps an Origin.")
    ] = ""


def check_join(segment: bytes, query: bytes, limits: Limits) -> JoinRequest:
    """Read a topic and its metadata.

    Args:
        segment: the path's last segment, still percent-encoded.
        query: what follows the question mark, still encoded; empty if there is none.

    Raises:
        Refused: 400, naming what is wrong with which of them.
    """
    if not query:
        return JoinRequest(read_topic(segment, limits.max_topic_bytes), None)
    claim = _resume_claim(query) if limits.resume_window_seconds else None
    return JoinRequest(read_topic(segment, limits.max_topic_bytes), _metadata(query, limits.max_metadata_bytes), claim)


def read_topic(segment: bytes, max_bytes: int) -> str:
    """Read a topic.

    Args:
        segment: the path's last segment, still percent-encoded.
        max_bytes: of the topic, decoded.

    Raises:
        Refused: 400.
    """
    # Counted before it is decoded, which takes longer.
    size = len(segment) - (ENCODED - 1) * segment.count(b"%")
    if size > max_bytes:
        raise Refused(400, f"topic: at most {max_bytes} bytes, not {size}")
    try:
        return unquote(segment, "topic").decode()
    except UnicodeDecodeError:
        raise Refused(400, "topic: not UTF-8 after percent-decoding") from None


def query_values(query: bytes, key: str) -> list[bytes]:
    """Return the values of a key, percent-decoded, in the order received.

    Args:
        query: what follows the question mark, still encoded.

    Raises:
        Refused: 400.
    """
    if query.count(b"&") >= MAX_PARAMETERS:
        raise Refused(400, f"the query: at most {MAX_PARAMETERS} parameters")
    pairs = [pair.partition(b"=") for pair in query.split(b"&")]
    wanted = key.encode()
    return [unquote(value.replace(b"+", b" "), key) for name, _, value in pairs if _means(name, wanted)]


def has_key(query: bytes, key: str) -> bool:
    """Return whether a query has a key, with whatever value.

    Args:
        query: what follows the question mark, still encoded.
    """
    wanted = key.encode()
    return any(_means(pair.partition(b"=")[0], wanted) for pair in query.split(b"&", MAX_PARAMETERS))


def _means(name: bytes, wanted: bytes) -> bool:
    if b"%" not in name:
        return name == wanted
    return len(name) <= ENCODED * len(wanted) and unquote_to_bytes(name) == wanted


def _query_value(query: bytes, key: str) -> bytes | None:
    values = query_values(query, key)
    if len(values) > 1:
        raise Refused(400, f"{key}: given more than once")
    return values[0] if values else None


def _resume_claim(query: bytes) -> ResumeClaim | None:
    token = _query_value(query, "resume")
    if token is None:
        return None
    seen = _query_value(query, "seen") or b""
    if not (seen.isdigit() and len(seen) <= _MOST_DIGITS):
        raise Refused(400, "seen: has to be the number of messages received so far, beside resume")
    return ResumeClaim(token, int(seen))


def _metadata(query: bytes, max_bytes: int) -> bytes | None:
    text = _query_value(query, "metadata")
    if text is None:
        return None
    try:
        check_metadata(text, max_bytes)
    except ValueError as error:
        raise Refused(400, f"metadata: {error}") from None
    return text.strip(b" \t\r\n")


def unquote(text: bytes, what: str) -> bytes:
    """Decode what is percent-encoded.

    Args:
        what: it is, for the reason.

    Raises:
        Refused: 400; to pass over what is no escape would take Python twenty times as long.
    """
    if b"%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise Refused(400, f"{what}: a % that is not followed by two hexadecimal digits")
    return unquote_to_bytes(text)
