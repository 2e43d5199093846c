"""One HTTP request to a provider; its answer is bounded in bytes, head and body together, and in time.

Redirects are not followed, and proxies of the environment do not count.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

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

from signaling.server_identity import Untrusted, strict_options

MAX_ANSWER_BYTES = 32_768
ANSWER_SECONDS = 10.0
TOKEN_IN_URL = "{token}"
_EXAMPLE = "for example https://example.com/credentials"
_FORM, _JSON = b"application/x-www-form-urlencoded", b"application/json"


class FetchFailed(Exception):
    """There is no answer to use; the text says why, and quotes nothing that was sent or received."""


@dataclass(frozen=True, slots=True)
class Provider:
    """The URL of a provider's API.

    Its text has neither path nor query, which may be secrets, and may be logged.

    Args:
        url: ``https:``, or ``http:`` of this machine. ``{token}`` in it stands for the token.

    Raises:
        ValueError: it is not one; the text says what would be right, and quotes nothing of it.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise ValueError(f"it is not a URL ({_EXAMPLE})") from None
        if parts.scheme not in ("https", "http") or not parts.hostname or port == 0:
            raise ValueError(f"it is not a URL that begins with https:// and names a host ({_EXAMPLE})")
        if not (self.url.isascii() and self.url.isprintable()) or " " in self.url:
            raise ValueError("it may have ASCII characters alone, without spaces: percent-encode the others")
        if "@" in parts.netloc:
            raise ValueError(
                "it may have no user name and password: put them in the file of the token, as NAME:PASSWORD"
            )
        if parts.fragment:
            raise ValueError("it may have no fragment (#)")
        if parts.scheme == "http" and not _is_this_machine(parts.hostname):
            raise ValueError("it has to begin with https://, as others could read the credentials on their way")

    def __str__(self) -> str:
        """Return scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Request:
    """A request for ICE servers.

    Args:
        content_type: of the body; None if there is none.
        authorization: the header of that name; None if there is none.
    """

    method: bytes
    url: bytes = field(repr=False)
    authorization: bytes | None = field(default=None, repr=False)
    content_type: bytes | None = None
    body: bytes = b""


def make_request(provider: Provider, token: str, ttl_seconds: int) -> Request:
    """Return the request for a provider, by where its token belongs.

    A token in the URL, or none: GET. Otherwise POST: with ``Basic`` and a form if the token is a name and a password
    (``NAME:PASSWORD``), as Twilio takes it; else with ``Bearer`` and JSON, as Cloudflare does.

    Args:
        token: in ASCII; empty for none.
        ttl_seconds: how long the credentials should be valid.
    """
    if not token or TOKEN_IN_URL in provider.url:
        return Request(b"GET", provider.url.replace(TOKEN_IN_URL, quote(token, safe="")).encode())
    url, secret = provider.url.encode(), token.encode()
    if ":" in token:
        return Request(b"POST", url, b"Basic " + base64.b64encode(secret), _FORM, b"Ttl=%d" % ttl_seconds)
    return Request(b"POST", url, b"Bearer " + secret, _JSON, b'{"ttl":%d}' % ttl_seconds)


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
            {b"Accept": [_JSON], b"User-Agent": [f"twisted-signaling/{version('twisted-signaling')}".encode()]}
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
