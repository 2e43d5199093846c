"""The head of an HTTP request (RFC 9112): its request line and its headers, read in linear time.

A malformed or doubtful head is refused here: nothing behind this module, twisted.web included, has to expect a bare
line feed, a continued header line, or bytes in the target that must be percent-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from signaling.errors import Refused
from signaling.websocket.ordinary_upgrade import (
    HEADER_GROUPS,
    KEY_GROUP,
    MAX_HEADERS,
    ORDINARY_UPGRADE,
    TARGET_GROUP,
    TOKEN,
    VALUE,
)

HeaderValues = Callable[[bytes], Sequence[bytes]]
"""Looks up a header by its lower-case name: its values in the order received, empty if it is absent."""

_END = b"\r\n\r\n"
_METHOD = re.compile(TOKEN)
_TARGET = re.compile(rb"[!-~]+")
_VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")
_HEADER_LINE = re.compile(rb"(%b):(%b)" % (TOKEN, VALUE))
_ORIGIN = re.compile(rb"[hH][tT][tT][pP][sS]?://[^/?#]+")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Head:
    """A well-formed head.

    Args:
        method: as received.
        target: in origin form (``/ws/a?b``), or ``*``.
        version: ``HTTP/1.1`` or ``HTTP/1.0``.
        headers: values by lower-case name, in the order received.

    Attributes:
        key: the ``Sec-WebSocket-Key`` if ``check_upgrade`` need not look: it would return this; otherwise None.
    """

    __slots__ = ("_headers", "key", "method", "target", "version")

    def __init__(self, method: bytes, target: bytes, version: bytes, headers: dict[bytes, list[bytes]]) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.key: bytes | None = None
        self._headers = headers

    @property
    def headers(self) -> dict[bytes, list[bytes]]:
        """All headers, as they were given."""
        return self._headers

    def values(self, name: bytes) -> Sequence[bytes]:
        """Return the values of a header by its lower-case name."""
        return self.headers.get(name, ())

    @property
    def may_upgrade(self) -> bool:
        """Whether it can open a WebSocket connection (RFC 6455, section 4.1)."""
        return self.method == b"GET" and self.version == b"HTTP/1.1"


class _OrdinaryUpgrade(Head):
    """The head of an ordinary upgrade, whose headers are not read one by one unless somebody asks for all."""

    __slots__ = ("_match",)

    def __init__(self, match: re.Match[bytes]) -> None:
        self.method, self.version = b"GET", b"HTTP/1.1"
        self.target, self.key = match.group(TARGET_GROUP, KEY_GROUP)
        self._match = match

    @property
    def headers(self) -> dict[bytes, list[bytes]]:
        return _parse(self._match[0]).headers

    def values(self, name: bytes) -> Sequence[bytes]:
        group = HEADER_GROUPS.get(name)
        if group is None:
            return super().values(name)
        value = self._match[group]
        return [value.strip(b" \t")] if value is not None else ()


def take_head(data: bytes, searched: int, longest: int) -> tuple[Head, bytes] | None:
    """Split the head of the first request from what a client has sent.

    Args:
        data: all bytes that were received and not handled.
        searched: how many of them an earlier call has seen.
        longest: how many bytes the head may have, without its empty line.

    Returns:
        The head and the bytes behind it; None if more bytes are needed.

    Raises:
        Refused: 400 or 431, as early as possible.
    """
    end = data.find(_END, max(0, searched - len(_END) + 1))
    if 0 <= end <= longest:
        match = ORDINARY_UPGRADE.fullmatch(data, 0, end)
        if match is not None:
            return _OrdinaryUpgrade(match), data[end + len(_END) :]
    if end > longest or (end < 0 and len(data) > longest + len(_END)):
        raise Refused(431, f"the request line and the headers: at most {longest} bytes")
    # A carriage return may have come before its line feed.
    fresh = data[max(0, searched - 1) : end if end >= 0 else len(data)]
    if fresh.count(b"\n") - fresh.startswith(b"\n") * (searched > 0) != fresh.count(b"\r\n"):
        # A proxy in front may split lines otherwise (RFC 9112, section 2.2 leaves it to the server).
        raise Refused(400, "a line ends with CR LF, not with LF alone")
    return (_parse(data[:end]), data[end + len(_END) :]) if end >= 0 else None


def _parse(text: bytes) -> Head:
    # One empty line in front of a request is ignored (RFC 9112, section 2.2).
    text = text.removeprefix(b"\r\n")
    if text.count(b"\r\n") > MAX_HEADERS:
        raise Refused(431, f"at most {MAX_HEADERS} headers")
    request_line, *lines = text.split(b"\r\n")
    method, target, version = _parse_request_line(request_line)
    headers: dict[bytes, list[bytes]] = {}
    for line in lines:
        if line.startswith((b" ", b"\t")):
            raise Refused(400, "a header goes on in the next line (RFC 9112, section 5.2): write it on one")
        header = _HEADER_LINE.fullmatch(line)
        if header is None:
            raise Refused(400, "a header line is not well-formed HTTP/1.1")
        headers.setdefault(header[1].lower(), []).append(header[2].strip(b" \t"))
    return Head(method, target, version, headers)


def _parse_request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    method, target, version = [*line.split(b" ", 2), b"", b""][:3]
    if not _METHOD.fullmatch(method) or version not in _VERSIONS:
        raise Refused(400, "the request line is not well-formed HTTP/1.1: METHOD /path HTTP/1.1")
    if not _TARGET.fullmatch(target):
        raise Refused(400, "the path is not ASCII: percent-encode the topic in UTF-8, as encodeURIComponent does")
    target = origin_form(target)
    if not target.startswith(b"/") and (method, target) != (b"OPTIONS", b"*"):
        raise Refused(400, "the request's target is a path: /ws/{topic}")
    if _BAD_ESCAPE.search(target.partition(b"?")[0]):
        raise Refused(400, "the path: a % that is not followed by two hexadecimal digits")
    return method, target, version


def listing(token: bytes, flags: int = 0) -> re.Pattern[bytes]:
    """Return a pattern that finds ``token`` in a comma-separated list (RFC 9110, section 5.6.1)."""
    return re.compile(rb"(?:^|,)[ \t]*%b[ \t]*(?:,|\Z)" % token, flags)


def origin_form(target: bytes) -> bytes:
    """Return a target without scheme and authority, which every server must accept (RFC 9112, section 3.2.2)."""
    origin = _ORIGIN.match(target)
    if origin is None:
        return target
    path = target[origin.end() :]
    return path if path.startswith(b"/") else b"/" + path
