"""A Twisted service that answers every offer with the payload of the offer: python examples/echo_service.py ws://..."""

from __future__ import annotations

import sys

from twisted.internet import reactor

from signaling.client.messages import AnyMessage, Offer, PeerJoined, PeerLeft, Welcome
from signaling.client.twisted import SignalingClient


def main(url: str) -> None:
    """Answer until SIGTERM or SIGINT, then leave the topic."""

    def on_message(message: AnyMessage) -> None:
        match message:
            case Welcome(self_id, resumed=resumed):
                print(f"{'back' if resumed else 'here'} as {self_id}", flush=True)
            case PeerJoined(peer_id) | PeerLeft(peer_id):
                print(type(message).__name__, peer_id, flush=True)
            case Offer(sender, payload):
                client.send("answer", sender, payload)

    client = SignalingClient(url, on_message, metadata={"name": "echo"})
    client.on_failure = lambda failure: (print(failure, flush=True), reactor.stop())
    reactor.callWhenRunning(client.startService)
    reactor.addSystemEventTrigger("before", "shutdown", client.stopService)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1])
