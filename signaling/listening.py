"""Where a server listens: every interface, or the endpoints that it was given."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer

from signaling.errors import StartError

# A burst of browsers reconnects after a restart; the kernel caps it at somaxconn.
_BACKLOG = 1024


@implementer(IStreamServerEndpoint)
class AllInterfaces:
    """A TCP port on all interfaces: IPv6 and IPv4 on one socket, IPv4 alone where there is no IPv6.

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


class Certificates:
    """The certificate of an ``ssl:`` endpoint, which connections from now on are given.

    Args:
        load: reads it from its files, and returns an ``IOpenSSLContextFactory`` provider.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._current = load()

    def getContext(self) -> Any:
        """Return the context of the next connection; Twisted asks for each."""
        return self._current.getContext()

    def reload(self) -> None:
        """Read the files anew; raises what that raises, and keeps the certificate that it has."""
        fresh = self._load()
        fresh.getContext()
        self._current = fresh


class Listener(NamedTuple):
    """Somewhere to listen.

    Args:
        where: the words that asked for it, for an error.
        protocols: who answers there, an ``IProtocolFactory``; None means the signaling server.
    """

    where: str
    endpoint: IStreamServerEndpoint
    protocols: Any = None

    @property
    def certificates(self) -> Certificates | None:
        """What its connections are given; None where they are not encrypted here."""
        found = getattr(_innermost(self.endpoint), _CONTEXT, None)
        return found if isinstance(found, Certificates) else None


def listeners(reactor: Any, descriptions: Sequence[str], port: int) -> list[Listener]:
    """Return where to listen.

    Args:
        descriptions: Twisted endpoint descriptions; where there is none, ``port`` counts.

    Raises:
        StartError: naming the description that is not one.
    """
    if not descriptions:
        return [Listener(f"port {port}", AllInterfaces(reactor, port))]
    return [Listener(f"--listen {text}", endpoint(reactor, "listen", text)) for text in descriptions]


def endpoint(reactor: Any, option: str, text: str) -> IStreamServerEndpoint:
    """Parse a Twisted endpoint description.

    Raises:
        StartError: naming the option and the description, where it is none.
    """
    try:
        parsed: IStreamServerEndpoint = serverFromString(reactor, text)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Each endpoint's parser fails in its own way: KeyError, TypeError, OSError, OpenSSL's errors.
        raise StartError(f"--{option} {text}: {_why(error)}; right are for example {_EXAMPLES}") from None
    inner = _innermost(parsed)
    if hasattr(inner, _CONTEXT):
        again: Callable[..., Any] = serverFromString
        setattr(inner, _CONTEXT, Certificates(lambda: getattr(_innermost(again(reactor, text)), _CONTEXT)))
    return parsed


def _innermost(endpoint: Any) -> Any:
    # haproxy:ssl:8443 wraps one endpoint in another.
    while hasattr(endpoint, "_wrappedEndpoint"):
        endpoint = endpoint._wrappedEndpoint
    return endpoint


# Where Twisted's endpoint keeps its certificate, from making to listening.
_CONTEXT = "_sslContextFactory"


def accept_few(port: Any, most: int) -> None:
    """Let ``port`` accept at most ``most`` connections in each pass of the reactor.

    Twisted takes 100 and more. What was accepted is read in the next pass at the earliest, and what was cut to make
    room is closed there: a burst would run out of descriptors, and its connections would push each other out unheard.

    Args:
        port: an ``IListeningPort`` provider; one that is none of Twisted's own accepts as it likes.
        most: from 1 up.
    """
    if not hasattr(port, "numberAccepts"):
        return
    accept = port.doRead

    def accept_in_one_pass() -> None:
        # Twisted sets it anew after each pass, by what it found.
        port.numberAccepts = min(port.numberAccepts, most)
        accept()

    port.doRead = accept_in_one_pass


_EXAMPLES = "tcp:8081:interface=127.0.0.1, unix:/run/signaling.sock or ssl:8443:privateKey=key.pem:certKey=cert.pem"


def _why(error: Exception) -> str:
    if isinstance(error, ImportError | AttributeError | NotImplementedError):
        return f"needs a package that is not installed (for TLS: the extra tls, as in pip install '.[tls]'): {error}"
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def start_error(where: str, error: BaseException | None) -> StartError:
    """Say in one line why listening failed, and what would help.

    Args:
        where: the words that asked for it.
    """
    cause = error.socketError if isinstance(error, CannotListenError) else error
    number = getattr(cause, "errno", None)
    if number == errno.EADDRINUSE:
        return StartError(f"{where}: the address is in use; stop the other server or choose another port")
    if number == errno.EACCES:
        return StartError(
            f"{where}: this user may not listen there; choose a port from 1024 up, or let systemd hand the socket over"
        )
    return StartError(f"{where}: cannot listen: {cause}".replace("\n", " "))
