"""A server that echoes every message, for the suite to connect to: ``python -m tests.conformance.echo``."""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from signaling.limits import Limits
from signaling.websocket.frames import TEXT, frame
from signaling.websocket.protocol import WebSocketConnection, WebSocketConnectionFactory

_BINARY = 0x2
_LARGEST_MESSAGE_BYTES = 16 * 2**20

_LIMITS = Limits(
    max_message_bytes=_LARGEST_MESSAGE_BYTES,
    high_water_bytes=_LARGEST_MESSAGE_BYTES,
    # The suite masks and checks 16 MiB in Python, and reads nothing meanwhile.
    write_timeout_seconds=120.0,
    # The suite compares what it hears; a ping of ours would be one event too many.
    ping_interval_seconds=0,
)


class Echo(WebSocketConnection[None]):
    """Answers every message with itself, in one frame; what piles up is bounded by reading no further."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.answer(frame(_BINARY if isBinary else TEXT, payload))


def main() -> None:
    """Serve on a free port of the loopback, name it on one line, and print nothing but errors after it."""
    errors_only = LogLevelFilterPredicate(defaultLogLevel=LogLevel.error)
    observer = FilteringLogObserver(textFileLogObserver(sys.stderr), [errors_only])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    factory = WebSocketConnectionFactory(_LIMITS, reactor)
    factory.protocol = Echo
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    endpoint.listen(factory).addCallback(lambda port: print(f"listening on {port.getHost().port}", flush=True))
    reactor.run()


if __name__ == "__main__":
    main()
