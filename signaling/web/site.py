"""HTTP on ports of our own: requests bounded in time and size, and connections that can become WebSockets."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.server import Request, Site

from signaling.core.join_request import JoinRequest
from signaling.errors import Refused
from signaling.limits import Limits
from signaling.websocket.handshake import asks_for_websocket
from signaling.websocket.request_head import Head, HeaderValues, take_head

_MOST_REQUESTS = 32
_MOST_DIGITS = 15
# Of requests that were sent before the answer to the one before them.
_MOST_UNREAD_BYTES = 16_384


class HttpConnection(Protocol):
    """A connection that serves HTTP requests, until one of them opens a WebSocket on it."""

    def makeConnection(self, transport: Any) -> None:
        """Start on ``transport``."""

    def dataReceived(self, data: bytes) -> None:
        """Handle bytes of the other end."""

    def connectionLost(self, reason: Any) -> None:
        """Clean up after the connection was lost."""

    def join(self, request: JoinRequest, key: bytes, values: HeaderValues) -> None:
        """Accept the handshake and join the topic, or refuse it if the server or the client's address is full."""

    def leave_http(self) -> None:
        """Handle all further bytes here instead of in the HTTP channel."""

    def half_close(self) -> None:
        """End the connection behind what was written."""

    def schedule_next_request(self) -> None:
        """Call ``answer_next`` of its HTTP channel when it is this connection's turn."""

    def refuse(self, refused: Refused) -> None:
        """Answer the request with an error and end the connection."""

    def close_for_shutdown(self) -> None:
        """End the connection."""


