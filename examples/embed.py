"""Signaling inside an application's own twisted.web site: python examples/embed.py --port 8080."""

from __future__ import annotations

import argparse
import sys

from twisted.internet import endpoints, reactor
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from signaling import Limits, SignalingFactory, SignalingResource


def main() -> None:
    """Serve a page at / and signaling at /ws/{topic}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    port = parser.parse_args().port

    factory = SignalingFactory(Limits(shutdown_timeout_seconds=5.0))
    root = Resource()
    root.putChild(b"", Data(b"the application's own page\n", "text/plain"))
    root.putChild(b"ws", SignalingResource(factory))

    def listening(opened: object) -> None:
        print(f"listening on {opened.getHost().port}", flush=True)
        reactor.addSystemEventTrigger("before", "shutdown", opened.stopListening)
        reactor.addSystemEventTrigger("before", "shutdown", factory.shutdown.drain)

    def failed(failure: Failure) -> None:
        print(f"cannot listen: {failure.getErrorMessage()}", file=sys.stderr)
        reactor.callWhenRunning(reactor.stop)

    endpoints.TCP4ServerEndpoint(reactor, port).listen(Site(root)).addCallbacks(listening, failed)
    reactor.run()


if __name__ == "__main__":
    main()
