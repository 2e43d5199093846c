"""Reads a request of the admin API: which operation it asks for, with which query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from signaling.core.admin_queries import (
    MAX_BLOCK_SECONDS,
    MAX_LIMIT,
    CloseTopic,
    DescribeTopic,
    ListTopics,
    Query,
    RemovePeer,
    SendNotice,
    check_reason,
)
from signaling.core.messages import decode_notice
from signaling.errors import Refused
from signaling.web.join_parsing import MAX_PARAMETERS, unquote
from signaling.websocket.request_head import HeaderValues

DOCUMENT = "openapi"
"""The operation that answers the description of the API."""
_JSON = b"application/json"
_DEFAULT_LIMIT = "100"
_PARAMETERS = {
    "list_topics": ("prefix", "after", "limit"),
    "remove_peer": ("reason", "block"),
    "close_topic": ("reason",),
}


class AdminRequest(NamedTuple):
    """What a request asks for.

    Args:
        operation: for counters, for example ``list_topics``.
        query: to carry out; None for the description of the API.
    """

    operation: str
    query: Query | None


def read_request(method: bytes, target: bytes, values: HeaderValues, body: Callable[[], bytes]) -> AdminRequest:
    """Read a request.

    Args:
        method: HEAD counts as GET.
        target: its path and query, still encoded.
        values: looks up headers.
        body: returns the body.

    Raises:
        Refused: 400, 404, 405 or 415.
    """
    path, _, query_text = target.partition(b"?")
    operation, names = _route(b"GET" if method == b"HEAD" else method, path.split(b"/")[1:])
    topic, peer = (_text(segment, what) for segment, what in zip(names, ("topic", "peer"), strict=True))
    given = _parameters(query_text, _PARAMETERS.get(operation, ()))
    query: Query | None
    match operation:
        case "list_topics":
            query = ListTopics(given.get("prefix", ""), given.get("after", ""), _limit(given))
        case "describe_topic":
            query = DescribeTopic(topic)
        case "close_topic":
            query = CloseTopic(topic, _reason(given))
        case "remove_peer":
            query = RemovePeer(topic, peer, _reason(given), _block(given))
        case "send_notice":
            query = _notice(topic, values, body())
        case _:
            query = None
    return AdminRequest(operation, query)


def _route(method: bytes, segments: Sequence[bytes]) -> tuple[str, tuple[bytes, bytes]]:
    """Return the operation, and the segments of the path that name a topic and a peer; empty if it names none."""
    topic = peer = b""
    match segments:
        case [b"v1", b"openapi.json"]:
            operations = {b"GET": DOCUMENT}
        case [b"v1", b"topics"]:
            operations = {b"GET": "list_topics"}
        case [b"v1", b"topics", topic] if topic:
            operations = {b"GET": "describe_topic", b"DELETE": "close_topic"}
        case [b"v1", b"topics", topic, b"peers", peer] if topic and peer:
            operations = {b"DELETE": "remove_peer"}
        case [b"v1", b"topics", topic, b"notices"] if topic:
            operations = {b"POST": "send_notice"}
        case _:
            raise Refused(404, "not found: /v1/openapi.json says what there is; a / in a topic is written %2F")
    if method not in operations:
        allowed = b", ".join([*operations, b"HEAD"] if b"GET" in operations else operations)
        raise Refused(405, f"only {allowed.decode()} is answered here", {b"Allow": allowed})
    return operations[method], (topic, peer)


def _parameters(query: bytes, known: Sequence[str]) -> Mapping[str, str]:
    if not query:
        return {}
    if query.count(b"&") >= MAX_PARAMETERS:
        raise Refused(400, f"the query: at most {MAX_PARAMETERS} parameters")
    found: dict[str, str] = {}
    for pair in query.split(b"&"):
        name_text, _, value = pair.partition(b"=")
        name = _text(name_text, "the query")
        if name not in known:
            # A misspelt one would otherwise change what is done.
            right = f"the parameters here are {', '.join(known)}" if known else "there are no parameters here"
            raise Refused(400, f"the query has an unknown parameter: {right}")
        if name in found:
            raise Refused(400, f"{name}: given more than once")
        found[name] = _text(value.replace(b"+", b" "), name)
    return found


def _text(encoded: bytes, what: str) -> str:
    try:
        return unquote(encoded, what).decode()
    except UnicodeDecodeError:
        raise Refused(400, f"{what}: not UTF-8 after percent-decoding") from None


def _limit(given: Mapping[str, str]) -> int:
    return _number("limit", given.get("limit", _DEFAULT_LIMIT), MAX_LIMIT)


def _block(given: Mapping[str, str]) -> int:
    text = given.get("block")
    return 0 if text is None else _number("block", text, MAX_BLOCK_SECONDS)


def _number(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise Refused(400, f"{name}: a whole number from 1 to {most} is needed")
    return int(text)


def _reason(given: Mapping[str, str]) -> str:
    reason = given.get("reason", "")
    try:
        check_reason(reason)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    return reason


def _notice(topic: str, values: HeaderValues, body: bytes) -> SendNotice:
    kinds = values(b"content-type")
    if len(kinds) != 1 or kinds[0].partition(b";")[0].strip().lower() != _JSON:
        raise Refused(415, "Content-Type: application/json is needed")
    try:
        to, data = decode_notice(body)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    return SendNotice(topic, to, data)
