"""A cluster's engine on Redis: two connections, which are made anew together whenever one of them is lost.

Import this late, as ``connections``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from signaling.backplane.interfaces import EngineListener, Reply
from signaling.backplane.redis.connection import Connection, describe, greeting
from signaling.backplane.redis.discovery import Dialer
from signaling.backplane.redis.resp import Refusal, Script, publication, scripts
from signaling.backplane.redis.url import StoreUrl
from signaling.log.events import Events

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0
_STEADY_SECONDS = 1.0

_log = Logger()


class Late(Exception):
    """An attempt to connect took too long."""


class NotMaster(Exception):
    """The sentinels named a server that says it is none."""


class RedisEngine:
    """Runs scripts and publishes on a Redis server (``signaling.ports.Engine``).

    Args:
        url: where the server is.
        reactor: connects, and tells the time.
        events: hears of outages and errors.
        attempt_seconds: until an attempt to connect is given up; a server may take a connection, and say nothing.
        look_seconds: between two looks at whether both connections still answer; the third in a row ends them.
    """

    def __init__(
        self,
        url: StoreUrl,
        reactor: Any,
        events: Events,
        *,
        attempt_seconds: float = 5.0,
        look_seconds: float = 5.0,
    ) -> None:
        self._attempt_seconds = attempt_seconds
        self._look_seconds = look_seconds
        self._url = url
        self._reactor = reactor
        self._events = events
        self._dialer = Dialer(url, reactor)
        self._scripts = scripts()
        self._session: _Session | None = None
        self._commands: Connection | None = None
        self._retry: Any = None
        self._failures = self._calls = 0
        self._connected_at = 0.0
        self._told = ""

    def connect(self, channel: bytes, listener: EngineListener) -> None:
        """Drop the connection where there is one, connect, and try again until it works."""
        self._failures = 0
        self._begin(channel, listener)

    def disconnect(self) -> None:
        """End the connection, and connect no more."""
        self._replace(None)

    def call(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Reply) -> None:
        """Run a script; ``done`` gets its reply, or None, at once where there is no connection."""
        connection, session = self._commands, self._session
        if connection is None or session is None:
            done(None)
            return
        known = self._scripts[script]
        self._calls += 1
        tag = b"%d" % self._calls

        def replied(reply: Any) -> None:
            if type(reply) is list and reply[0] == tag:
                done(reply[1])
            else:
                done(None)
                self._lost(session, "a reply was lost on its way")

        def failed(_: object, error: Exception | None) -> None:
            # Only where nothing was sent behind it: that would have overtaken it.
            if error is not None and str(error).startswith("NOSCRIPT") and connection.is_idle:
                connection.send(known.bring_and_run(keys, arguments, tag), replied, failed)
            else:
                self._refused(script, done, error)

        connection.send(known.run(keys, arguments, tag), replied, failed)

    def publish(self, channel: bytes, data: bytes, done: Callable[[int | None], None]) -> None:
        """Publish; ``done`` gets how many listeners it was handed to, or None, at once where there is no connection."""
        if self._commands is None:
            done(None)
        else:
            self._commands.send(publication(channel, data), done, self._unpublished)

    def _unpublished(self, done: Callable[[Any], None], error: Exception | None) -> None:
        self._refused("PUBLISH", done, error)

    def _refused(self, verb: str, done: Callable[[Any], None], error: Exception | None) -> None:
        if error is None:
            done(None)
            return
        refusal, session = Refusal(verb, str(error)), self._session
        self._events.backplane_error(str(self._url), refusal.code, str(refusal))
        done(None)
        if refusal.is_outdated and session is not None:
            self._lost(session, str(refusal))

    # The connections

    def _begin(self, channel: bytes, listener: EngineListener) -> None:
        session = _Session(self._reactor, channel, listener, self._opened, self._lost)
        self._replace(session)
        # Whoever heard that there is no reply may have connected anew, or disconnected.
        if self._session is session:
            session.open(self._dialer, self._url, self._scripts.values(), self._attempt_seconds)

    def _replace(self, session: _Session | None) -> None:
        former, self._session = self._session, session
        self._commands = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if former is not None:
            former.end()

    def _opened(self, session: _Session, commands: Connection) -> None:
        if session is not self._session:
            return
        self._commands = commands
        self._connected_at = self._reactor.seconds()
        self._told = ""
        self._events.backplane_connected(str(self._url))
        session.watch(self._look_seconds)
        session.listener.connected()

    def _lost(self, session: _Session, reason: str) -> None:
        if session is not self._session:
            return
        was_connected, self._commands = self._commands is not None, None
        session.end()
        self._tell(reason)
        if session is not self._session:
            return
        # First of all: whatever the listener does, there will be another attempt, or it asks for none.
        self._retry = self._reactor.callLater(self._delay(was_connected), self._try_again, session)
        if was_connected:
            session.listener.disconnected(reason)

    def _tell(self, reason: str) -> None:
        # One line for one outage, and one more where it turns out to be another.
        if reason != self._told:
            self._told = reason
            self._events.backplane_disconnected(str(self._url), reason)

    def _delay(self, was_connected: bool) -> float:
        # A connection that is lost as soon as it is made is no success.
        if was_connected and self._reactor.seconds() - self._connected_at > _STEADY_SECONDS:
            self._failures = 0
        longest: float = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        # Nodes that lost the same server do not come back in the same moment.
        return longest * random.uniform(0.5, 1)

    def _try_again(self, session: _Session) -> None:
        self._retry = None
        self._begin(session.channel, session.listener)


class _Session:
    """Both connections, from the attempt to the end.

    Args:
        opened: is told that both work, and which takes commands.
        lost: is told why they do not, or no longer; it has to end this.
    """

    def __init__(
        self,
        reactor: Any,
        channel: bytes,
        listener: EngineListener,
        opened: Callable[[_Session, Connection], None],
        lost: Callable[[_Session, str], None],
    ) -> None:
        self.channel = channel
        self.listener = listener
        self._reactor = reactor
        self._opened = opened
        self._lost = lost
        self._commands = Connection(self._failed)
        self._subscriber = Connection(self._failed, listener.received)
        self._attempt: Deferred[None] | None = None
        self._look_call: Any = None
        self._ended = False

    def open(self, dialer: Dialer, url: StoreUrl, known: Iterable[Script], seconds: float) -> None:
        """Make both connections within so many seconds."""
        self._attempt = ensureDeferred(self._open(dialer, url, known))
        self._attempt.addTimeout(seconds, self._reactor, _late)
        self._attempt.addCallbacks(lambda _: self._opened(self, self._commands), self._not_opened)
        self._attempt.addErrback(_log_failure)

    def watch(self, seconds: float) -> None:
        """Look every so many seconds at whether both still answer."""
        self._look_call = self._reactor.callLater(seconds, self._look, seconds)

    async def _open(self, dialer: Dialer, url: StoreUrl, known: Iterable[Script]) -> None:
        address = await dialer.find()
        await dialer.dial(address, self._commands)
        database = [(b"SELECT", b"%d" % url.database)] if url.database else []
        greetings = greeting(url.credentials)
        await self._commands.ask_all(*greetings, *database, *(script.load for script in known))
        if url.service:
            [role] = await self._commands.ask_all((b"ROLE",))
            if role[0] != b"master":
                raise NotMaster(f"the sentinels name {address} as the master, and it is none")
        await dialer.dial(address, self._subscriber)
        await self._subscriber.ask_all(*greetings, (b"SUBSCRIBE", self.channel))

    def _not_opened(self, failure: Failure) -> None:
        self._failed(describe(failure.value))

    def _failed(self, reason: str) -> None:
        if not self._ended:
            self._lost(self, reason)

    def _look(self, seconds: float) -> None:
        self.watch(seconds)
        for connection in (self._commands, self._subscriber):
            if not self._ended:
                connection.look()

    def end(self) -> None:
        """End both connections, and whatever was under way; nobody hears of it but who waits for a reply."""
        if self._ended:
            return
        self._ended = True
        if self._look_call is not None:
            self._look_call.cancel()
        if self._attempt is not None:
            self._attempt.cancel()
        # What arrives in the meantime belongs to nobody any more.
        self._subscriber.end()
        self._commands.end()


def _late(_: object, seconds: float) -> Any:
    raise Late(f"no answer within {seconds:g} s")


def _log_failure(failure: Failure) -> None:
    _log.failure("a cluster's listener failed", failure)
