"""``signaling-health``: checks that the server in this container answers, on whatever it listens.

It needs no options: it requests ``/healthz`` from every socket on which this user's processes listen, as Linux lists
them. It exits with 0 if one of them answers, else with 1.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

_TIMEOUT_SECONDS = 2.0
_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_HEALTHY = re.compile(rb"HTTP/1\.1 200 .*\r\n\r\nok$", re.DOTALL)
# The header that a haproxy: endpoint expects.
_PROXY_PROTOCOL = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n"
_TCP_LISTENING = "0A"
_UNIX_LISTENING = 0x10000

Address = tuple[str, int] | str
"""A host and a port, or the path of a UNIX socket."""


def main(proc: Path = Path("/proc")) -> int:
    """Run the check.

    Args:
        proc: the proc(5) file system.

    Returns:
        The exit status.
    """
    addresses = list(_listening(proc))
    if _any_healthy(addresses):
        return 0
    print(f"unhealthy: none of {addresses} answers /healthz" if addresses else "unhealthy: nothing listens")
    return 1


def _listening(proc: Path) -> Iterator[Address]:
    """List the listening sockets of the processes whose files this user may see."""
    own = set(_sockets(proc))
    for name, family in (("tcp", IPv4Address), ("tcp6", IPv6Address)):
        for fields in _table(proc / "net" / name):
            if fields[3] == _TCP_LISTENING and fields[9] in own:
                host, port = fields[1].split(":")
                yield _reachable(family, host), int(port, 16)
    for fields in _table(proc / "net" / "unix"):
        if int(fields[3], 16) & _UNIX_LISTENING and fields[6] in own and fields[7:]:
            yield " ".join(fields[7:])


def _sockets(proc: Path) -> Iterator[str]:
    for descriptor in proc.glob("[0-9]*/fd/*"):
        # Other users' processes are not readable, and some end meanwhile.
        with suppress(OSError):
            match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
            if match is not None:
                yield match[1]


def _table(path: Path) -> list[list[str]]:
    with suppress(OSError):
        return [line.split() for line in path.read_text().splitlines()[1:]]
    return []


def _reachable(family: type[IPv4Address] | type[IPv6Address], text: str) -> str:
    # The kernel prints words of four bytes, in the byte order of the machine.
    words = [bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8)]
    address = family(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words))
    return "localhost" if address.is_unspecified else str(address)


def _any_healthy(addresses: list[Address]) -> bool:
    """Return whether the server answers somewhere, with or without TLS and the PROXY protocol."""
    for encrypted in (False, True):
        for preamble in (b"", _PROXY_PROTOCOL):
            answers = {address: _ask(address, preamble + _REQUEST, encrypted=encrypted) for address in addresses}
            if any(map(_HEALTHY.match, answers.values())):
                return True
            # What speaks HTTP is something else, such as the metrics, and waits long for the end of a TLS greeting.
            addresses = [address for address, answer in answers.items() if not answer.startswith(b"HTTP/")]
    return False


def _ask(address: Address, request: bytes, *, encrypted: bool) -> bytes:
    with suppress(OSError), _connected(address) as plain:
        connection = _context().wrap_socket(plain) if encrypted else plain
        with connection:
            connection.sendall(request)
            return connection.makefile("rb").read(65_536)
    return b""


def _connected(address: Address) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, _TIMEOUT_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_TIMEOUT_SECONDS)
    connection.connect(address)
    return connection


def _context() -> ssl.SSLContext:
    # The request has no secrets, so the certificate does not matter.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


if __name__ == "__main__":
    sys.exit(main())
