"""The log as JSON, one object a line (``--log-format json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from twisted.logger import LogLevel, formatEvent

from signaling.log.events import FIELDS
from signaling.transport.private_api import twistd_log_observer


def format_json(event: Mapping[str, Any]) -> str:
    """Format one event as a JSON object on one line; events of other libraries as ``log`` with their text."""
    level = event.get("log_level", LogLevel.info)
    line: dict[str, Any] = {"time": _time(event.get("log_time", 0.0)), "level": level.name}
    if event.get("log_namespace") == "signaling" and "event" in event:
        line["event"] = event["event"]
        line |= {name: event[name] for name in FIELDS if event.get(name) is not None}
    else:
        line |= {"event": "log", "source": event.get("log_namespace", "-"), "message": formatEvent(dict(event))}
        failure = event.get("log_failure")
        if failure is not None:
            line["traceback"] = failure.getTraceback()
    return json.dumps(line) + "\n"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_as_json(twistd_options: Any) -> None:
    """Make ``twistd`` write its log as JSON, to the file or standard output that it would have written text to.

    Args:
        twistd_options: the parsed options of ``twistd``, before it starts logging.

    Raises:
        ValueError: the log goes to syslog, or to an observer of the user's own.
    """
    if twistd_options["syslog"] or twistd_options.get("logger"):
        raise ValueError("it is written to a file or to standard output, not by --syslog or --logger of twistd")

    twistd_options["logger"] = f"{__name__}.{json_observer.__name__}"
    _twistd_options.update(twistd_options)


_twistd_options: dict[str, Any] = {}


def json_observer() -> Any:
    """Return the observer that writes JSON; ``twistd`` looks this function up by name and calls it."""
    # twistd chooses the destination: a file that it rotates, or standard output.
    observer = twistd_log_observer({**_twistd_options, "logger": None})
    observer.formatEvent = format_json
    return observer
