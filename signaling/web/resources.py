"""The HTTP side: ``/healthz``, the ``/ws`` mount, files for browsers, and clear answers to all else, with CORS."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web.http import CACHED, HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from signaling.admission.origins import Origins
from signaling.core.join_request import JoinRequest
from signaling.errors import Refused
from signaling.limits import Limits
from signaling.web.credentials import without_secrets
from signaling.web.join_parsing import query_values
from signaling.web.static_files import Page
from signaling.websocket.handshake import asks_for_websocket
from signaling.websocket.request_head import Head, HeaderValues, take_head

_METHODS = b"GET, OPTIONS"
_MOST_REQUESTS = 32
_MOST_DIGITS = 15
CHECKS = frozenset({"drain", "workers", "backplane"})
"""What ``/readyz`` looks at."""


class Upgradable(Protocol):
    """A connection that a request can become a peer on."""

    def makeConnection(self, transport: Any) -> None:
        """Be connected to ``transport``."""

    def dataReceived(self, data: bytes) -> None:
        """Take bytes off the wire."""

    def connectionLost(self, reason: Any) -> None:
        """Hear of the end."""

    def join(self, request: JoinRequest, key: bytes, values: HeaderValues) -> None:
        """Accept the handshake and join the topic, or refuse it where the server or the client's address is full."""

    def leaveWeb(self) -> None:
        """Take the bytes that an HTTP channel took until now."""

    def webDone(self) -> None:
        """End the connection after its last HTTP answer."""

    def webWaits(self) -> None:
        """Call ``answer_next`` of its HTTP channel when it is this connection's turn."""

    def refuse(self, refused: Refused) -> None:
        """Answer the request and end the connection."""

    def goAway(self) -> None:
        """End the connection."""


class UpgradableFactory(Protocol):
    """Makes connections and keeps their bounds."""

    limits: Limits
    origins: Origins

    @property
    def unready_reasons(self) -> dict[str, list[str]]:
        """Why a balancer should send newcomers elsewhere, by what is checked."""

    def doStart(self) -> None:
        """Start, as for a port that begins to listen."""

    def buildProtocol(self, addr: Any) -> Upgradable:
        """Make a connection."""

    def check(self, segment: bytes, query: bytes, values: HeaderValues) -> tuple[JoinRequest, bytes]:
        """Check a request; raises ``Refused``."""

    def handshakeRefused(self, address: Any, refused: Refused) -> None:
        """Hear of a refused handshake."""


class Endpoint(Resource):
    """A resource that answers GET, HEAD and OPTIONS on the paths it knows, and says what is wrong with the rest."""

    isLeaf = True
    readable_by_pages = True

    def __init__(self, factory: UpgradableFactory) -> None:
        super().__init__()
        self._factory = factory

    def render(self, request: Request) -> Any:
        """Answer ``request``; nothing that it can contain raises."""
        request.responseHeaders.removeHeader(b"server")
        values = request_headers(request)
        upgrading = asks_for_websocket(values)
        if upgrading:
            _end_with_answer(request)
        if self.readable_by_pages:
            for name, value in self._factory.origins.cors(values(b"origin")).items():
                request.setHeader(name, value)
        try:
            self.check_path(request.postpath or [])
            if request.method == b"OPTIONS":
                return _answer_preflight(request)
            if request.method not in (b"GET", b"HEAD"):
                raise Refused(405, "only GET, HEAD and OPTIONS are answered here", {b"Allow": b"GET, HEAD, OPTIONS"})
            return self.answer(request)
        except Refused as refused:
            if upgrading:
                self._factory.handshakeRefused(request.getClientAddress(), refused)
            if refused.status == 426:
                _end_with_answer(request)
            return _answer_refusal(request, refused)

    def check_path(self, segments: list[bytes]) -> None:
        """Check what follows this resource's own path; raises ``Refused``."""
        if segments:
            raise not_found()

    def answer(self, request: Request) -> Any:
        """Answer a GET; raises ``Refused``."""
        raise not_found()


class Refusal(Resource):
    """Answers any request with an error.

    Args:
        refused: says which.
    """

    isLeaf = True

    def __init__(self, refused: Refused) -> None:
        super().__init__()
        self._refused = refused

    def render(self, request: Request) -> Any:
        """Answer ``request``."""
        request.responseHeaders.removeHeader(b"server")
        return _answer_refusal(request, self._refused)