class BoundedRequest(Request):
    """A request of which only the path is parsed: query, cookies and forms take long, and no resource needs them."""

    def parseCookies(self) -> None:
        """Leave the cookies as they are."""

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Answer the request."""
        self._target = path
        self.requestHeaders.removeHeader(b"content-type")
        super().requestReceived(command, path.partition(b"?")[0], version)

    def process(self) -> None:
        """Answer the request, which has its query again."""
        self.uri = self._target
        if self.path != b"*":
            super().process()
            return
        # OPTIONS *; twisted.web's own answer names the version of the software.
        self.setHeader(b"Date", datetimeToString())
        if asks_for_websocket(request_headers(self)):
            end_with_answer(self)
        self.setHeader(b"Content-Length", b"0")
        self.finish()


class BoundedChannel(HTTPChannel):
    """HTTP on a port of our own: bounded in time and size, and able to give its connection back.

    A request that was sent before the answer to the one before it (pipelining) is read in a turn of its own, and not
    before the transport is writable.
    """

    transport: Any
    owner: HttpConnection
    owner_limits: Limits
    most_requests = _MOST_REQUESTS
    _requests = 0
    _unread = b""
    _searched = 0
    _body_bytes_left = 0
    _reading = False
    _answering = False
    _transport_full = False
    _answered: Any = None

    def begin(self, head: Head, data: bytes) -> None:
        """Answer a request.

        Args:
            head: of the request.
            data: what was read behind it.
        """
        self._unread = data
        self._read(head)

    def dataReceived(self, data: bytes) -> None:
        """Handle bytes of the other end; twisted.web itself would copy all that is left with each line of a head."""
        self._unread += data
        # The answer to a request may come while that is still being read.
        if not self._reading:
            self._read()

    def _read(self, head: Head | None = None) -> None:
        self._reading = True
        try:
            if head is not None:
                self._head_received(head)
            while self._unread and self._read_on():
                pass
        except Refused as refused:
            self.refuse(refused)
        finally:
            self._reading = False

    def _read_on(self) -> bool:
        """Read a head or what follows it; returns False if there is nothing more to do for now."""
        if self.line_mode:
            taken = take_head(self._unread, self._searched, self.totalHeadersSize)
            if taken is None:
                self._searched = len(self._unread)
                return False
            self._searched = 0
            head, self._unread = taken
            self._head_received(head)
        elif self._body_bytes_left:
            body, self._unread = self._unread[: self._body_bytes_left], self._unread[self._body_bytes_left :]
            self._body_bytes_left -= len(body)
            self.rawDataReceived(body)
        elif self._answering:
            if len(self._unread) > _MOST_UNREAD_BYTES:
                self.transport.pauseProducing()
            return False
        else:
            # What was read behind a request that ended the HTTP part of the connection.
            data, self._unread = self._unread, b""
            self.rawDataReceived(data)
        return True

    def _head_received(self, head: Head) -> None:
        self._body_bytes_left = self._check_body(head)
        self.lineReceived(b"%b %b %b" % (head.method, head.target, head.version))
        for name, values in head.headers.items():
            for value in values:
                self.lineReceived(b"%b: %b" % (name, value))
        self.lineReceived(b"")

    def _check_body(self, head: Head) -> int:
        """Return the length of the body; refuse one that is too long or of unknown length, as no resource reads any."""
        if head.values(b"transfer-encoding"):
            raise Refused(411, "a body needs a Content-Length, and no Transfer-Encoding")
        lengths, longest = head.values(b"content-length"), self.owner_limits.max_body_bytes
        if not lengths:
            return 0
        if len(lengths) > 1 or not lengths[0].isdigit():
            raise Refused(400, "Content-Length: one number of bytes is needed")
        # Python converts no more than 4,300 digits, and twisted.web does not expect that.
        if len(lengths[0]) > _MOST_DIGITS or int(lengths[0]) > longest:
            raise Refused(413, f"the body: at most {longest} bytes")
        return int(lengths[0])

    def allContentReceived(self) -> None:
        """Answer a request that is complete."""
        self._answering = True
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        """Continue after an answer: at once if nothing was sent behind the request, else when it is its turn."""
        if not self.persistent or not (self._transport_full or self._unread):
            self._answering = False
            super().requestDone(request)
            return
        self._answered = request
        # The client has as long to read the answer as it has to send a request.
        self.setTimeout(self.owner_limits.handshake_timeout_seconds)
        if self._transport_full:
            # HTTPChannel does not, while it handles a request.
            self.transport.pauseProducing()
        else:
            self.owner.schedule_next_request()

    def answer_next(self) -> None:
        """Read the next request of those that were sent together."""
        request, self._answered = self._answered, None
        if request is not None:
            self._answering = False
            super().requestDone(request)
            self._read()

    def pauseProducing(self) -> None:
        """Called by the transport when it is not writable."""
        self._transport_full = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Called by the transport when it is writable again."""
        self._transport_full = False
        super().resumeProducing()
        if self._answered is not None:
            self.owner.schedule_next_request()

    def resetTimeout(self) -> None:
        """Keep the timeout: twisted.web would restart it with every byte, and a header could trickle forever."""

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Keep the connection for a bounded number of requests.

        A client that sends request after request and reads no answer would make the server's memory grow, and take all
        of its time.
        """
        self._requests += 1
        persistent: bool = super().checkPersistence(request, version)
        if persistent and self._requests == self.most_requests:
            request.responseHeaders.setRawHeaders(b"connection", [b"close"])
            return False
        return persistent

    def loseConnection(self) -> None:
        """End the connection after its last answer, within the close timeout."""
        self._end_requests()
        self.owner.leave_http()
        self.owner.half_close()

    def refuse(self, refused: Refused) -> None:
        """End the connection with an error, and with the request unread."""
        self._end_requests()
        self.owner.leave_http()
        self.owner.refuse(refused)

    def _end_requests(self) -> None:
        self._answered = None
        self.connectionLost(Failure(ConnectionDone()))
        self._unread = b""
        self.hand_over(lambda data: None)

    def hand_over(self, receive: Any) -> None:
        """Read no more requests; ``receive`` is called with the bytes behind the last one."""
        self._answering, self._body_bytes_left = False, 0
        self.setRawMode()
        self.rawDataReceived = receive  # type: ignore[method-assign]

    def timeoutConnection(self) -> None:
        """End a connection that was idle, or whose request did not arrive in time."""
        self.owner.close_for_shutdown()


class SignalingSite(Site):
    """The site behind a port of our own, for every request that does not simply open a WebSocket connection.

    Args:
        root: of its resources.
        limits: the bounds.
        reactor: runs the timeouts.

    Attributes:
        most_requests: of one connection, before an answer ends it.
    """

    protocol = BoundedChannel  # type: ignore[assignment]
    most_requests = _MOST_REQUESTS

    def __init__(self, root: Any, limits: Limits, reactor: Any) -> None:
        super().__init__(root, requestFactory=BoundedRequest, reactor=reactor, timeout=limits.handshake_timeout_seconds)
        self._limits = limits

    def channel_for(self, owner: HttpConnection) -> BoundedChannel:
        """Return a channel for the requests of ``owner``'s connection."""
        channel: BoundedChannel = self.buildProtocol(None)
        channel.owner, channel.owner_limits = owner, self._limits
        channel.most_requests = self.most_requests
        channel.totalHeadersSize = self._limits.max_header_bytes
        return channel


def request_headers(request: Request) -> HeaderValues:
    """Return a function that looks up the request's headers by name."""
    return lambda name: request.requestHeaders.getRawHeaders(name, [])


def end_with_answer(request: Request) -> None:
    """Make the answer the last one of its connection.

    A proxy that takes the connection for a tunnel already would pass on what its client sends behind a refused upgrade.
    """
    # A request over HTTP/2 has no connection of its own.
    if isinstance(request.channel, HTTPChannel):
        request.channel.persistent = False
        request.setHeader(b"Connection", b"close")
