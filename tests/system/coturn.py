"""A real coturn on the loopback, with the configuration that is shipped."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.harness.server import Server, launch, wait_until
from tests.programs import free_port, need

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "turnserver.conf"
# The loopback is what the shipped configuration keeps relays out of.
LOOPBACK = ("--allow-loopback-peers", "--allowed-peer-ip=127.0.0.1")


@contextmanager
def coturn(folder: Path, secret: str, *options: str) -> Iterator[Server]:
    """Run coturn; its port is that of the server that is returned."""
    command = [
        need("turnserver"),
        "-c",
        str(CONFIGURATION),
        f"--static-auth-secret={secret}",
        "--listening-ip=127.0.0.1",
        "--relay-ip=127.0.0.1",
        "--no-tls",
        "--no-dtls",
        "--verbose",
        f"--pidfile={folder}/turnserver.pid",
        f"--userdb={folder}/turndb",
        *options,
    ]
    # coturn takes 0 for its default. A port that another socket had as well would leave it deaf.
    port = free_port()
    server = launch([*command, f"--listening-port={port}"], cwd=folder, port=port)
    try:
        server.wait_for(r"UDP listener opened")
        wait_until(lambda: answers(port), state=lambda: server.log)
        yield server
    finally:
        server.end()


def answers(port: int) -> bool:
    """Tell whether a STUN binding request is answered."""
    request = bytes.fromhex("000100002112a442") + os.urandom(12)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.connect(("127.0.0.1", port))
        with suppress(OSError):
            client.send(request)
            return client.recv(2048)[8:20] == request[8:]
    return False
