"""A real coturn on the loopback, with the configuration that is shipped."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.live.twistd import Server
from tests.programs import need

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "turnserver.conf"
# The loopback is what the shipped configuration keeps relays out of.
LOOPBACK = ("--allow-loopback-peers", "--allowed-peer-ip=127.0.0.1")


@contextmanager
def coturn(folder: Path, secret: str, *options: str) -> Iterator[Server]:
    """Run coturn; its port is that of the server that is returned."""
    port = free_port()
    command = [
        need("turnserver"),
        "-c",
        str(CONFIGURATION),
        f"--static-auth-secret={secret}",
        "--listening-ip=127.0.0.1",
        "--relay-ip=127.0.0.1",
        f"--listening-port={port}",
        "--no-tls",
        "--no-dtls",
        "--verbose",
        f"--pidfile={folder}/turnserver.pid",
        f"--userdb={folder}/turndb",
        *options,
    ]
    process = subprocess.Popen(command, text=True, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    server = Server(process)
    server.port = port
    try:
        server.wait_for(r"UDP listener opened")
        yield server
    finally:
        server.end()


def free_port() -> int:
    """Return a port that nobody has: coturn takes 0 for its default."""
    with socket.socket(type=socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
