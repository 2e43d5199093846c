"""Which worker owns a topic, and which topic the first bytes of a connection name.

The topic is read as ``web.join_parsing.check_join`` reads it, so peers of one topic meet in one process however their
clients encode the path. Only the path is read here: the rest of a request is for the process that answers it.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from urllib.parse import unquote_to_bytes

from signaling.errors import Refused
from signaling.limits import Limits
from signaling.web.join_parsing import ENCODED, read_topic

NO_TOPIC = -1
"""The owner of requests that name no topic: the listener answers them."""

# Methods other than GET open no connection. ``take_head`` skips one empty line, and a target's scheme and authority;
# twisted.web decodes the segments of the path before the topic.
_PATH = rb"(?:\r\n)?GET (?:[hH][tT][tT][pP][sS]?://[^\s/?#]+)?((?:/[^\s?/]+){%d})/([^\s?/]+)[ ?]"
# The longest request line that may name a topic, without the topic. A host name has up to 253 bytes.
_BYTES_BESIDES_TOPIC = 400


class TopicRouter:
    """Maps topics, and requests, to workers.

    Args:
        workers: how many there are.
        limits: of topics and requests.
        path_prefix: as for ``HttpFactory``.
    """

    def __init__(self, workers: int, limits: Limits, path_prefix: str = "") -> None:
        self._workers = workers
        self._limits = limits
        self._folder = f"{path_prefix}/ws".encode()
        self._path = re.compile(_PATH % self._folder.count(b"/"))
        self._max_prefix_bytes = _BYTES_BESIDES_TOPIC + ENCODED * len(path_prefix)

    def owner(self, topic: str) -> int:
        """Return the worker that owns a topic: the same one in every process, and after every restart."""
        digest = blake2b(topic.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self._workers

    def route(self, data: bytes) -> int | None:
        """Return where a connection goes.

        Args:
            data: its first bytes.

        Returns:
            A worker, ``NO_TOPIC``, or None if more bytes are needed.
        """
        path = self._path.match(data)
        if path is not None:
            return self._route(*path.groups())
        limits = self._limits
        max_line_bytes = min(limits.max_header_bytes, self._max_prefix_bytes + ENCODED * limits.max_topic_bytes)
        over = b"\n" in data.removeprefix(b"\r\n") or len(data) > max_line_bytes
        return NO_TOPIC if over else None

    def _route(self, folder: bytes, segment: bytes) -> int:
        # An encoded slash ends no segment, and makes one more slash than there are.
        if len(folder) > ENCODED * len(self._folder) or unquote_to_bytes(folder) != self._folder:
            return NO_TOPIC
        try:
            return self.owner(read_topic(segment, self._limits.max_topic_bytes))
        except Refused:
            return NO_TOPIC


def share(total: int, workers: int, number: int) -> int:
    """Return the part of a bound on all workers together that is one worker's, counted from 0; at least 1."""
    return max(1, total // workers + (number < total % workers))