class NotFound(Endpoint):
    """Every unknown path."""

    def check_path(self, segments: list[bytes]) -> None:
        """Refuse whatever follows."""
        raise not_found()


class Health(Endpoint):
    """Says that the server answers."""

    def answer(self, request: Request) -> Any:
        """Answer ``ok``."""
        return _answer_text(request, "ok")


class Readiness(Endpoint):
    """Says whether a balancer should send newcomers here, and why not.

    As in Kubernetes' own servers, ``?exclude=`` leaves a check out, and may be repeated.
    """

    def answer(self, request: Request) -> Any:
        """Answer JSON: 200, or 503 with the reasons; raises ``Refused``."""
        query = request.uri.partition(b"?")[2]
        excluded = {name.decode("ascii", "replace") for name in query_values(query, "exclude")}
        if not excluded <= CHECKS:
            raise Refused(400, f"exclude: there are the checks {', '.join(sorted(CHECKS))}")
        unready_reasons = self._factory.unready_reasons
        reasons = [reason for check, found in unready_reasons.items() if check not in excluded for reason in found]
        request.setResponseCode(503 if reasons else 200)
        request.setHeader(b"Content-Type", b"application/json")
        request.setHeader(b"Cache-Control", b"no-store")
        body = {"ready": False, "reasons": reasons} if reasons else {"ready": True}
        return answer_body(request, json.dumps(body).encode())


class PageResource(Endpoint):
    """One of the files that browsers are served."""

    def __init__(self, factory: UpgradableFactory, page: Page) -> None:
        super().__init__(factory)
        self._page = page

    def answer(self, request: Request) -> Any:
        """Answer the file, or that the browser has it already."""
        for name, value in self._page.headers.items():
            request.setHeader(name, value)
        if request.setETag(b'"%b"' % self._page.etag) is CACHED:
            # The length would be that of an empty answer, and RFC 9110, section 8.6, wants the file's or none.
            request.finish()
            return NOT_DONE_YET
        return answer_body(request, self._page.body)


class TopicResource(Endpoint):
    """Opens a connection to the topic that the path names."""

    def check_path(self, segments: list[bytes]) -> None:
        """Accept exactly one segment, which is the topic."""
        if len(segments) != 1 or not segments[0]:
            raise Refused(404, "a topic is exactly one path segment: connect to /ws/{topic}")

    def render(self, request: Request) -> Any:
        """Answer ``request``, and leave nothing secret of it to the site's own log."""
        try:
            return super().render(request)
        finally:
            request.uri = without_secrets(request.uri)

    def answer(self, request: Request) -> Any:
        """Let the request become a peer of its topic."""
        values = request_headers(request)
        path, _, query = request.uri.partition(b"?")
        join, key = self._factory.check(path.rpartition(b"/")[2], query, values)
        if request.method != b"GET" or request.clientproto != b"HTTP/1.1":
            raise Refused(400, "a WebSocket connection is opened by GET over HTTP/1.1")
        connection = _take_over(request, self._factory)
        connection.join(join, key, values)
        return NOT_DONE_YET


class SignalingResource(TopicResource):
    """Mounts a signaling server in any ``twisted.web`` site: ``root.putChild(b"ws", SignalingResource(factory))``.

    Args:
        factory: a ``SignalingFactory``; its bounds hold, but what comes before a complete request, and how large that
            may be, is the site's.
    """

    def __init__(self, factory: UpgradableFactory) -> None:
        super().__init__(factory)
        # A site of its own has a port that does this.
        factory.doStart()


class BoundedRequest(Request):
    """A request of which only the path is parsed: query, cookies and forms take long, and nobody asks for them."""

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
        super().process()

    def _handleStar(self) -> None:
        # ``OPTIONS *``; the header would tell the version of the software.
        self.responseHeaders.removeHeader(b"server")
        if asks_for_websocket(request_headers(self)):
            _end_with_answer(self)
        super()._handleStar()


