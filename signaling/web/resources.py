"""The HTTP resources: ``/healthz``, ``/readyz``, ``/ws``, files for browsers, and an error for all else, with CORS."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import CACHED, HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from signaling.admission.origins import Origins
from signaling.core.join_request import JoinRequest
from signaling.errors import Refused
from signaling.web.credentials import without_secrets
from signaling.web.join_parsing import has_key, query_values
from signaling.web.site import BoundedChannel, HttpConnection, end_with_answer, request_headers
from signaling.web.static_files import Page
from signaling.websocket.handshake import asks_for_websocket
from signaling.websocket.request_head import HeaderValues

_log = Logger()
_METHODS = b"GET, OPTIONS"
_RETRY_AFTER = b"Retry-After"
_INDEX = ""
# What a person who has just started a server looks for first.
_SERVED_BY = {_INDEX: "--demo", "signaling.js": "--serve-client"}
_ASK_PRIVATE = b"access-control-request-private-network"
CHECKS = frozenset({"drain", "workers", "backplane"})
"""The checks of ``/readyz``."""


class ConnectionFactory(Protocol):
    """Builds connections and checks requests; ``SignalingFactory`` is one."""

    origins: Origins
    path_prefix: str

    @property
    def unready_reasons(self) -> dict[str, list[str]]:
        """Why a load balancer should send no new connections here, by check."""

    def doStart(self) -> None:
        """Start the server, as a port does that begins to listen."""

    def buildProtocol(self, addr: Any) -> HttpConnection:
        """Return a new connection."""

    def check(self, segment: bytes, query: bytes, values: HeaderValues) -> tuple[JoinRequest, bytes]:
        """Check a request to join; raises ``Refused``."""

    def check_only(self, segment: bytes, query: bytes, values: HeaderValues, address: Any) -> Deferred[None]:
        """Check whether a client could join; fails with ``Refused``."""

    def handshakeRefused(self, address: Any, values: HeaderValues, refused: Refused) -> None:
        """Called after a handshake was refused."""

    def check_refused(self, address: Any, values: HeaderValues, refused: Refused) -> None:
        """Called before a check is answered that the client could not join."""


class Endpoint(Resource):
    """A resource that answers GET, HEAD and OPTIONS on the paths that it has, and other requests with an error."""

    isLeaf = True
    readable_by_pages = True
    # That a page may send, after a preflight.
    allowed_header = b"Content-Type"

    def __init__(self, factory: ConnectionFactory) -> None:
        super().__init__()
        self._factory = factory

    def render(self, request: Request) -> Any:
        """Answer ``request``; never raises ``Refused``."""
        request.responseHeaders.removeHeader(b"server")
        values = request_headers(request)
        upgrading = asks_for_websocket(values)
        if upgrading:
            end_with_answer(request)
        if self.readable_by_pages:
            for name, value in self.cors(values(b"origin")).items():
                request.setHeader(name, value)
        try:
            self.check_path(request)
            if request.method == b"OPTIONS":
                return self.answer_preflight(request)
            if request.method not in (b"GET", b"HEAD"):
                raise Refused(405, "only GET, HEAD and OPTIONS are answered here", {b"Allow": b"GET, HEAD, OPTIONS"})
            return self.answer(request)
        except Refused as refused:
            if upgrading:
                self._factory.handshakeRefused(request.getClientAddress(), values, refused)
            if refused.status == 426:
                end_with_answer(request)
            return self.answer_refusal(request, refused)

    def cors(self, origins: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the CORS headers; ``origins`` are the request's Origin headers."""
        return self._factory.origins.cors(origins)

    def answer_preflight(self, request: Request) -> bytes:
        """Answer an OPTIONS."""
        request.setResponseCode(204, b"No Content")
        request.setHeader(b"Access-Control-Allow-Methods", _METHODS)
        request.setHeader(b"Access-Control-Allow-Headers", self.allowed_header)
        values = request_headers(request)
        if values(_ASK_PRIVATE) == [b"true"] and self._factory.origins.named(values(b"origin")):
            # To allow any page would undo what the preflight is for: no foreign page reaches a private server unasked.
            request.setHeader(b"Access-Control-Allow-Private-Network", b"true")
        return b""

    def answer_refusal(self, request: Request, refused: Refused) -> Any:
        """Answer a request with an error."""
        return _answer_refusal(request, refused)

    def check_path(self, request: Request) -> None:
        """Check what follows this resource's own path; raises ``Refused``."""
        if request.postpath:
            raise self.not_found()

    def answer(self, request: Request) -> Any:
        """Answer a GET; raises ``Refused``."""
        raise self.not_found()

    def not_found(self) -> Refused:
        """Return the error for an unknown path."""
        return Refused(404, f"not found: there are /healthz, /readyz and {self._factory.path_prefix}/ws/{{topic}}")


