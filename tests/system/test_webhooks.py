"""``--webhook`` with a real receiver, which verifies each delivery with the library of Standard Webhooks."""

from __future__ import annotations

import base64
import signal
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from standardwebhooks import Webhook
from websockets.sync.client import connect

from tests.harness.certificates import self_signed
from tests.harness.peer import joined_id
from tests.harness.server import Server, running, wait_until

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


class Receiver(ThreadingHTTPServer):
    """A receiver on a port of its own.

    Attributes:
        status: what it answers.
        refused: how many deliveries it has refused.
        deliveries: those that it has accepted.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 204
        self.refused = 0
        self.connections = 0
        self.deliveries: list[Any] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    @property
    def events(self) -> list[Any]:
        """All events that were accepted."""
        return [event for delivery in self.deliveries for event in delivery["events"]]

    def story(self, topic: str) -> list[str]:
        """What happened in a topic."""
        return [event["type"] for event in self.events if event["data"]["topic"] == topic]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        delivery = Webhook(SECRET).verify(body, dict(self.headers))
        # The test may change it meanwhile.
        status = self.server.status
        if status == 204:
            self.server.deliveries.append(delivery)
        else:
            self.server.refused += 1
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield receiver
        receiver.shutdown()
        thread.join()


def options(folder: Path, url: str, *more: str) -> list[str]:
    (folder / "secret").write_text(SECRET)
    return ["--port=0", f"--webhook={url}", f"--webhook-secret-file={folder}/secret", *more]


def visit(server: Server, topic: str) -> str:
    """Join a topic, and leave it; returns the peer's id."""
    with connect(f"{server.url}{topic}") as peer:
        return joined_id(peer)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_receiver_gets_all_events_in_order_also_after_it_was_down(
    receiver: Receiver, tmp_path: Path, workers: int
) -> None:
    url = f"http://user:hidden@127.0.0.1:{receiver.server_port}/secret/path"
    topics = [f"room{number}" for number in range(6)]
    with running(options(tmp_path, url, f"--workers={workers}")) as server, ExitStack() as stack:
        server.wait_until_ready()
        visit(server, topics[0])
        wait_until(lambda: receiver.story(topics[0]) == ["topic.opened", "peer.joined", "peer.left", "topic.closed"])
        receiver.status = 503
        ids = {topic: visit(server, topic) for topic in topics[1:]}
        wait_until(lambda: receiver.refused > workers)
        receiver.status = 204
        for topic in topics[1:]:
            wait_until(lambda topic=topic: len(receiver.story(topic)) == 4)  # type: ignore[misc]
        last = joined_id(stack.enter_context(connect(f"{server.url}last")))
        assert server.stop(signal.SIGTERM) == 0
        assert receiver.story("last") == ["topic.opened", "peer.joined", "peer.left", "topic.closed"]
        assert "a webhook was not delivered" in server.log
        assert "webhooks are delivered again" in server.log
        assert "hidden" not in server.log
        assert "secret/path" not in server.log
    left = [event for event in receiver.events if event["type"] == "peer.left"]
    assert (left[-1]["data"]["peer"], left[-1]["data"]["reason"]) == (last, "shutdown")
    for topic, peer in ids.items():
        found = [event for event in receiver.events if event["data"]["topic"] == topic]
        assert [event["number"] for event in found] == [1, 2, 3, 4]
        assert {event["data"].get("peer", peer) for event in found} == {peer}
    assert len({event["id"] for event in receiver.events}) == len(receiver.events) == 28
    # Kept, though requests were refused.
    assert receiver.connections == workers


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_receiver_has_to_have_a_certificate_for_its_name(receiver: Receiver, tmp_path: Path, host: str) -> None:
    certificate = tmp_path / "certificate"
    certificate.write_bytes(self_signed(["localhost"]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    receiver.handle_error = lambda *_: None  # type: ignore[method-assign]
    url = f"https://{host}:{receiver.server_port}/"
    with running(options(tmp_path, url), env={"SSL_CERT_FILE": str(certificate)}) as server:
        visit(server, "room")
        if host == "localhost":
            wait_until(lambda: len(receiver.events) == 4)
        else:
            server.wait_for("a webhook was not delivered")
            assert not receiver.deliveries
