"""Clients that send many requests and read no answer: ``python -m benchmarks.unread_answers``.

Each connection sends requests for a page all at once. Printed is what they cost in memory, and how long ``/healthz``
waits meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import time

from benchmarks.report import MB
from tests.harness.server import HOST, serving

_REQUEST = b"GET %b HTTP/1.1\r\nHost: server\r\n\r\n"
_RECEIVE_BUFFER = 4096
_SECONDS = 6.0


async def _healthz(port: int) -> float:
    """Return how many seconds ``/healthz`` took."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
    await reader.read()
    writer.close()
    return time.monotonic() - began


def _ask(port: int, request: bytes) -> socket.socket:
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    asking.connect((HOST, port))
    asking.sendall(request)
    return asking


async def measure(options: argparse.Namespace) -> int:
    """Ask, wait, and print what it cost; returns the exit status."""
    with serving("--demo", "--metrics") as server:
        # What is loaded with the first request is no part of it.
        await _healthz(server.port)
        before = server.memory_bytes()
        request = _REQUEST % options.path.encode() * options.requests
        asking = [_ask(server.port, request) for _ in range(options.connections)]
        began, waits, most = time.monotonic(), [], before
        while time.monotonic() - began < _SECONDS:
            waits.append(await _healthz(server.port))
            most = max(most, server.memory_bytes())
            await asyncio.sleep(0.01)
        for each in asking:
            each.close()
    print(f"{options.connections} connections, each with {options.requests} x GET {options.path}, nothing read")
    print(f"RSS {before / MB:.1f} MB before, {most / MB:.1f} MB at the most: ", end="")
    print(f"{(most - before) / options.connections / 1000:.0f} KB for each connection")
    print(f"/healthz: median {sorted(waits)[len(waits) // 2] * 1000:.1f} ms, longest {max(waits) * 1000:.0f} ms")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unread_answers", description=__doc__)
    parser.add_argument("--connections", type=int, default=200, help="at the same time (default: %(default)d)")
    parser.add_argument("--requests", type=int, default=32, help="of each connection (default: %(default)d)")
    parser.add_argument("--path", default="/demo.js", help="what is asked for (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(measure(parse(sys.argv[1:]))))
