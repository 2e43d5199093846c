"""The port of the admin API: bounded connections, bearer tokens, and answers in JSON.

No header for CORS is ever sent: a page of a browser has no business here. A token defends against DNS rebinding as
well, because no browser sends it by itself; without one there is only a UNIX socket, which no browser can reach.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from importlib.resources import files
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from signaling.admin.answers import AdminAnswer, answer_to, refusal
from signaling.admin.requests import AdminRequest, read_request
from signaling.admin.tokens import AdminTokens
from signaling.core.admin_queries import (
    Answer,
    CloseTopic,
    Merged,
    NoticeSent,
    PeersRemoved,
    Query,
    RemovePeer,
    SendNotice,
)
from signaling.core.join_request import JoinRequest
from signaling.errors import Refused
from signaling.limits import Limits
from signaling.server.address_text import address_text
from signaling.server.asking import Asker, carry_out
from signaling.server.http import HttpFactory, HttpProtocol
from signaling.web.resources import answer_body
from signaling.web.site import BoundedRequest, SignalingSite, end_with_answer, request_headers
from signaling.websocket.protocol import WebSocketConnection
from signaling.websocket.request_head import HeaderValues

# Operators and back ends are few, and each connection takes one of the descriptors that are reserved for the process.
_MAX_CONNECTIONS = 32
_MAX_REQUESTS_AT_ONCE = 16
_MAX_BODY_BYTES = 65_536
_encode = msgspec.json.Encoder().encode


class _AdminRequest(BoundedRequest):
    """A request that keeps its content type."""

    content_types: tuple[bytes, ...] = ()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Answer the request."""
        self.content_types = tuple(request_headers(self)(b"content-type"))
        super().requestReceived(command, path, version)

    def process(self) -> None:
        """Answer the request, an ``OPTIONS *`` like any other."""
        if self._target == b"*":
            self.path = self._target = b"/*"
        super().process()


class AdminProtocol(HttpProtocol[Any]):
    """A connection of the admin port."""

    factory: AdminFactory

    def refuse_join(self, refused: Refused, values: HeaderValues) -> None:
        """Refuse a WebSocket connection."""
        self.refuse(refused)

    def refuse(self, refused: Refused) -> None:
        """Answer a request that is not well-formed, or too long."""
        if self.state == self.STATE_CONNECTING:
            self.factory.count("unreadable", refused.status)
        text = json.dumps({"reason": refused.reason})
        WebSocketConnection.refuse(self, Refused(refused.status, text, refusal(refused).all_headers))


class AdminFactory(HttpFactory):
    """The port of the admin API of one server.

    Args:
        server: whose log and counters it uses.
        asker: carries queries out.
        tokens: which tokens are accepted; None means that every request is, as on a UNIX socket.

    Attributes:
        can_block: whether peers have owners: the server checks their tokens.
        requests_at_once: how many requests have no answer yet.
    """

    protocol = AdminProtocol
    noisy = False
    has_services = False

    def __init__(self, server: HttpFactory, asker: Asker, tokens: AdminTokens | None) -> None:
        # None of them joins.
        limits = Limits(max_connections=1, spare_connections=_MAX_CONNECTIONS - 1, max_body_bytes=_MAX_BODY_BYTES)
        super().__init__(limits, reactor=server.reactor)
        self.events = server.events
        self.asker = asker
        self.tokens = tokens
        self.can_block = server.access is not None
        self._server_counters = server.counters
        self.requests_at_once = 0
        self.site = SignalingSite(AdminResource(self), limits, server.reactor)
        self.site.requestFactory = _AdminRequest

    def check(
        self, segment: bytes, query: bytes, values: HeaderValues, key: bytes | None = None
    ) -> tuple[JoinRequest, bytes]:
        """Refuse every WebSocket connection: always raises ``Refused``."""
        raise Refused(404, "not found: this is the admin port; peers connect to the other one")

    def count(self, operation: str, status: int) -> None:
        """Count a request of this port."""
        self._server_counters.admin_requests[operation, status] += 1


