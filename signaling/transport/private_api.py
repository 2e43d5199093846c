"""Everything that uses private names of Twisted or Autobahn, with a trial of each at import.

A part whose trial fails is named in ``MISFITS`` and in one line of the log, and the server works without it:

- ``frames``: Autobahn reads all frames, which is slower.
- ``buffers``: the write timeout is the time for all that a transport of Twisted's holds.
- ``sockets``: an application's own port keeps Twisted's transport, which is slower.
- ``accept``: a connection has a socket object while it is accepted.
- ``endpoints``: SIGHUP reloads no certificates.
- ``UNIX ports``: a UNIX socket from systemd becomes writable for everybody, and is gone when the server stops.
- ``PROXY header``: until its first bytes, a connection of a ``haproxy:`` endpoint counts for the proxy's address.
- ``exit signal``: ``twistd`` ends by the signal that stopped it, not with status 0.
- ``log observers``: ``--log-level`` and ``--log-addresses`` do not change the log of other libraries.
- ``twistd's log``: the log as JSON is not rotated by SIGUSR1.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import FrameHeader
from autobahn.websocket.utf8validator import Utf8Validator
from constantly import NamedConstant
from twisted.internet import tcp, unix
from twisted.internet.abstract import FileDescriptor
from twisted.internet.base import ReactorBase
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.internet.task import Clock as FakeClock
from twisted.logger import (
    FilteringLogObserver,
    Logger,
    LogLevelFilterPredicate,
    globalLogPublisher,
    textFileLogObserver,
)
from twisted.protocols.haproxy import proxyEndpoint
from twisted.python.logfile import LogFile

_PROTOCOL_ERROR = 1002
_INVALID_PAYLOAD = 1007
_GOING_AWAY = 1001
_CLOSE = 0x8


# Autobahn's protocol


class AutobahnProtocol(WebSocketServerProtocol):
    """Autobahn's state machine of frames, which decides nothing about the connection itself.

    A subclass says what a message, an overhead frame and each way to the end mean. Autobahn keeps what it has read and
    not handled in ``data``, and the frame that it is reading in ``current_frame``.
    """

    data: bytes
    message_data: bytearray | None
    current_frame: FrameHeader | None = None
    inside_message = False
    websocket_version = 13

    def close(self, code: int, reason: str) -> None:
        """Send a close frame and end the connection; for a subclass."""
        raise NotImplementedError

    def onOverhead(self) -> None:
        """Called for each ping, unsolicited pong and fragment; for a subclass."""

    def handle_control_frame(self, opcode: int, payload: bytes) -> None:
        """Let Autobahn handle a control frame that was read without it."""
        self.current_frame = FrameHeader(opcode, True, 0, len(payload), None)
        self.control_frame_data = [payload]
        self.processControlFrame()
        self.current_frame = None

    def onMessageBegin(self, isBinary: bool) -> None:
        """Start a message in one buffer; Autobahn's list of pieces takes fifty bytes more for each."""
        self.message_is_binary = isBinary
        self.message_data = bytearray()
        self.message_data_total_length = 0

    def onMessageFrameData(self, payload: bytes) -> None:
        """Keep what a frame brought."""
        if self.message_data is not None and not self.failedByMe:
            self.message_data += payload

    def onMessageFrameEnd(self) -> None:
        """Count a fragment as overhead; the last one is counted as the message."""
        if self.current_frame is not None and not self.current_frame.fin:
            self.onOverhead()

    def onMessageEnd(self) -> None:
        """Call ``onMessage``, without the event that Autobahn fires as well."""
        message, self.message_data = self.message_data, None
        if message is not None and not self.failedByMe:
            self.onMessage(bytes(message), self.message_is_binary)

    def _fail_connection(self, code: int = _GOING_AWAY, reason: str = "") -> None:
        self.failedByMe = True
        self.close(code, reason)

    def _protocol_violation(self, reason: str) -> bool:
        self._fail_connection(_PROTOCOL_ERROR, reason)
        return True

    def _invalid_payload(self, reason: str) -> bool:
        self._fail_connection(_INVALID_PAYLOAD, reason)
        return True


def with_initial_state(protocol: Any, factory: WebSocketServerFactory) -> Any:
    """Return a subclass of ``protocol`` whose attributes are what Autobahn sets anew in each connection.

    In the class they cost a connection nothing.
    """
    sample = WebSocketServerProtocol()
    sample.factory = factory
    sample._connectionMade()
    factory.countConnections = 0
    state = {name: value for name, value in vars(sample).items() if name not in ("factory", "utf8validator")}
    # The one thing of these that each connection needs for itself, and only for what Autobahn reads.
    validator = cached_property(lambda _: Utf8Validator())
    return type(protocol.__name__, (protocol,), {**state, "utf8validator": validator, "__doc__": protocol.__doc__})


