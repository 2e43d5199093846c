"""Recognises an upgrade as browsers send it by one regular expression, in a fifth of the time that its lines take.

What is recognised here, ``request_head`` and ``handshake`` accept, and read alike. They accept more, and every refusal
is theirs.
"""

from __future__ import annotations

import re

# No part can match in two ways, and none is tried again: a head that almost matches takes linear time.
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
VALUE = rb"[\t !-~\x80-\xff]*+"

MAX_HEADERS = 100

# Not *+ around the group: in Python 3.11.2, an alternative that fails half-way keeps what it has matched.
_REQUEST_LINE = rb"GET (/(?:[!-$&->@-~]++|%[0-9A-Fa-f]{2})*(?:\?[!-~]*+)?) HTTP/1\.1"
# By lower-case name: the usual values of the headers that ``handshake`` checks, ...
_NEEDED = {
    b"host": VALUE,
    b"upgrade": rb"(?i:websocket)",
    b"connection": rb"(?i:(?:keep-alive, ?)?upgrade)",
    b"sec-websocket-version": rb"13",
    b"sec-websocket-key": rb"[A-Za-z0-9+/]{22}==",
}
# ... the headers that are asked for in most servers, ...
_POSSIBLE = dict.fromkeys((b"origin", b"sec-websocket-protocol", b"x-forwarded-for"), VALUE)
# ... and those that a request without a body does not have.
_UNUSUAL = (b"content-length", b"transfer-encoding")

TARGET_GROUP = 1
HEADER_GROUPS = {name: group for group, name in enumerate((*_NEEDED, *_POSSIBLE), TARGET_GROUP + 1)}
"""The groups of the headers whose values are known, by lower-case name; spaces may follow a value."""
KEY_GROUP = HEADER_GROUPS[b"sec-websocket-key"]


def _pattern() -> bytes:
    other = rb"(?!(?i:%b):)%b:%b" % (b"|".join((*HEADER_GROUPS, *_UNUSUAL)), TOKEN, VALUE)
    # A header that is known matches only here: a second one, or an unusual value, leaves the head unmatched.
    known = [
        rb"(?i:%b):(?(%d)(?!))[ \t]*+(%b)[ \t]*+" % (name, HEADER_GROUPS[name], value)
        for name, value in (_NEEDED | _POSSIBLE).items()
    ]
    line = b"|".join((other, *known))
    all_needed = b"".join(rb"(?(%d)|(?!))" % HEADER_GROUPS[name] for name in _NEEDED)
    return rb"%b(?:\r\n(?:%b)){0,%d}+%b" % (_REQUEST_LINE, line, MAX_HEADERS, all_needed)


ORDINARY_UPGRADE = re.compile(_pattern())
"""Matches the whole head, without its empty line."""
