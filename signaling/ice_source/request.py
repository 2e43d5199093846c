"""One HTTP request to a provider; its answer is bounded in bytes, head and body together, and in time.

Redirects are not followed, and proxies of the environment do not count. The platform's certificates are trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from io import BytesIO
from typing import Any, NoReturn

from OpenSSL.SSL import Error as TlsError
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, FileBodyProducer, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from signaling.bounded_endpoint import BoundedEndpoint
from signaling.ice_source.provider import JSON, Request
from signaling.server_identity import Untrusted, strict_options

MAX_ANSWER_BYTES = 32_768
ANSWER_SECONDS = 10.0
_GOOD = (200, 201)


class FetchFailed(Exception):
    """There is no answer to use; the text says why, and quotes nothing that was sent or received."""


class HttpFetcher:
    """Fetches answers, each on a connection of its own.

    Args:
        reactor: for connections and timers.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def fetch(self, request: Request) -> Deferred[bytes]:
        """Send a request.

        Returns:
            Fires with the body; fails with ``FetchFailed``. To cancel it ends the connection.
        """
        exchange = _Exchange(self._reactor)
        answer: Deferred[bytes] = ensureDeferred(self._fetch(request, exchange))
        answer.addTimeout(ANSWER_SECONDS, self._reactor, _timed_out)
        return answer.addCallbacks(exchange.check, exchange.explain)

    async def _fetch(self, request: Request, exchange: _Exchange) -> bytes:
        headers = Headers(
            {b"Accept": [JSON], b"User-Agent": [f"twisted-signaling/{version('twisted-signaling')}".encode()]}
        )
        if request.authorization is not None:
            headers.addRawHeader(b"Authorization", request.authorization)
        if request.content_type is not None:
            headers.addRawHeader(b"Content-Type", request.content_type)
        body = FileBodyProducer(BytesIO(request.body)) if request.body else None
        agent = Agent.usingEndpointFactory(self._reactor, exchange)
        response = await agent.request(request.method, request.url, headers, body)
        exchange.status = response.code
        answer = _Body(exchange.abort)
        response.deliverBody(answer)
        return await answer.received


def _timed_out(_: Any, seconds: float) -> NoReturn:
    raise FetchFailed(f"it does not answer within {seconds:g} s")


def _reason(error: BaseException | None) -> str:
    # Twisted's own wrappers, of a request or an answer that was cut, have what ended the connection.
    reasons: list[Failure] | None = getattr(error, "reasons", None)
    if reasons:
        return _reason(reasons[0].value)
    if isinstance(error, FetchFailed):
        return str(error)
    if isinstance(error, DNSLookupError):
        return "its name cannot be resolved"
    if isinstance(error, TlsError) and error.args and error.args[0]:
        return f"TLS: {error.args[0][-1][-1]}"
    if isinstance(error, ConnectError | Untrusted):
        return str(error)
    # The texts of other errors may quote what was received, which may quote what was sent.
    return f"no answer ({type(error).__name__})"


@implementer(IAgentEndpointFactory)
class _Exchange:
    """One request and its answer: where it goes, and what is wrong with the answer.

    Attributes:
        status: of the answer; 0 before there is one.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._endpoint: BoundedEndpoint | None = None
        self.status = 0

    def abort(self) -> None:
        """End the connection at once."""
        if self._endpoint is not None:
            self._endpoint.abort()

    def check(self, body: bytes) -> bytes:
        """Return the body of an answer; raises ``FetchFailed`` if its status is not the right one."""
        if self.status not in _GOOD:
            hint = "; redirects are not followed" if 300 <= self.status < 400 else ""
            raise FetchFailed(f"it answered {self.status}{hint}")
        return body

    def explain(self, failure: Failure) -> NoReturn:
        """Raise ``FetchFailed`` with the reason of a failure."""
        if self.status:
            self.check(b"")
        if self._endpoint is not None and self._endpoint.exceeded:
            raise FetchFailed(f"its answer is longer than {MAX_ANSWER_BYTES} bytes") from None
        raise FetchFailed(_reason(failure.value)) from None

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        host = uri.host.decode()
        endpoint: IStreamClientEndpoint = HostnameEndpoint(self._reactor, host, uri.port, timeout=ANSWER_SECONDS)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(strict_options(host), endpoint)
        self._endpoint = BoundedEndpoint(endpoint, MAX_ANSWER_BYTES)
        return self._endpoint


class _Body(Protocol):
    """Collects a body. Twisted's ``readBody`` logs an error if it is cancelled, as the connection ends only later.

    Attributes:
        received: fires with the body.
    """

    def __init__(self, abort: Callable[[], None]) -> None:
        self.received: Deferred[bytes] = Deferred(lambda _: abort())
        self._parts: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.received.called:
            return
        # Without a length the end of the connection is that of the body; if it was cut, it is no JSON.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.received.callback(b"".join(self._parts))
        else:
            self.received.errback(reason)