class _Trial(AutobahnProtocol):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.seen.append(payload)

    def onPing(self, payload: bytes) -> None:
        self.seen.append(("ping", payload))

    def onOverhead(self) -> None:
        self.seen.append("fragment")

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        self.seen.append(code)

    def dropConnection(self, abort: bool = False) -> None:
        self.seen.append("end")

    def close(self, code: int, reason: str) -> None:
        self.seen.append(code)


_TRIAL_FRAMES = b"\x81\x85\0\0\0\0whole\x01\x84\0\0\0\0frag\x89\x81\0\0\0\0p\x80\x84\0\0\0\0ment"
_BAD_FRAME = b"\x83\x80\0\0\0\0"
_TRIAL_RESULT = [b"whole", "fragment", ("ping", b"p"), b"fragment", _PROTOCOL_ERROR, 1000, "end"]


def _try_autobahn() -> bool:
    factory = WebSocketServerFactory(reactor=FakeClock())
    factory.setProtocolOptions(failByDrop=False, openHandshakeTimeout=0, closeHandshakeTimeout=0)
    connection = with_initial_state(_Trial, factory)()
    connection.factory = factory
    connection.state = connection.STATE_OPEN
    for data in (_TRIAL_FRAMES, _BAD_FRAME):
        connection.data = data
        while connection.data and connection.processData() and not connection.failedByMe:
            pass
    connection.current_frame, connection.failedByMe = None, False
    connection.handle_control_frame(_CLOSE, b"\x03\xe8")
    return bool(connection.seen == _TRIAL_RESULT)


# Twisted's TCP transport


def is_plain_tcp(transport: Any, protocol: Any) -> bool:
    """Return whether ``take_descriptor`` works, and harms nobody.

    That is, ``transport`` is Twisted's own for an accepted connection, serves ``protocol`` alone, and holds nothing to
    write: in a foreign site, for example, answers to earlier requests may wait there.
    """
    return (
        FITS["sockets"]
        and type(transport) is tcp.Server
        and transport.protocol is protocol
        and not pending_bytes(transport)
    )


def take_descriptor(transport: Any) -> None:
    """Take the descriptor of a connection that was just accepted away from its transport, and leave it open."""
    transport.stopReading()
    transport.socket.detach()


def accept_descriptor(listening: Any) -> tuple[int, Any]:
    """Accept a connection without a socket object for it.

    Returns:
        Its descriptor, and the address that ``socket.accept`` returns.
    """
    if FITS["accept"]:
        accepted: tuple[int, Any] = listening._accept()
        return accepted
    connection, address = listening.accept()
    return connection.detach(), address


def _try_accept() -> bool:
    return callable(getattr(socket.socket, "_accept", None))


def pending_bytes(transport: Any) -> int:
    """Return how many bytes the transport holds, through the wrappers of TLS and the PROXY protocol.

    A transport that keeps them elsewhere seems never to progress: it has the write timeout for all that it holds.
    """
    if not FITS["buffers"]:
        return 0
    while not hasattr(transport, "dataBuffer"):
        transport = getattr(transport, "transport", None)
        if transport is None:
            return 0
    held: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    return held


class _NoReactor:
    def addWriter(self, writer: Any) -> None:
        """Watch nothing."""


def _try_buffers() -> bool:
    descriptor: Any = FileDescriptor(_NoReactor())  # type: ignore[arg-type]
    descriptor.connected = True
    descriptor.write(b"four")
    return bool(descriptor._tempDataLen == 4 and descriptor.offset == 0 and not descriptor.dataBuffer)


# Twisted's listening ports and endpoints


def accept_few(port: Any, most: int) -> None:
    """Let ``port`` accept at most ``most`` connections in each pass of the reactor.

    Twisted accepts 100 and more. They are read in the next pass at the earliest, and those that were evicted are closed
    there: a burst would use up all descriptors, and evict its own connections before their requests are read.

    Args:
        port: an ``IListeningPort`` provider; one that is none of Twisted's own is left as it is.
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


def speaks_proxy_protocol(endpoint: Any) -> bool:
    """Return whether a listening endpoint reads the PROXY protocol (``haproxy:``); False if nothing says so."""
    return FITS["endpoints"] and hasattr(endpoint, "_wrappedEndpoint")


def get_certificates(endpoint: Any) -> Any:
    """Return the ``IOpenSSLContextFactory`` or the like of an ``ssl:`` endpoint; None if there is none, or unknown."""
    return getattr(_innermost(endpoint), "_sslContextFactory", None) if FITS["endpoints"] else None


def set_certificates(endpoint: Any, certificates: Any) -> None:
    """Replace what ``get_certificates`` found; the endpoint does not listen yet."""
    _innermost(endpoint)._sslContextFactory = certificates


def _innermost(endpoint: Any) -> Any:
    # haproxy:ssl:8443 wraps one endpoint in another.
    while hasattr(endpoint, "_wrappedEndpoint"):
        endpoint = endpoint._wrappedEndpoint
    return endpoint


def _try_endpoints() -> bool:
    inner: Any = SSL4ServerEndpoint(None, 0, "certificates")
    return inner._sslContextFactory == "certificates" and _innermost(proxyEndpoint(inner)) is inner


class UnixPortAdopter:
    """Adopts listening UNIX sockets of somebody else, in place of a reactor, and leaves them as they are.

    Twisted's reactor makes the file of such a socket writable for everybody. When it stops to listen, it removes the
    file, and lets the socket refuse connections.

    Args:
        reactor: the reactor.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def adoptStreamPort(self, descriptor: int, family: Any, factory: Any) -> Any:
        """Listen on a duplicate of ``descriptor``; as of ``IReactorSocket``."""
        if not FITS["UNIX ports"]:
            return self._reactor.adoptStreamPort(descriptor, family, factory)
        port: Any = unix.Port._fromListeningDescriptor(self._reactor, descriptor, factory)
        # As of a socket in the abstract namespace, which has no file.
        port._bindPath = b"\0" + port._bindPath.lstrip(b"\0")
        # The socket is systemd's as well: after shutdown(2), it would refuse every client until the next start.
        port._shouldShutdown = False
        port.startListening()
        return port