class BoundedChannel(HTTPChannel):
    """HTTP on a port of our own: bounded in time and size, and able to give its connection back.

    A request that was sent before the answer to the one before it (pipelining) is read in a turn of its own, and not
    before the transport takes data.
    """

    owner: Upgradable
    owner_limits: Limits
    origins: Origins
    most_requests = _MOST_REQUESTS
    _requests = 0
    _searched = 0
    _answered: Any = None

    def requestDone(self, request: Any) -> None:
        """Go on after an answer: at once if nothing was sent behind the request, else in turn."""
        if not self.persistent or not (self._waitingForTransport or self._buffer or self._dataBuffer):
            super().requestDone(request)
            return
        self._answered = request
        # The client has as long to take what was answered as it has for a request.
        self.setTimeout(self._savedTimeOut)
        if self._waitingForTransport:
            # HTTPChannel does not, while it handles a request.
            self._networkProducer.pauseProducing()
        else:
            self.owner.webWaits()

    def resumeProducing(self) -> None:
        """Hear from the transport that it takes data again."""
        super().resumeProducing()
        if self._answered is not None:
            self.owner.webWaits()

    def answer_next(self) -> None:
        """Read the next request of those that were sent together."""
        request, self._answered = self._answered, None
        if request is not None:
            super().requestDone(request)

    def begin(self, head: Head, data: bytes) -> None:
        """Answer a request.

        Args:
            head: which has come already.
            data: what has come behind it.
        """
        self._buffer = data
        self._read(head)

    def dataReceived(self, data: bytes) -> None:
        """Take bytes off the wire; twisted.web itself would copy all that is left with each line that it reads."""
        self._buffer += data
        # An answered request makes the channel call this with what came behind it.
        if not self._busyReceiving:
            self._read()

    def _read(self, head: Head | None = None) -> None:
        self._busyReceiving = True
        try:
            if head is not None:
                self._head_received(head)
            while self._buffer and self._read_on():
                pass
        except Refused as refused:
            self.refuse(refused)
        finally:
            self._busyReceiving = False

    def _read_on(self) -> bool:
        """Read a head, or what belongs to a request whose head was read; returns whether there was enough of it."""
        if not self.line_mode:
            data, self._buffer = self._buffer, b""
            self.rawDataReceived(data)
            return True
        taken = take_head(self._buffer, self._searched, self.totalHeadersSize)
        if taken is None:
            self._searched = len(self._buffer)
            return False
        self._searched = 0
        head, self._buffer = taken
        self._head_received(head)
        return True

    def _head_received(self, head: Head) -> None:
        self._check_body(head)
        self.lineReceived(b"%b %b %b" % (head.method, head.target, head.version))
        for name, values in head.headers.items():
            for value in values:
                self.lineReceived(b"%b: %b" % (name, value))
        self.lineReceived(b"")

    def _check_body(self, head: Head) -> None:
        """Refuse a body that is too long, or of unknown length; nobody reads any."""
        if head.values(b"transfer-encoding"):
            raise Refused(411, "a body needs a Content-Length, and no Transfer-Encoding")
        lengths, longest = head.values(b"content-length"), self.owner_limits.max_body_bytes
        if not lengths:
            return
        if len(lengths) > 1 or not lengths[0].isdigit():
            raise Refused(400, "Content-Length: one number of bytes is needed")
        # Python converts no more than 4,300 digits, and twisted.web does not expect that.
        if len(lengths[0]) > _MOST_DIGITS or int(lengths[0]) > longest:
            raise Refused(413, f"the body: at most {longest} bytes")

    def rawDataReceived(self, data: bytes) -> None:
        """Take a body, or what came behind a request that is not answered yet."""
        if len(self._dataBuffer) > 1:
            # HTTPChannel counts all pieces anew with each one, and TLS delivers a record at a time.
            self._dataBuffer = [b"".join(self._dataBuffer)]
        super().rawDataReceived(data)

    def resetTimeout(self) -> None:
        """Keep the deadline: twisted.web would restart it with every byte, and a header could trickle for ever."""

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Keep the connection for some more requests only.

        A client that sent request after request and read no answer would make the server grow, and have the reactor
        for itself.
        """
        self._requests += 1
        persistent: bool = super().checkPersistence(request, version)
        if persistent and self._requests == self.most_requests:
            request.responseHeaders.setRawHeaders(b"connection", [b"close"])
            return False
        return persistent

    def loseConnection(self) -> None:
        """End the connection after its last answer, within the close timeout."""
        self._let_go()
        self.owner.webDone()

    def refuse(self, refused: Refused) -> None:
        """End the connection with an answer, and with the request unread."""
        self._let_go()
        refused.headers |= self.origins.cors(())
        self.owner.leaveWeb()
        self.owner.refuse(refused)

    def _let_go(self) -> None:
        self._answered = None
        self.connectionLost(Failure(ConnectionDone()))
        self._buffer = b""
        self.setRawMode()
        self.rawDataReceived = lambda data: None  # type: ignore[method-assign]

    def timeoutConnection(self) -> None:
        """End a connection that was idle, or whose request did not come in time."""
        self.owner.goAway()

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(Refused(400, "the request is not well-formed HTTP/1.1"))


class SignalingSite(Site):
    """The site behind a port of our own, for every request that does not simply open a WebSocket connection.

    Args:
        factory: a ``SignalingFactory``.
        reactor: tells the time.
        served: files for browsers, by path.

    Attributes:
        most_requests: of one connection, before an answer ends it.
    """

    protocol = BoundedChannel  # type: ignore[assignment]
    most_requests = _MOST_REQUESTS

    def __init__(self, factory: UpgradableFactory, reactor: Any, served: Mapping[str, Page]) -> None:
        limits = factory.limits
        root = NotFound(factory)
        root.isLeaf = False
        root.getChild = lambda path, request: NotFound(factory)  # type: ignore[method-assign]
        root.putChild(b"healthz", Health(factory))
        root.putChild(b"readyz", Readiness(factory))
        root.putChild(b"ws", TopicResource(factory))
        for path, page in served.items():
            root.putChild(path.encode(), PageResource(factory, page))
        super().__init__(root, requestFactory=BoundedRequest, reactor=reactor, timeout=limits.handshake_timeout_seconds)
        self._limits = limits
        self._origins = factory.origins

    def channel_for(self, owner: Upgradable) -> BoundedChannel:
        """Make a channel that takes the bytes of ``owner``'s connection."""
        channel: BoundedChannel = self.buildProtocol(None)
        channel.owner, channel.owner_limits, channel.origins = owner, self._limits, self._origins
        channel.most_requests = self.most_requests
        channel.totalHeadersSize = self._limits.max_header_bytes
        return channel


