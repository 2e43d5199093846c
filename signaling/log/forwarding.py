"""One log for several processes: a worker sends its events to the listener, which publishes them as its own.

So the options of ``twistd`` for the log (a rotated file, syslog, JSON) hold for the workers' lines too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.logger import ILogObserver, LogLevel, eventAsJSON, eventFromJSON, formatEvent, globalLogPublisher
from zope.interface import implementer

# Kept of what the logger adds to an event's own fields.
_KEPT = frozenset({"log_time", "log_namespace", "log_format"})
_END = b"\n"
_TRACEBACK = "worker_traceback"
# A traceback may be longer than a message between processes.
_MAX_LINE_BYTES = 16_384


@implementer(ILogObserver)
class LogForwarder:
    """A log observer that sends a worker's events in batches.

    Args:
        call_soon: schedules a call in the reactor's next pass.
        send: sends a batch; returns False if it did not, and the batch is lost.
        report_lost: logs how many lines were lost, after the next batch that is sent.
        max_bytes: the largest batch.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        send: Callable[[bytes], bool],
        report_lost: Callable[[int], None],
        max_bytes: int,
    ) -> None:
        self._call_soon = call_soon
        self._send = send
        self._report_lost = report_lost
        self._max_bytes = max_bytes
        self._lines: list[bytes] = []
        self._size = 0
        self._lost = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Add one event to the batch."""
        line = encode(event)
        if self._size + len(line) > self._max_bytes:
            self.flush()
        if not self._lines:
            self._call_soon(self.flush)
        self._lines.append(line)
        self._size += len(line)

    def flush(self) -> None:
        """Send the batch."""
        lines, self._lines, self._size = self._lines, [], 0
        if not lines:
            return
        if not self._send(b"".join(lines)):
            self._lost += len(lines)
        elif self._lost:
            lost, self._lost = self._lost, 0
            self._report_lost(lost)


def encode(event: Mapping[str, Any]) -> bytes:
    """Encode an event as one line."""
    if event.get("log_namespace") == "signaling" and "event" in event:
        # eventAsJSON takes five times as long.
        plain = {name: value for name, value in event.items() if name in _KEPT or not name.startswith("log_")}
        line = json.dumps({**plain, "log_level": event["log_level"].name})
    else:
        line = _encode_any(event)
    return (line if len(line) < _MAX_LINE_BYTES else _shortened(event)).encode() + _END


def _encode_any(event: Mapping[str, Any]) -> str:
    plain = dict(event)
    failure = plain.pop("log_failure", None)
    try:
        if failure is not None:
            # eventAsJSON drops the exception's message.
            plain[_TRACEBACK] = failure.getTraceback()
        return eventAsJSON(plain)
    except Exception:
        # Events of other libraries may hold objects that cannot be encoded.
        return _shortened(event)


def _shortened(event: Mapping[str, Any]) -> str:
    failure = event.get("log_failure")
    text = formatEvent(dict(event)) + (f"\n{failure.getTraceback()}" if failure is not None else "")
    kept = {name: event[name] for name in ("log_time", "log_namespace") if name in event}
    level = event.get("log_level", LogLevel.info).name
    # JSON escapes may write one character as six.
    text = text[: _MAX_LINE_BYTES // 8]
    return json.dumps({**kept, "log_level": level, "log_format": "{text}", "text": text})


def publish(batch: bytes, worker: int, observer: Callable[[Any], object] = globalLogPublisher) -> None:
    """Publish the events of a batch.

    Args:
        batch: encoded lines.
        worker: the number of the worker that sent them.
    """
    for event in decode(batch):
        observer({**event, "worker": worker})


class ForwardedFailure:
    """A failure in another process, with what log observers ask of one."""

    def __init__(self, traceback: str) -> None:
        self._traceback = traceback

    def getTraceback(self, *args: Any, **kwargs: Any) -> str:
        """Return the traceback's text."""
        return self._traceback

    def getErrorMessage(self) -> str:
        """Return the traceback's last line."""
        return self._traceback.rstrip().rpartition("\n")[2]


def decode(batch: bytes) -> Iterable[dict[str, Any]]:
    """Decode the events of a batch."""
    for line in batch.splitlines():
        event = eventFromJSON(line.decode())
        level = event.get("log_level")
        if isinstance(level, str):
            event["log_level"] = LogLevel.lookupByName(level)
        if _TRACEBACK in event:
            event["log_failure"] = ForwardedFailure(event.pop(_TRACEBACK))
        yield event