class Refusal(Resource):
    """Answers any request with an error.

    Args:
        refused: the error.
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
    """Answers every unknown path with 404."""

    def check_path(self, request: Request) -> None:
        """Refuse every path."""
        raise self.not_found()


class Unserved(NotFound):
    """Answers for a file that the server could serve, but does not, with 404.

    Args:
        option: serves it.
    """

    def __init__(self, factory: ConnectionFactory, option: str) -> None:
        super().__init__(factory)
        self._option = option

    def not_found(self) -> Refused:
        """Return the error, which names the option."""
        return Refused(404, f"{super().not_found().reason}; what you look for is served with {self._option}")


class Folder(NotFound):
    """A path with resources below it, which itself is none.

    Args:
        index: whether there is a page at the path with a slash behind it, whose links are relative.
    """

    isLeaf = False

    def __init__(self, factory: ConnectionFactory, *, index: bool = False) -> None:
        super().__init__(factory)
        self._index = index

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Return the resource of an unknown path below this one."""
        return NotFound(self._factory)

    def check_path(self, request: Request) -> None:
        """Refuse the path, unless it only lacks its slash."""
        if not self._index:
            raise self.not_found()

    def answer(self, request: Request) -> Any:
        """Redirect to the page."""
        path, mark, query = request.uri.partition(b"?")
        # Relative: a proxy in front may have added to the path.
        location = path.rpartition(b"/")[2] + b"/" + mark + query
        raise Refused(307, "the page is at the same path with a slash behind it", {b"Location": location})


class Health(Endpoint):
    """``/healthz``: the server answers."""

    def answer(self, request: Request) -> Any:
        """Answer ``ok``."""
        return _answer_text(request, "ok")


class Readiness(Endpoint):
    """``/readyz``: whether a load balancer should send new connections here, and why not.

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
    """One of the files for browsers."""

    def __init__(self, factory: ConnectionFactory, page: Page) -> None:
        super().__init__(factory)
        self._page = page

    def answer(self, request: Request) -> Any:
        """Answer with the file, or with 304."""
        chosen = self._page.choose(request_headers(request)(b"accept-encoding"))
        for name, value in chosen.headers.items():
            request.setHeader(name, value)
        varies = [*request.responseHeaders.getRawHeaders(b"vary", []), b"Accept-Encoding"]
        request.setHeader(b"Vary", b", ".join(varies))
        if request.setETag(b'"%b"' % chosen.etag) is CACHED:
            # The length would be that of an empty answer; RFC 9110, section 8.6, requires the file's or none.
            request.finish()
            return NOT_DONE_YET
        return answer_body(request, chosen.body)


class JoinCheck(Endpoint):
    """Answers ``GET /ws/{topic}?check``: whether a client could join the topic that the path names."""

    # A page has no other way to present a token here.
    allowed_header = b"Authorization"

    def check_path(self, request: Request) -> None:
        """Accept exactly one segment, which is the topic."""
        _check_topic(request)

    def cors(self, origins: Sequence[bytes]) -> dict[bytes, bytes]:
        """Let every page read the answer: one of a forbidden origin reads that it is, and nothing else."""
        return self._factory.origins.cors_of_all(origins)

    def answer_refusal(self, request: Request, refused: Refused) -> Any:
        """Answer a request with an error, in JSON."""
        if request.method == b"OPTIONS":
            # A browser sends no GET after a preflight that fails, and the page would not learn why.
            return self.answer_preflight(request)
        return answer_body(request, _answer_check(request, refused))

    def answer(self, request: Request) -> Any:
        """Answer once it is certain, unless the client's connection is lost before."""
        segment, query = _topic_and_query(request)
        values, address = request_headers(request), request.getClientAddress()
        check = self._factory.check_only(segment, query, values, address)
        is_lost = False

        def answer(outcome: Failure | None) -> None:
            if is_lost:
                return
            # Before the site logs the request.
            request.uri = without_secrets(request.uri)
            refused = None if outcome is None else _refusal_of(outcome)
            if refused is not None:
                self._factory.check_refused(address, values, refused)
            body = _answer_check(request, refused)
            request.setHeader(b"Content-Length", b"%d" % len(body))
            request.write(body if request.method == b"GET" else b"")
            request.finish()

        def lose(_: Failure) -> None:
            nonlocal is_lost
            is_lost = True
            check.cancel()

        request.notifyFinish().addErrback(lose)
        check.addBoth(answer)
        return NOT_DONE_YET


class TopicResource(Endpoint):
    """Opens a connection to the topic that the path names, or answers whether it would: ``?check``."""

    def __init__(self, factory: ConnectionFactory) -> None:
        super().__init__(factory)
        self._join_check = JoinCheck(factory)

    def check_path(self, request: Request) -> None:
        """Accept exactly one segment, which is the topic."""
        _check_topic(request)

    def render(self, request: Request) -> Any:
        """Answer ``request``, and hide its secrets from the site's access log."""
        try:
            return self._join_check.render(request) if _is_check(request) else super().render(request)
        finally:
            request.uri = without_secrets(request.uri)

    def answer(self, request: Request) -> Any:
        """Join the topic on the connection of ``request``."""
        values = request_headers(request)
        join, key = self._factory.check(*_topic_and_query(request), values)
        if request.method != b"GET" or request.clientproto != b"HTTP/1.1":
            raise Refused(400, "a WebSocket connection is opened by GET over HTTP/1.1")
        connection = _take_over(request, self._factory)
        connection.join(join, key, values)
        return NOT_DONE_YET


