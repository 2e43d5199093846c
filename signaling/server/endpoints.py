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
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from signaling.errors import StartError
from signaling.files import read_file
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


def is_of_systemd(text: str) -> bool:
    """Return whether a description means a socket that systemd hands over."""
    return _split(text)[0] == "systemd"


def endpoint(reactor: Any, option: str, text: str) -> IStreamServerEndpoint:
    """Parse a Twisted endpoint description.

    Raises:
        StartError: if it is wrong; the text names the option and the description.
    """
    kind, arguments = _split(text)
    problem = _problem(kind, arguments)
    if problem is not None:
        raise StartError(f"--{option} {text}: {problem}")
    try:
        parsed: IStreamServerEndpoint = serverFromString(reactor, text)  # type: ignore[no-untyped-call]
        if get_certificates(parsed) is not None:
            files = _files(arguments)
            set_certificates(parsed, Certificates(partial(_load, reactor, text, files), files.values()))
        if kind == "systemd" and "UNIX" in (arguments[0], _named(arguments).get("domain")):
            leave_unix_socket_alone(parsed)
    except Exception as error:
        # Each endpoint's parser fails in its own way: KeyError, TypeError, OSError, OpenSSL's errors.
        raise StartError(f"--{option} {text}: {explain(kind, error)}") from None
    return _UnixSocket(parsed, _unix_path(arguments)) if kind == "unix" else parsed


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
    kind, arguments = _split(text)
    if kind == "unix" and _mode(arguments) is None:
        return endpoint(reactor, option, f"{text}:mode=660")
    return endpoint(reactor, option, text)


def is_private(text: str) -> bool:
    """Return whether only this user and group can connect to what ``private_endpoint`` makes of a description."""
    kind, arguments = _split(text)
    if kind != "unix":
        return False
    mode = _mode(arguments) or "660"
    return re.fullmatch(r"[0-7]*0", mode) is not None


def _named(arguments: Sequence[str]) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in arguments if "=" in argument)


def _mode(arguments: Sequence[str]) -> str | None:
    named = _named(arguments)
    unnamed = [argument for argument in arguments if "=" not in argument]
    return named.get("mode", unnamed[1] if len(unnamed) > 1 else None)


def _unix_path(arguments: Sequence[str]) -> str:
    """Return the path of a UNIX socket; empty if there is none."""
    named = _named(arguments)
    return named.get("address", arguments[0] if arguments and "=" not in arguments[0] else "")


def _split(text: str) -> tuple[str, list[str]]:
    """Split a description into its kind and arguments; ``haproxy:tcp:8081`` is of the kind ``tcp``."""
    kind, *arguments = [re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\):", text)]
    while kind == "haproxy":
        kind, *arguments = arguments or [""]
    return kind, arguments


def _problem(kind: str, arguments: list[str]) -> str | None:
    """Return what is wrong with a description that Twisted's parsers refuse without a reason, or too late."""
    named = _named(arguments)
    first = arguments[0] if arguments and "=" not in arguments[0] else ""
    if kind == "stdio":
        return f"standard input is no place to listen; {_example(kind)}"
    if kind == "unix" and not _unix_path(arguments):
        return f"the path is missing; {_example(kind)}"
    if kind in ("tcp", "tcp6", "ssl"):
        port = named.get("port", first)
        if not port:
            return f"the port is missing; {_example(kind)}"
        if not (port.isascii() and port.isdigit() and int(port[:6]) <= 65_535):
            return f"{port!r} is not a port (a whole number from 0 to 65535); {_example(kind)}"
    return _unreadable_file(_files(arguments)) if kind == "ssl" else None


def _files(arguments: Sequence[str]) -> dict[str, str]:
    """Return the files that a description names, by their parameters."""
    named = _named(arguments)
    # Twisted's own default of privateKey=.
    return {name: path for name, path in {"privateKey": "server.pem", **named}.items() if name in _FILES}


