"""A local HTTP site whose answers a test writes byte by byte, well-formed or not."""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

Answer = bytes | Callable[[Any], None]
"""What is sent to a request; or a function that is called with the socket, and sends what it likes."""


class Received(NamedTuple):
    """A request that came. The names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Site(socketserver.ThreadingTCPServer):
    """A site on the loopback.

    Args:
        answers: by the path of the request.
        pem: certificate and key, for HTTPS.

    Attributes:
        received: the requests so far.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answers: Mapping[str, Answer], pem: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = dict(answers)
        self.received: list[Received] = []
        if pem is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: many a client hangs up."""


class _Handler(socketserver.BaseRequestHandler):
    server: Site

    def handle(self) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.request.recv(65_536)
            if not part:
                return
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += self.request.recv(65_536)
        method, target, _ = first.split(" ")
        self.server.received.append(Received(method, target, headers, body))
        answer = self.server.answers[target.partition("?")[0]]
        with suppress(OSError):
            if callable(answer):
                answer(self.request)
            else:
                self.request.sendall(answer)


@contextmanager
def http_site(answers: Mapping[str, Answer], pem: Path | None = None) -> Iterator[Site]:
    """Run a site."""
    with Site(answers, pem) as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Write an answer."""
    lines = [f"HTTP/1.1 {status} Anything", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
