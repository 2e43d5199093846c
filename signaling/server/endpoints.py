"""Where a server listens: every interface, or the endpoints that it was given."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from signaling.errors import StartError
from signaling.files import read_file
from signaling.server.endpoint_descriptions import explain, parse_description
from signaling.transport.private_api import get_certificates, leave_unix_socket_alone, set_certificates

# A burst of browsers reconnects after a restart; the kernel caps it at somaxconn.
_BACKLOG = 1024


@implementer(IStreamServerEndpoint)
class AllInterfaces:
    """A TCP port on all interfaces: IPv6 and IPv4 on one socket, or IPv4 alone if there is no IPv6.

    Args:
        reactor: accepts; it has to provide ``IReactorSocket``.
        port: 0 lets the system choose.
    """

    def __init__(self, reactor: Any, port: int) -> None:
        self._reactor = reactor
        self._port = port

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Start to listen; fires with the port."""
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        listening = self._socket()
        try:
            listening.setblocking(False)
            port: IListeningPort = self._reactor.adoptStreamPort(listening.fileno(), listening.family, factory)
            return port
        finally:
            # The reactor works on a duplicate.
            listening.close()

    def _socket(self) -> socket.socket:
        if _has_ipv6():
            return socket.create_server(("", self._port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
        return socket.create_server(("", self._port), backlog=_BACKLOG)


def _has_ipv6() -> bool:
    if not socket.has_dualstack_ipv6():
        return False
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """The certificate of an ``ssl:`` endpoint, which connections from now on are given.

    Args:
        load: reads it from its files, and returns an ``IOpenSSLContextFactory`` provider.
        files: the files.

    Raises:
        Exception: whatever ``load`` and OpenSSL raise for files that cannot be used.
    """

    def __init__(self, load: Callable[[], Any], files: Iterable[str]) -> None:
        self._load = load
        self._files = tuple(files)
        self._use(self._digest(), load().getContext())

    def serverConnectionForTLS(self, protocol: Any) -> Any:
        """Return the next connection, which is to have the certificate of now."""
        # Of the extra tls.
        from OpenSSL.SSL import Connection  # noqa: PLC0415

        return Connection(self._context, None)

    def prepare(self) -> Callable[[], None] | None:
        """Read the files anew; raises what that raises.

        Returns:
            Gives new connections what was read; None if the files are as they were.
        """
        digest = self._digest()
        context = self._load().getContext()
        return None if digest == self._digest_in_use else partial(self._use, digest, context)

    def _use(self, digest: bytes, context: Any) -> None:
        self._digest_in_use, self._context = digest, context

    def _digest(self) -> bytes:
        return sha256(b"".join(read_file(file) for file in self._files)).digest()


@implementer(IStreamServerEndpoint)
class _UnixSocket:
    """An endpoint for a UNIX socket, also where a killed server that had the same process id has left its lock.

    Twisted takes a lock that names a running process for another server's. In a container, a server has the same
    process id after each restart.
    """

    def __init__(self, wrapped: IStreamServerEndpoint, path: str) -> None:
        self._wrapped = wrapped
        self._path = path

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Start to listen; fires with the port."""
        lock = f"{self._path}.lock"
        with suppress(OSError):
            # Another port of this process has such a lock as well, but its socket accepts connections.
            if os.readlink(lock) == str(os.getpid()) and _is_abandoned(self._path):
                Path(self._path).unlink(missing_ok=True)
                os.unlink(lock)
        return self._wrapped.listen(protocolFactory)


def _is_abandoned(path: str) -> bool:
    """Return whether a path is free, or has a socket on which nobody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        number = probe.connect_ex(path)
    return number == errno.ENOENT or (number == errno.ECONNREFUSED and Path(path).is_socket())


class ListenAddress(NamedTuple):
    """Where to listen.

    Args:
        text: the option that asked for it, for an error.
        site: an ``IProtocolFactory`` for its connections; None means the signaling server.
    """

    text: str
    endpoint: IStreamServerEndpoint
    site: Any = None

    @property
    def certificates(self) -> Certificates | None:
        """The certificates of its connections; None if they are not encrypted here."""
        found = get_certificates(self.endpoint)
        return found if isinstance(found, Certificates) else None


def listen_addresses(reactor: Any, descriptions: Sequence[str], port: int) -> list[ListenAddress]:
    """Return where to listen.

    Args:
        descriptions: Twisted endpoint descriptions; ``port`` counts if there are none.

    Raises:
        StartError: if a description is wrong; its text names the description.
    """
    if not descriptions:
        return [ListenAddress(f"port {port}", AllInterfaces(reactor, port))]
    return [ListenAddress(f"--listen {text}", endpoint(reactor, "listen", text)) for text in descriptions]


def endpoint(reactor: Any, option: str, text: str) -> IStreamServerEndpoint:
    """Parse a Twisted endpoint description.

    Raises:
        StartError: if it is wrong; the text names the option and the description.
    """
    description = parse_description(text)
    kind, problem = description.kind, description.problem
    if problem is not None:
        raise StartError(f"--{option} {text}: {problem}")
    try:
        parsed: IStreamServerEndpoint = serverFromString(reactor, text)  # type: ignore[no-untyped-call]
        if get_certificates(parsed) is not None:
            files = description.files
            set_certificates(parsed, Certificates(partial(_load, reactor, text, files), files.values()))
        if kind == "systemd" and "UNIX" in (description.arguments[0], description.named.get("domain")):
            leave_unix_socket_alone(parsed)
    except Exception as error:
        # Each endpoint's parser fails in its own way: KeyError, TypeError, OSError, OpenSSL's errors.
        raise StartError(f"--{option} {text}: {explain(kind, error)}") from None
    return _UnixSocket(parsed, description.unix_path) if kind == "unix" else parsed


def _load(reactor: Any, text: str, files: Mapping[str, str]) -> Any:
    """Read the certificates of an ``ssl:`` endpoint anew."""
    # Of the extra tls.
    from twisted.internet.ssl import Certificate  # noqa: PLC0415

    again: Callable[..., Any] = serverFromString
    options = get_certificates(again(reactor, text))
    if "extraCertChain" not in files:
        # Of the file with the server's certificate, Twisted reads this one alone.
        pem = read_file(files.get("certKey", files["privateKey"]))
        options.extraCertChain = [Certificate.loadPEM(each).original for each in _CERTIFICATE.findall(pem)[1:]]
    return options


def private_endpoint(reactor: Any, option: str, text: str) -> IStreamServerEndpoint:
    """Parse a description as ``endpoint`` does; to a UNIX socket without a mode, only this user and group can connect.

    Raises:
        StartError: if it is wrong; the text names the option and the description.
    """
    description = parse_description(text)
    if description.kind == "unix" and description.mode is None:
        return endpoint(reactor, option, f"{text}:mode=660")
    return endpoint(reactor, option, text)


_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
