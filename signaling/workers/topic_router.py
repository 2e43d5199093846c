"""Which worker a topic belongs to, and what the first bytes of a connection say about that.

The topic is the one that ``upgrade.check_join`` reads, so however a client encodes a path, peers of one topic meet in
one process. The path alone is looked at: a request's other parts are for the process that answers it.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from urllib.parse import unquote_to_bytes

from signaling.errors import Refused
from signaling.limits import Limits
from signaling.web.join_parsing import ENCODED, read_topic

ELSEWHERE = -1
"""Where requests go that name no topic: they are answered by whoever has them."""

# Methods other than GET open no connection. ``heads`` passes over one empty line, and over scheme and authority;
# twisted.web decodes the mount's name.
_PATH = re.compile(rb"(?:\r\n)?GET (?:[hH][tT][tT][pP][sS]?://[^\s/?#]+)?/([^\s?/]+)/([^\s?/]+)[ ?]")
_MOUNT = b"ws"
# Of the longest line that still may name a topic: all but the topic. A host's name has up to 253 bytes.
_ROOM = 400


class Router:
    """Tells workers apart by topics.

    Args:
        workers: how many there are.
        limits: of topics and requests.
    """

    def __init__(self, workers: int, limits: Limits) -> None:
        self._workers = workers
        self._limits = limits
        self._longest = min(limits.max_header_bytes, _ROOM + ENCODED * limits.max_topic_bytes)

    def owner(self, topic: str) -> int:
        """Return the worker that a topic lives in; the same one in every process, and after every restart."""
        digest = blake2b(topic.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self._workers

    def route(self, data: bytes) -> int | None:
        """Tell where a connection goes.

        Args:
            data: the first bytes that it brought.

        Returns:
            A worker, ``ELSEWHERE``, or None where more bytes are needed.
        """
        path = _PATH.match(data)
        if path is not None:
            return self._route(*path.groups())
        over = b"\n" in data.removeprefix(b"\r\n") or len(data) > self._longest
        return ELSEWHERE if over else None

    def _route(self, mount: bytes, segment: bytes) -> int:
        if len(mount) > ENCODED * len(_MOUNT) or unquote_to_bytes(mount) != _MOUNT:
            return ELSEWHERE
        try:
            return self.owner(read_topic(segment, self._limits.max_topic_bytes))
        except Refused:
            return ELSEWHERE


def share(total: int, workers: int, number: int) -> int:
    """Return what one worker, counted from 0, has of a bound on all of them together; from 1 up."""
    return max(1, total // workers + (number < total % workers))
