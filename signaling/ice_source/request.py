"""One HTTP request to a provider; its answer is bounded in bytes, head and body together, and in time.

Redirects are not followed, and proxies of the environment do not count.
"""

from __future__ import annotations

from importlib.metadata import version
from io import BytesIO
from typing import Any

from OpenSSL.SSL import Error as TlsError
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, DNSLookupError, TimeoutError  # noqa: A004 - Twisted's name
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, FileBodyProducer, ResponseNeverReceived, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from signaling.ice_source.provider import JSON, Request
from signaling.server_identity import Untrusted, strict_options

MAX_ANSWER_BYTES = 32_768
ANSWER_SECONDS = 10.0


class FetchFailed(Exception):
    """There is no answer to use; the text says why, and quotes nothing that was sent or received."""


class HttpFetcher:
    """Fetches answers, each on a connection of its own.

    Args:
        reactor: for connections and timers.
        trust: whose certificates count, as ``optionsForClientTLS`` takes it; None means the platform's.
    """

    def __init__(self, reactor: Any, trust: Any = None) -> None:
        self._reactor = reactor
        self._trust = trust

    def fetch(self, request: Request) -> Deferred[bytes]:
        """Send a request.

        Returns:
            Fires with the body; fails with ``FetchFailed``. To cancel it ends the connection.
        """
        endpoints = _Endpoints(self._reactor, self._trust)
        answer: Deferred[bytes] = ensureDeferred(self._fetch(request, endpoints))
        answer.addTimeout(ANSWER_SECONDS, self._reactor)
        return answer.addErrback(self._explain, endpoints)

    async def _fetch(self, request: Request, endpoints: _Endpoints) -> bytes:
        headers = Headers(
            {b"Accept": [JSON], b"User-Agent": [f"twisted-signaling/{version('twisted-signaling')}".encode()]}
        )
        if request.authorization is not None:
            headers.addRawHeader(b"Authorization", request.authorization)
        if request.content_type is not None:
            headers.addRawHeader(b"Content-Type", request.content_type)
        body = FileBodyProducer(BytesIO(request.body)) if request.body else None
        agent = Agent.usingEndpointFactory(self._reactor, endpoints)
        response = await agent.request(request.method, request.url, headers, body)
        if response.code not in (200, 201):
            endpoints.abort()
            hint = "; redirects are not followed" if 300 <= response.code < 400 else ""
            raise FetchFailed(f"it answered {response.code}{hint}")
        return await readBody(response)

    def _explain(self, failure: Failure, endpoints: _Endpoints) -> Any:
        if failure.check(FetchFailed):
            return failure
        if endpoints.too_long:
            raise FetchFailed(f"its answer is longer than {MAX_ANSWER_BYTES} bytes") from None
        raise FetchFailed(_reason(failure.value)) from None


def _reason(error: BaseException | None) -> str:
    if isinstance(error, ResponseNeverReceived) and error.reasons:
        # For example the end of a connection, with what ended it.
        return _reason(error.reasons[0].value)
    if isinstance(error, DNSLookupError):
        return "its name cannot be resolved"
    if isinstance(error, TlsError) and error.args and error.args[0]:
        return f"TLS: {error.args[0][-1][-1]}"
    if isinstance(error, ConnectError | Untrusted | TimeoutError):
        return str(error)
    # The texts of other errors may quote what was received, which may quote what was sent.
    return f"no answer ({type(error).__name__})"


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Where one request goes, and whether its answer was too long."""

    def __init__(self, reactor: Any, trust: Any) -> None:
        self._reactor = reactor
        self._trust = trust
        self._wrapper: Any = None

    @property
    def too_long(self) -> bool:
        return self._wrapper is not None and self._wrapper.received > MAX_ANSWER_BYTES

    def abort(self) -> None:
        """End the connection at once: what is left of an answer is not read."""
        if self._wrapper is not None:
            self._wrapper.abortConnection()

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        host = uri.host.decode()
        endpoint = HostnameEndpoint(self._reactor, host, uri.port, timeout=ANSWER_SECONDS)
        if uri.scheme == b"https":
            trust = {} if self._trust is None else {"trustRoot": self._trust}
            return _Bounded(wrapClientTLS(strict_options(host, **trust), endpoint), self)
        return _Bounded(endpoint, self)

    def connected(self, wrapper: Any) -> Any:
        self._wrapper = wrapper
        return wrapper.wrappedProtocol


@implementer(IStreamClientEndpoint)
class _Bounded:
    """Connects, and bounds what is received."""

    def __init__(self, endpoint: IStreamClientEndpoint, endpoints: _Endpoints) -> None:
        self._endpoint = endpoint
        self._endpoints = endpoints

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        factory = WrappingFactory(protocolFactory)
        factory.noisy = False
        factory.protocol = _Counting
        return self._endpoint.connect(factory).addCallback(self._endpoints.connected)


class _Counting(ProtocolWrapper):
    """Ends a connection on which too much is received: Twisted bounds the lines of a head, but not their number."""

    received = 0

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > MAX_ANSWER_BYTES:
            self.abortConnection()
        else:
            super().dataReceived(data)
