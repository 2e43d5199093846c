"""One log for several processes: a worker's events travel to the listener, which publishes them as its own.

So whatever ``twistd`` was told of the log, a file that it rotates, syslog or JSON, holds for the workers' lines too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.logger import ILogObserver, LogLevel, eventAsJSON, eventFromJSON, formatEvent, globalLogPublisher
from zope.interface import implementer

# Of what the logger adds to an event's own fields.
_KEPT = frozenset({"log_time", "log_namespace", "log_format"})
_END = b"\n"
_TRACEBACK = "worker_traceback"
# A traceback may be long, and a message between processes is not.
_LONGEST_LINE = 16_384


@implementer(ILogObserver)
class RelayedLog:
    """Observes a worker's log, and sends it in batches.

    Args:
        call_soon: calls something in the reactor's next pass.
        send: takes a batch, and tells whether it did; what it does not take is lost, and counted.
        tell_lost: logs how many lines were lost.
        most_bytes: of one batch.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        send: Callable[[bytes], bool],
        tell_lost: Callable[[int], None],
        most_bytes: int,
    ) -> None:
        self._call_soon = call_soon
        self._send = send
        self._tell_lost = tell_lost
        self._most_bytes = most_bytes
        self._lines: list[bytes] = []
        self._size = 0
        self._lost = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        line = encode(event)
        if self._size + len(line) > self._most_bytes:
            self.flush()
        if not self._lines:
            self._call_soon(self.flush)
        self._lines.append(line)
        self._size += len(line)

    def flush(self) -> None:
        """Send what is there."""
        lines, self._lines, self._size = self._lines, [], 0
        if not lines:
            return
        if not self._send(b"".join(lines)):
            self._lost += len(lines)
        elif self._lost:
            lost, self._lost = self._lost, 0
            self._tell_lost(lost)


def encode(event: Mapping[str, Any]) -> bytes:
    """Write an event down as one line."""
    if event.get("log_namespace") == "signaling" and "event" in event:
        # eventAsJSON would take five times as long for each join.
        plain = {name: value for name, value in event.items() if name in _KEPT or not name.startswith("log_")}
        line = json.dumps({**plain, "log_level": event["log_level"].name})
    else:
        line = _encode_any(event)
    return (line if len(line) < _LONGEST_LINE else _shortened(event)).encode() + _END


def _encode_any(event: Mapping[str, Any]) -> str:
    plain = dict(event)
    failure = plain.pop("log_failure", None)
    try:
        if failure is not None:
            # eventAsJSON would keep all but the exception's own words.
            plain[_TRACEBACK] = failure.getTraceback()
        return eventAsJSON(plain)
    except Exception:
        # What others log may hold anything.
        return _shortened(event)


def _shortened(event: Mapping[str, Any]) -> str:
    failure = event.get("log_failure")
    text = formatEvent(dict(event)) + (f"\n{failure.getTraceback()}" if failure is not None else "")
    kept = {name: event[name] for name in ("log_time", "log_namespace") if name in event}
    level = event.get("log_level", LogLevel.info).name
    # JSON writes some characters as six.
    text = text[: _LONGEST_LINE // 8]
    return json.dumps({**kept, "log_level": level, "log_format": "{text}", "text": text})


def publish(batch: bytes, worker: int, observer: Callable[[Any], object] = globalLogPublisher) -> None:
    """Publish the events of a batch.

    Args:
        batch: of lines.
        worker: who sent it.
    """
    for event in decode(batch):
        observer({**event, "worker": worker})


class ToldFailure:
    """A failure in another process, as far as a log shows one."""

    def __init__(self, traceback: str) -> None:
        self._traceback = traceback

    def getTraceback(self, *args: Any, **kwargs: Any) -> str:
        """Return its traceback."""
        return self._traceback

    def getErrorMessage(self) -> str:
        """Return its last line."""
        return self._traceback.rstrip().rpartition("\n")[2]


def decode(batch: bytes) -> Iterable[dict[str, Any]]:
    """Read the events of a batch."""
    for line in batch.splitlines():
        event = eventFromJSON(line.decode())
        level = event.get("log_level")
        if isinstance(level, str):
            event["log_level"] = LogLevel.lookupByName(level)
        if _TRACEBACK in event:
            event["log_failure"] = ToldFailure(event.pop(_TRACEBACK))
        yield event