def leave_unix_socket_alone(endpoint: Any) -> None:
    """Let the endpoint of a UNIX socket that systemd hands over change neither the socket nor its file."""
    adopted = _innermost(endpoint)
    adopted.reactor = UnixPortAdopter(adopted.reactor)


def _try_unix_ports() -> bool:
    port: Any = unix.Port(b"/a", None, reactor=FakeClock())  # type: ignore[arg-type]
    is_file: Any = unix._inFilesystemNamespace
    is_adopting = hasattr(unix.Port, "_fromListeningDescriptor") and port._shouldShutdown
    return port._bindPath == b"/a" and is_file(b"/a") and not is_file(b"\0/a") and is_adopting


def awaits_proxy_header(transport: Any) -> bool:
    """Return whether ``transport`` reads the PROXY protocol: it has the proxy's address until its first bytes."""
    return hasattr(transport, "_proxyInfo")


def _try_proxy_header() -> bool:
    wrapped = proxyEndpoint(TCP4ServerEndpoint(None, 0))
    protocol = wrapped._wrapperFactory(None).protocol
    return "_proxyInfo" in protocol.__init__.__code__.co_names


def forget_exit_signal(reactor: Any) -> None:
    """Let the process end with status 0 although the reactor was stopped by a signal; else ``twistd`` ends by it."""
    reactor._exitSignal = None


# Twisted's logging


def filter_all_logs(level: NamedConstant, mask: Callable[[Any], Any] | None = None) -> Callable[[NamedConstant], None]:
    """Drop events below ``level`` in whatever observers ``twistd`` was told to use.

    ``twistd`` has no option for that and builds its observers out of reach: they are wrapped where they are registered.

    Args:
        mask: returns an observer that changes events and passes them on to its argument; None means that none is.

    Returns:
        Sets another level.
    """
    predicate = LogLevelFilterPredicate(defaultLogLevel=level)
    for observer in tuple(getattr(globalLogPublisher, "_observers", ())):
        globalLogPublisher.removeObserver(observer)
        masked = observer if mask is None else mask(observer)
        globalLogPublisher.addObserver(FilteringLogObserver(masked, [predicate]))
    return partial(predicate.setLogLevelForNamespace, "")


def twistd_log_observer(options: Any) -> Any:
    """Return the observer of text that ``twistd`` would use; without its private part, one that does not rotate.

    Args:
        options: of ``twistd``; without a logger of the user's, and without syslog.
    """
    if FITS["twistd's log"]:
        from twisted.scripts._twistd_unix import UnixAppLogger  # noqa: PLC0415

        return UnixAppLogger(options)._getLogObserver()
    path = options.get("logfile") or ("-" if options.get("nodaemon") else "twistd.log")
    return textFileLogObserver(sys.stdout if path == "-" else LogFile.fromFullPath(path))


def _try_twistd_log() -> bool:
    from twisted.scripts._twistd_unix import UnixAppLogger  # noqa: PLC0415

    return "_getLogObserver" in vars(UnixAppLogger)


def _fits(trial: Callable[[], bool]) -> bool:
    try:
        return trial()
    except Exception:
        return False


FITS = {
    "frames": _fits(_try_autobahn),
    "buffers": _fits(_try_buffers),
    "sockets": "socket" in tcp.Connection.__init__.__code__.co_names,
    "accept": _fits(_try_accept),
    "endpoints": _fits(_try_endpoints),
    "UNIX ports": _fits(_try_unix_ports),
    "PROXY header": _fits(_try_proxy_header),
    "exit signal": hasattr(ReactorBase, "_exitSignal"),
    "log observers": hasattr(globalLogPublisher, "_observers"),
    "twistd's log": _fits(_try_twistd_log),
}
"""Which of the private names are what this module expects, by what they are used for."""

MISFITS = [name for name, fits in FITS.items() if not fits]

if MISFITS:
    Logger().warn(
        "these parts of the installed Twisted or Autobahn are not as expected, and are done without: {misfits}",
        misfits=", ".join(MISFITS),
    )
