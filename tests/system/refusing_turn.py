"""A TURN server on loopback that refuses everybody's credentials."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_MAGIC = 0x2112A442
_ALLOCATE_ERROR = 0x0113


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _refusal(request: bytes) -> bytes:
    """Return the error response to a STUN request (RFC 8489): 401, with the realm and nonce that clients wait for."""
    body = (
        _attribute(0x0009, b"\0\0\x04\x01Unauthorized")
        + _attribute(0x0014, b"example.com")
        + _attribute(0x0015, b"a nonce")
    )
    return struct.pack("!HHI", _ALLOCATE_ERROR, len(body), _MAGIC) + request[8:20] + body


@contextmanager
def refusing_turn() -> Iterator[int]:
    """Run the server; returns its UDP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                request, client = server.recvfrom(2048)
                if not request:
                    return
                server.sendto(_refusal(request), client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
                stopper.sendto(b"", server.getsockname())
            thread.join()
