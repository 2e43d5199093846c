"""Keeps the ICE servers of a provider fresh: fetched at the start, and again at half of their life.

If that fails, the last ones are kept and the provider is asked again, more and more slowly; even after they have
expired, because they may have STUN servers as well, and a provider may be late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from signaling.core.ice import IceServers
from signaling.ice_source.answer import Answer, parse_answer
from signaling.ice_source.provider import (
    DEFAULT_TTL_SECONDS,
    MAX_TTL_SECONDS,
    MIN_TTL_SECONDS,
    Provider,
    Request,
    make_request,
)
from signaling.ice_source.request import FetchFailed, HttpFetcher

# A provider may say that credentials are valid for a second.
MIN_RENEWAL_SECONDS = 30.0
_MAX_RETRY_SECONDS = 60.0

_log = Logger()


class Fetcher(Protocol):
    """Sends requests."""

    def fetch(self, request: Request) -> Deferred[bytes]:
        """Send a request; fires with the body of the answer, or fails with ``FetchFailed``."""


class SourceLog(Protocol):
    """A log of what happens to a source."""

    def ice_servers_fetched(self, url: str, count: int, seconds: int, reason: str) -> None:
        """The provider answered, first or after a failure; ``reason`` says why some of its servers are left out."""

    def ice_servers_not_fetched(self, url: str, count: int, reason: str) -> None:
        """The provider did not answer, so many times since its last answer."""

    def ice_servers_expired(self, url: str) -> None:
        """The credentials in use have expired."""


class IceSource:
    """ICE servers of a provider, shared by all peers of one server.

    Args:
        url: of the provider's API; ``https:``, or ``http:`` of this machine. ``{token}`` in it stands for the token.
        token: returns the token, empty for none; called for each request. See ``make_request`` for what becomes of it.
        ttl_seconds: how long credentials should be valid; the provider's word counts if it gives one.
        reactor: for connections and timers; None means the global reactor.
        fetcher: sends the requests; None means over HTTP.

    Raises:
        ValueError: the URL or the time is not one; the text does not quote the URL.
    """

    def __init__(
        self,
        url: str,
        token: Callable[[], str] = lambda: "",
        ttl_seconds: int = DEFAULT_TTL_SECONDS,
        *,
        reactor: Any = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        if not MIN_TTL_SECONDS <= ttl_seconds <= MAX_TTL_SECONDS:
            raise ValueError(f"{ttl_seconds} is not from {MIN_TTL_SECONDS} to {MAX_TTL_SECONDS} seconds")
        self._provider = Provider(url)
        self._token = token
        self._ttl_seconds = ttl_seconds
        self._reactor = reactor or _global_reactor()
        self._fetcher = fetcher or HttpFetcher(self._reactor)
        self._ice_servers: IceServers
        self._log: SourceLog
        self._is_running = False
        self._request: Deferred[Any] | None = None
        self._timer: Any = None
        self._failures = 0
        self._left_out = ""
        # Or since when the first answer is awaited.
        self._fetched_at = 0.0
        # None before the first answer, and once it is logged that the servers in use have expired.
        self._expires_at: float | None = None

    @property
    def age_seconds(self) -> float:
        """How old the ICE servers in use are; before the first answer, how long that takes already; 0 if stopped."""
        return self._reactor.seconds() - self._fetched_at if self._is_running else 0.0

    def start(self, ice_servers: IceServers, log: SourceLog) -> None:
        """Fetch now, and keep ``ice_servers`` fresh; no-op if it does already."""
        if not self._is_running:
            self._ice_servers, self._log = ice_servers, log
            self._is_running = True
            self._fetched_at = self._reactor.seconds()
            self._fetch()

    def stop(self) -> None:
        """Fetch no more; the servers in use stay."""
        self._is_running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._request is not None:
            self._request.cancel()

    def _fetch(self) -> None:
        self._timer = None
        self._request = request = maybeDeferred(self._ask)
        request.addCallback(parse_answer).addCallbacks(self._fetched, self._failed)
        request.addErrback(lambda failure: _log.failure("ICE servers cannot be taken over", failure))

    def _ask(self) -> Deferred[bytes]:
        return self._fetcher.fetch(make_request(self._provider, self._token(), self._ttl_seconds))

    def _fetched(self, answer: Answer) -> None:
        self._request = None
        if not self._is_running:
            return
        now, ttl = self._reactor.seconds(), answer.ttl_seconds or self._ttl_seconds
        is_news = self._failures or self._expires_at is None or answer.left_out != self._left_out
        self._failures, self._left_out = 0, answer.left_out
        self._fetched_at, self._expires_at = now, now + ttl
        self._timer = self._reactor.callLater(max(ttl / 2, MIN_RENEWAL_SECONDS), self._fetch)
        if is_news:
            self._log.ice_servers_fetched(str(self._provider), len(answer.servers), ttl, answer.left_out)
        self._ice_servers.provide(answer.servers)

    def _failed(self, failure: Failure) -> None:
        self._request = None
        if not self._is_running:
            return
        # The texts of other errors may quote a token.
        reason = str(failure.value) if failure.check(FetchFailed, ValueError) else type(failure.value).__name__
        self._failures += 1
        retry_seconds = min(2.0 ** min(self._failures - 1, 10), _MAX_RETRY_SECONDS)
        self._timer = self._reactor.callLater(retry_seconds, self._fetch)
        if self._failures.bit_count() == 1:
            # More and more rarely: at the first, second, fourth failure and so on.
            self._log.ice_servers_not_fetched(str(self._provider), self._failures, reason)
        if self._expires_at is not None and self._reactor.seconds() >= self._expires_at:
            self._expires_at = None
            self._log.ice_servers_expired(str(self._provider))


def _global_reactor() -> Any:
    # Importing it installs it, which is the application's to decide.
    from twisted.internet import reactor  # noqa: PLC0415

    return reactor