class SignalingResource(TopicResource):
    """Mounts a signaling server in any ``twisted.web`` site: ``root.putChild(b"ws", SignalingResource(factory))``.

    Args:
        factory: a ``SignalingFactory``; its limits hold, but those of a request up to the end of its head are the
            site's.
    """

    def __init__(self, factory: ConnectionFactory) -> None:
        super().__init__(factory)
        # Our own site has a port that does this.
        factory.doStart()


def _answer_refusal(request: Request, refused: Refused) -> bytes:
    _set_error(request, refused)
    return _answer_text(request, f"{refused.reason}\n")


def _set_error(request: Request, refused: Refused) -> None:
    request.setResponseCode(refused.status, HTTPStatus(refused.status).phrase.encode())
    for name, value in refused.headers.items():
        request.setHeader(name, value)


def _answer_text(request: Request, text: str) -> bytes:
    request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
    return answer_body(request, text.encode())


def answer_body(request: Request, body: bytes) -> bytes:
    """Return ``body``, or for HEAD set only its length."""
    if request.method == b"HEAD":
        request.setHeader(b"Content-Length", b"%d" % len(body))
        return b""
    return body


def _check_topic(request: Request) -> None:
    segments = request.postpath or []
    if len(segments) != 1 or not segments[0]:
        # A site may mount signaling anywhere.
        mount = "".join(f"/{quote(name, safe='')}" for name in request.prepath or [])
        raise Refused(404, f"a topic is exactly one path segment: connect to {mount}/{{topic}}")


def _topic_and_query(request: Request) -> tuple[bytes, bytes]:
    """Return the topic and the query of a request, still encoded."""
    path, _, query = request.uri.partition(b"?")
    return path.rpartition(b"/")[2], query


def _is_check(request: Request) -> bool:
    return not asks_for_websocket(request_headers(request)) and has_key(request.uri.partition(b"?")[2], "check")


def _refusal_of(failure: Failure) -> Refused:
    if isinstance(failure.value, Refused):
        return failure.value
    _log.failure("an error in a check", failure)
    return Refused(500, "the check failed; the server's log says more")


def _answer_check(request: Request, refused: Refused | None) -> bytes:
    """Answer why a client could not join; None if it could."""
    answer: dict[str, Any] = {"status": 200, "reason": "ok"}
    if refused is not None:
        answer = {"status": refused.status, "reason": refused.reason}
        _set_error(request, refused)
        if _RETRY_AFTER in refused.headers:
            answer["retryAfter"] = int(refused.headers[_RETRY_AFTER])
    request.setHeader(b"Content-Type", b"application/json")
    request.setHeader(b"Cache-Control", b"no-store")
    return json.dumps(answer).encode()


def _take_over(request: Request, factory: ConnectionFactory) -> HttpConnection:
    """Take the connection of ``request`` away from its HTTP channel for good.

    The channel stays where its transport knows it, whatever is wrapped around that, and passes on what it receives.
    """
    channel = request.channel
    if not isinstance(channel, HTTPChannel) or channel.transport is None:
        raise Refused(400, "a WebSocket connection is opened over HTTP/1.1")
    channel.setTimeout(None)
    # It is never answered; the channel and the request would hold each other.
    channel.requests.remove(request)
    # HTTPChannel stays registered as producer after the takeover; ours would be refused.
    channel.transport.unregisterProducer()  # type: ignore[attr-defined]
    if isinstance(channel, BoundedChannel):
        connection = channel.owner
        connection.leave_http()
        channel.hand_over(connection.dataReceived)
        return connection
    connection = factory.buildProtocol(request.getClientAddress())
    channel.dataReceived = connection.dataReceived  # type: ignore[method-assign]
    channel.connectionLost = connection.connectionLost  # type: ignore[method-assign]
    # What was read behind the request comes out of the channel's line buffer this way.
    channel.rawDataReceived = connection.dataReceived  # type: ignore[method-assign]
    connection.makeConnection(channel.transport)
    return connection


def site_folders(factory: ConnectionFactory, pages: Mapping[str, Page]) -> tuple[Folder, Folder]:
    """Return the root of the server's own site, and the folder of its path prefix, which may be the same.

    ``/healthz`` and ``/readyz`` are in both: a balancer that asks for them asks one server, and does not need to know
    below which path clients find it.

    Args:
        pages: files for browsers, by path.
    """
    root = folder = Folder(factory)
    names = factory.path_prefix.encode().split(b"/")[1:]
    for name in names:
        inner = Folder(factory, index=name is names[-1] and _INDEX in pages)
        folder.putChild(name, inner)
        folder = inner
    for parent in (root, folder):
        parent.putChild(b"healthz", Health(factory))
        parent.putChild(b"readyz", Readiness(factory))
    folder.putChild(b"ws", TopicResource(factory))
    for path, option in _SERVED_BY.items():
        folder.putChild(path.encode(), Unserved(factory, option))
    for path, page in pages.items():
        folder.putChild(path.encode(), PageResource(factory, page))
    return root, folder
