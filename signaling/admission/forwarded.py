"""The addresses in ``Forwarded`` (RFC 7239), from the nearest hop to the farthest, in linear time.

A list is read from its end. What stands there was written by a proxy; what stands in front of it may have been written
by the client, and cannot hide it: not behind a quotation mark that is never closed, for example.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_PAIR = re.compile(rf"[ \t]*+(?:({_TOKEN})=(?:({_TOKEN})|{_QUOTED}))?[ \t]*+(?:;|\Z)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
# Section 6; a port may be obfuscated as well. ip_address checks the rest.
_NODE = re.compile(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
_MARKS = re.compile(r'[",]')


def forwarded_for(lines: Sequence[bytes]) -> Iterator[IPv4Address | IPv6Address | None]:
    """List the ``for`` of each element, the nearest hop first.

    Args:
        lines: the header's values, in the order received.

    Returns:
        For each hop its address; None if it is ``unknown``, obfuscated, absent or not well-formed.
    """
    for line in reversed(lines):
        for element in _elements(line.decode("latin-1")):
            # Empty elements of a list are ignored (RFC 9110, section 5.6.1).
            if element.strip(" \t"):
                yield _address(element)


def _elements(line: str) -> Iterator[str]:
    """Split a list at the commas outside of quoted strings, from its end."""
    end, quoted = len(line), False
    for mark in reversed(list(_MARKS.finditer(line))):
        at = mark.start()
        if line[at] == '"':
            if not (quoted and _is_escaped(line, at)):
                quoted = not quoted
        elif not quoted:
            yield line[at + 1 : end]
            end = at
    # If a quoted string has no beginning, this is not well-formed.
    yield line[:end]


def _is_escaped(line: str, at: int) -> bool:
    first = at
    while first and line[first - 1] == "\\":
        first -= 1
    return (at - first) % 2 == 1


def _address(element: str) -> IPv4Address | IPv6Address | None:
    found: list[str] = []
    position = 0
    while position < len(element):
        pair = _PAIR.match(element, position)
        if pair is None:
            return None
        position = pair.end()
        name, token, quoted = pair.groups()
        if name is not None and name.lower() == "for":
            found.append(token if quoted is None else _ESCAPED.sub(r"\1", quoted))
    node = _NODE.fullmatch(found[0]) if len(found) == 1 else None
    if node is None:
        return None
    try:
        address = ip_address(node[1] or node[2])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