class AdminResource(Resource):
    """Every path of the admin port."""

    isLeaf = True

    def __init__(self, factory: AdminFactory) -> None:
        super().__init__()
        self._factory = factory
        self._document = msgspec.Raw((files("signaling.admin") / "openapi.json").read_bytes())

    def render(self, request: Request) -> Any:
        """Answer ``request``."""
        request.responseHeaders.removeHeader(b"server")
        operation = "unauthorized"
        try:
            self._check_token(request)
            operation = "unreadable"
            asked = self._read(request)
            operation = asked.operation
            self._check(asked)
        except Refused as refused:
            return self._write(request, operation, refusal(refused))
        if asked.query is None:
            return self._write(request, operation, AdminAnswer(200, self._document))
        self._carry_out(request, operation, asked.query)
        return NOT_DONE_YET

    def _check_token(self, request: Request) -> None:
        tokens = self._factory.tokens
        if tokens is None or tokens.accept(request_headers(request)(b"authorization")):
            return
        self._factory.events.admin_refused(address_text(request.getClientAddress()))
        # Whoever guesses needs a connection for each guess.
        end_with_answer(request)
        raise Refused(401, "a token is needed: Authorization: Bearer TOKEN, with one of --admin-token-file")

    def _read(self, request: Request) -> AdminRequest:
        values = request_headers(request)

        def header(name: bytes) -> Any:
            return request.content_types if name == b"content-type" else values(name)  # type: ignore[attr-defined]

        assert request.content is not None
        return read_request(request.method, request.uri, header, request.content.read)

    def _check(self, asked: AdminRequest) -> None:
        if isinstance(asked.query, RemovePeer) and asked.query.block_seconds and not self._factory.can_block:
            raise Refused(400, "block: the server checks no tokens (--auth), so there is nobody to block")
        if asked.query is not None and self._factory.requests_at_once >= _MAX_REQUESTS_AT_ONCE:
            raise Refused(503, f"at most {_MAX_REQUESTS_AT_ONCE} requests at once are carried out")

    def _carry_out(self, request: Request, operation: str, query: Query) -> None:
        factory = self._factory
        lost: list[Failure] = []
        request.notifyFinish().addErrback(lost.append)
        factory.requests_at_once += 1

        def done(outcome: Merged | Failure) -> None:
            factory.requests_at_once -= 1
            if isinstance(outcome, Failure):
                factory.events.log.failure("an error in an admin request", outcome)
                answer = AdminAnswer(500, {"reason": "the request failed; the server's log says more"})
            else:
                answer = answer_to(query, outcome)
                if answer.status == 200:
                    self._log(address_text(request.getClientAddress()), query, outcome.answer)
            body = self._write(request, operation, answer)
            if not lost:
                if body:
                    request.setHeader(b"Content-Length", b"%d" % len(body))
                    request.write(body)
                request.finish()

        asking: Deferred[Any] = carry_out(factory.asker, query)
        asking.addBoth(done)

    def _write(self, request: Request, operation: str, answer: AdminAnswer) -> bytes:
        """Count an answer, and set its status and headers; returns its body."""
        self._factory.count(operation, answer.status)
        request.setResponseCode(answer.status, HTTPStatus(answer.status).phrase.encode())
        for name, value in answer.all_headers.items():
            request.setHeader(name, value)
        return answer_body(request, _encode(answer.content) + b"\n")

    def _log(self, address: str, query: Query, answer: Answer) -> None:
        events = self._factory.events
        match query, answer:
            case RemovePeer(), PeersRemoved():
                events.peer_removed(address, query.topic, query.peer, query.block_seconds)
            case CloseTopic(), PeersRemoved():
                events.topic_closed(address, query.topic, answer.peers)
            case SendNotice(), NoticeSent():
                events.notice_sent(address, query.topic, query.to, answer.received)