def request_headers(request: Request) -> HeaderValues:
    """Look a request's headers up."""
    return lambda name: request.requestHeaders.getRawHeaders(name, [])


def _end_with_answer(request: Request) -> None:
    """Let the answer be the last of its connection.

    A proxy that takes the connection for a tunnel already would pass on what its client sends behind a refused upgrade.
    """
    # A request over HTTP/2 has no connection of its own.
    if isinstance(request.channel, HTTPChannel):
        request.channel.persistent = False
        request.setHeader(b"Connection", b"close")


def not_found() -> Refused:
    """Return what answers an unknown path."""
    return Refused(404, "not found: there are /healthz, /readyz and /ws/{topic}")


def _answer_refusal(request: Request, refused: Refused) -> bytes:
    request.setResponseCode(refused.status, HTTPStatus(refused.status).phrase.encode())
    for name, value in refused.headers.items():
        request.setHeader(name, value)
    return _answer_text(request, f"{refused.reason}\n")


def _answer_text(request: Request, text: str) -> bytes:
    request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
    return answer_body(request, text.encode())


def answer_body(request: Request, body: bytes) -> bytes:
    """Answer ``body``, or with its length alone where only the head was asked for."""
    if request.method == b"HEAD":
        request.setHeader(b"Content-Length", b"%d" % len(body))
        return b""
    return body


def _answer_preflight(request: Request) -> bytes:
    request.setResponseCode(204, b"No Content")
    request.setHeader(b"Access-Control-Allow-Methods", _METHODS)
    request.setHeader(b"Access-Control-Allow-Headers", b"Content-Type")
    return b""


def _take_over(request: Request, factory: UpgradableFactory) -> Upgradable:
    """Take the connection of ``request`` away from its HTTP channel, for good.

    The channel stays where its transport knows it, whatever is wrapped around that, and passes on what it gets.
    """
    channel = request.channel
    if not isinstance(channel, HTTPChannel) or channel.transport is None:
        raise Refused(400, "a WebSocket connection is opened over HTTP/1.1")
    channel.setTimeout(None)
    # HTTPChannel stays registered as producer after the takeover; ours would be refused.
    channel.transport.unregisterProducer()  # type: ignore[attr-defined]
    if isinstance(channel, BoundedChannel):
        connection = channel.owner
        connection.leaveWeb()
    else:
        connection = factory.buildProtocol(request.getClientAddress())
        channel.dataReceived = connection.dataReceived  # type: ignore[method-assign]
        channel.connectionLost = connection.connectionLost  # type: ignore[method-assign]
        connection.makeConnection(channel.transport)
    # What was read behind the request comes out of the channel's line buffer this way.
    channel.rawDataReceived = connection.dataReceived  # type: ignore[method-assign]
    return connection
