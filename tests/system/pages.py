"""Pages for browsers: a folder with the JavaScript client, and an HTTP server for it."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from tests import issuer

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "signaling" / "browser" / "client" / "signaling.js"


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/token":
            super().do_GET()
            return
        [(_, seconds), (_, subject)] = parse_qsl(url.query)
        text = issuer.token({"prefixes": ["room"]}, sub=subject, exp=time.time() + float(seconds)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder, and at ``/token?seconds=5&sub=ada`` what an application's login would; returns the address."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def add_client(folder: Path) -> None:
    """Put the client, peers.js and an empty page into a folder."""
    for path in (CLIENT, HERE / "peers.js"):
        shutil.copy(path, folder)
    (folder / "index.html").write_text("<!doctype html><title>peers</title>")
