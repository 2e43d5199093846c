"""Sends one request at a time to a receiver, and reads nothing of its answer but the status and ``Retry-After``.

A receiver may be hostile: what it sends is bounded in bytes, head and body together, and in time. Redirects are not
followed, and proxies of the environment do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol as ClientProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from signaling.bounded_endpoint import BoundedEndpoint
from signaling.webhooks.interfaces import Answer
from signaling.webhooks.target import WebhookUrl

MAX_ANSWER_BYTES = 65_536
ANSWER_SECONDS = 15.0
MAX_RETRY_AFTER_SECONDS = 300.0
_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 60
_AGENT = f"twisted-signaling/{version('twisted-signaling')}".encode()


class HttpSender:
    """Sends requests over HTTP/1.1, on a connection that is kept.

    Args:
        reactor: for connections and timers.
        target: where to.
        endpoint: connects there; None means one that trusts the platform's certificates, if it is ``https:``.
    """

    def __init__(self, reactor: Any, target: WebhookUrl, endpoint: IStreamClientEndpoint | None = None) -> None:
        self._reactor = reactor
        self._target = target
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = 1
        self._pool.cachedConnectionTimeout = _IDLE_SECONDS
        self._endpoint = BoundedEndpoint(endpoint or receiver_endpoint(reactor, target), MAX_ANSWER_BYTES)
        self._agent = Agent.usingEndpointFactory(reactor, _Endpoints(self._endpoint), self._pool)

    def send(self, headers: Mapping[bytes, bytes], body: bytes) -> Deferred[Answer]:
        """Send one request; fails if there is no answer."""
        return ensureDeferred(self._send(headers, body))

    async def _send(self, headers: Mapping[bytes, bytes], body: bytes) -> Answer:
        all_headers = Headers({name: [value] for name, value in headers.items()})
        all_headers.addRawHeader(b"Content-Type", b"application/json")
        all_headers.addRawHeader(b"User-Agent", _AGENT)
        if self._target.authorization is not None:
            all_headers.addRawHeader(b"Authorization", self._target.authorization)
        request = self._agent.request(b"POST", self._target.url, all_headers, _Body(body))
        request.addTimeout(ANSWER_SECONDS, self._reactor)
        response: IResponse = await request
        # Whatever follows the status does not change it, but the connection can be used again after it.
        end: Deferred[None] = Deferred(lambda _: self._endpoint.abort())
        response.deliverBody(_Discarded(end))
        end.addTimeout(ANSWER_SECONDS, self._reactor)
        with suppress(Exception):
            await end
        return Answer(response.code, _retry_after(response.headers))

    def close(self) -> None:
        """Close the connection that is kept."""
        self._pool.closeCachedConnections()


def _retry_after(headers: Headers) -> float:
    text = (headers.getRawHeaders(b"retry-after") or [b""])[0][:10]
    # A date is not read: clocks differ.
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isdigit() else 0.0


def receiver_endpoint(reactor: Any, target: WebhookUrl, **options: Any) -> IStreamClientEndpoint:
    """Return an endpoint that connects to a receiver.

    Args:
        options: of ``optionsForClientTLS``.
    """
    endpoint = HostnameEndpoint(reactor, target.host, target.port, timeout=_CONNECT_SECONDS)
    if not target.is_tls:
        return endpoint
    # Of the extra tls.
    from signaling.server_identity import strict_options  # noqa: PLC0415

    return wrapClientTLS(strict_options(target.host, **options), endpoint)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """There is one receiver."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return self._endpoint


@implementer(IBodyProducer)
class _Body:
    """A body that is written in one piece."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass


class _Discarded(ClientProtocol):
    """Discards the body of an answer."""

    def __init__(self, end: Deferred[None]) -> None:
        self._end = end

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._end.called:
            self._end.callback(None)