def _unreadable_file(files: Mapping[str, str]) -> str | None:
    for name, path in files.items():
        try:
            read_file(path)
        except OSError as error:
            return f"{name}={path}: {error.strerror}; name a PEM file that this user can read"
    return None


_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_FILES = ("privateKey", "certKey", "extraCertChain", "dhParameters")
_EXAMPLES = {
    "tcp": "tcp:8081:interface=127.0.0.1",
    "tcp6": r"tcp6:8081:interface=\:\:1",
    "ssl": "ssl:8443:privateKey=key.pem:certKey=cert.pem",
    "unix": "unix:/run/signaling.sock:mode=660",
    "systemd": "systemd:domain=INET6:index=0",
}
_PEM = "privateKey= has to hold a private key without a password, and certKey= its certificate, in PEM"
# What the parsers raise, and what is wrong with the description then; the first match counts.
_EXPLANATIONS = (
    (r"Unknown endpoint type: (.*)", r"there is no kind of endpoint \1"),
    (r"unexpected keyword argument '(\w+)'", r"there is no \1="),
    (r"multiple values for argument '(\w+)'", r"\1= is given twice; a colon inside of a value is written \\:"),
    (r"missing .* argument: '(\w+)'", r"\1= is missing"),
    (r"positional argument", "there are too many parts; a colon inside of a value is written \\\\:"),
    (r"invalid literal for int\(\) with base 8: (.*)", r"\1 is not an octal number"),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number"),
    (r"no attribute '(\w+)'$", r"there is no \1 in the installed packages"),
    (r"IndexError|KeyError", "systemd handed no such socket over"),
)


def _example(kind: str) -> str:
    return f"for example {_EXAMPLES.get(kind) or ', '.join((_EXAMPLES['tcp'], _EXAMPLES['unix'], _EXAMPLES['ssl']))}"


def explain(kind: str, error: Exception) -> str:
    """Return, for a person, why a description or its files cannot be used.

    Args:
        kind: of the endpoint.
    """
    if isinstance(error, ImportError | NotImplementedError):
        return f"needs a package that is not installed (for TLS: pip install 'twisted-signaling[tls]'): {error}"
    text = f"{type(error).__name__}: {error}".replace("\n", " ")
    for pattern, meaning in _EXPLANATIONS:
        match = re.search(pattern, text)
        if match is not None:
            return f"{match.expand(meaning)}; {_example(kind)}"
    if "keys do not match" in text:
        return "the key of privateKey= and the certificate of certKey= do not belong together"
    return f"{_PEM} ({text})" if kind == "ssl" else f"{text}; {_example(kind)}"


def start_error(text: str, error: BaseException | None) -> StartError:
    """Return one line that says why listening failed, and what would help.

    Args:
        text: the option that asked for it.
    """
    cause = error.socketError if isinstance(error, CannotListenError) else error
    # For Twisted's lock beside a socket, only the text says that another server has it.
    number = errno.EADDRINUSE if "acquire lock" in str(cause) else getattr(cause, "errno", None)
    if re.match(r"--\S+ (haproxy:)*unix:", text) and number in _UNIX_REASONS:
        return StartError(f"{text}: {_UNIX_REASONS[number]}")
    if number == errno.EADDRINUSE:
        return StartError(f"{text}: the address is in use; stop the other server or choose another port")
    if "interface=" in text and (number in _NO_ADDRESS or isinstance(cause, socket.gaierror)):
        return StartError(f"{text}: interface= is not an address of this machine")
    if number == errno.EACCES:
        return StartError(
            f"{text}: this user may not listen there; choose a port from 1024 up, or let systemd hand the socket over"
        )
    return StartError(f"{text}: cannot listen: {cause}".replace("\n", " "))


# A link-local address without its zone is an invalid argument.
_NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)
_NO_SOCKET = "no socket can be made there: its folder has to exist, and this user to be allowed to write to it"
_UNIX_REASONS = {
    errno.EADDRINUSE: "the path is in use; stop the other server, remove the file and its .lock, or choose another",
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS), _NO_SOCKET),
}
