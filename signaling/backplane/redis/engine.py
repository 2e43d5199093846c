"""A cluster's engine on Redis: one connection for commands and one for the node's channel.

If one of them is lost, both are made again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger

from signaling.backplane.interfaces import EngineListener, Reply
from signaling.backplane.redis.connection import Connection, ServerError, describe, greeting
from signaling.backplane.redis.discovery import Dialer
from signaling.backplane.redis.scripts import NAMES, Script
from signaling.backplane.redis.url import StoreUrl
from signaling.log.events import Events

_FIRST_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 5.0
# A connection that is lost sooner does not count as a success.
_STEADY_SECONDS = 1.0

_log = Logger()


class TimedOut(Exception):
    """An attempt to connect took too long."""


class NotMaster(Exception):
    """The server that the sentinels named says that it is no master."""


class RedisEngine:
    """Runs scripts and publishes on a Redis server (``signaling.backplane.interfaces.Engine``).

    Args:
        url: where the server is.
        reactor: for connections and timers.
        events: where outages and errors are logged.
        connect_seconds: timeout of an attempt to connect; a server may accept a connection and say nothing.
        check_seconds: between two checks that both connections still answer; the third in a row ends them.
    """

    def __init__(
        self,
        url: StoreUrl,
        reactor: Any,
        events: Events,
        *,
        connect_seconds: float = 5.0,
        check_seconds: float = 5.0,
    ) -> None:
        self._connect_seconds = connect_seconds
        self._check_seconds = check_seconds
        self._url = url
        self._reactor = reactor
        self._events = events
        self._dialer = Dialer(url, reactor)
        self._scripts = {name: Script(name) for name in NAMES}
        self._pair: _ConnectionPair | None = None
        # The connection that takes commands; None unless both connections work.
        self._commands: Connection | None = None
        self._retry: Any = None
        self._failures = self._calls = 0
        self._connected_at = 0.0
        self._logged_reason = ""

    def connect(self, channel: bytes, listener: EngineListener) -> None:
        """Drop the connections if there are any, connect, and retry until it works."""
        self._failures = 0
        self._connect(channel, listener)

    def disconnect(self) -> None:
        """End the connections, and connect no more."""
        self._replace(None)

    def call(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes], done: Reply) -> None:
        """Run a script; ``done`` gets its reply, or None, at once if there is no connection."""
        connection, pair = self._commands, self._pair
        if connection is None or pair is None:
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
                self._lost(pair, "a reply was lost on its way")

        def failed(_: object, message: str | None) -> None:
            # Only if nothing was sent after it: that would have overtaken it.
            if message is not None and message.startswith("NOSCRIPT") and connection.is_idle:
                connection.send(known.load_and_run(keys, arguments, tag), replied, failed)
            else:
                self._failed(script, done, message)

        connection.send(known.run(keys, arguments, tag), replied, failed)

    def publish(self, channel: bytes, data: bytes, done: Callable[[int | None], None]) -> None:
        """Publish; ``done`` gets the number of subscribers that got it, or None, at once if there is no connection."""
        if self._commands is None:
            done(None)
        else:
            command = hiredis.pack_command((b"PUBLISH", channel, data))
            self._commands.send(command, done, self._publish_failed)

    def _publish_failed(self, done: Callable[[Any], None], message: str | None) -> None:
        self._failed("PUBLISH", done, message)

    def _failed(self, command: str, done: Callable[[Any], None], message: str | None) -> None:
        if message is None:
            done(None)
            return
        error, pair = ServerError(command, message), self._pair
        self._events.backplane_error(str(self._url), error.code, str(error))
        done(None)
        if error.wants_another_server and pair is not None:
            self._lost(pair, str(error))

    # The connections

    def _connect(self, channel: bytes, listener: EngineListener) -> None:
        pair = _ConnectionPair(self._reactor, channel, listener, self._opened, self._lost)
        self._replace(pair)
        # A callback that got None for a reply may have connected again, or disconnected.
        if self._pair is pair:
            pair.open(self._dialer, self._url, self._scripts.values(), self._connect_seconds)

    def _replace(self, pair: _ConnectionPair | None) -> None:
        former, self._pair = self._pair, pair
        self._commands = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if former is not None:
            former.end()

    def _opened(self, pair: _ConnectionPair, commands: Connection) -> None:
        if pair is not self._pair:
            return
        self._commands = commands
        self._connected_at = self._reactor.seconds()
        self._logged_reason = ""
        self._events.backplane_connected(str(self._url))
        pair.check_every(self._check_seconds)
        pair.listener.connected()

    def _lost(self, pair: _ConnectionPair, reason: str) -> None:
        if pair is not self._pair:
            return
        was_connected, self._commands = self._commands is not None, None
        pair.end()
        # One line for one outage, and one more if its reason changes.
        if reason != self._logged_reason:
            self._logged_reason = reason
            self._events.backplane_disconnected(str(self._url), reason)
        if pair is not self._pair:
            return
        # Schedule the retry first: the listener may cancel it by ``connect`` or ``disconnect``.
        self._retry = self._reactor.callLater(self._retry_delay(was_connected), self._reconnect, pair)
        if was_connected:
            pair.listener.disconnected(reason)

    def _retry_delay(self, was_connected: bool) -> float:
        if was_connected and self._reactor.seconds() - self._connected_at > _STEADY_SECONDS:
            self._failures = 0
        longest: float = min(_MAX_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        # Nodes that lost the same server must not all come back at the same moment.
        return longest * random.uniform(0.5, 1)

    def _reconnect(self, pair: _ConnectionPair) -> None:
        self._retry = None
        self._connect(pair.channel, pair.listener)


class _ConnectionPair:
    """Both connections, from the attempt to connect to their end.

    Args:
        opened: called with the connection for commands when both connections work.
        lost: called with the reason when they do not, or no longer; it has to call ``end``.
    """

    def __init__(
        self,
        reactor: Any,
        channel: bytes,
        listener: EngineListener,
        opened: Callable[[_ConnectionPair, Connection], None],
        lost: Callable[[_ConnectionPair, str], None],
    ) -> None:
        self.channel = channel
        self.listener = listener
        self._reactor = reactor
        self._opened = opened
        self._lost = lost
        self._commands = Connection(self._failed)
        self._subscriber = Connection(self._failed, listener.received)
        self._attempt: Deferred[None] | None = None
        self._check_call: Any = None
        self._ended = False

    def open(self, dialer: Dialer, url: StoreUrl, scripts: Iterable[Script], seconds: float) -> None:
        """Make both connections within so many seconds."""
        self._attempt = ensureDeferred(self._open(dialer, url, scripts))
        self._attempt.addTimeout(seconds, self._reactor, _timed_out)
        self._attempt.addCallbacks(
            lambda _: self._opened(self, self._commands), lambda failure: self._failed(describe(failure.value))
        )
        self._attempt.addErrback(lambda failure: _log.failure("a cluster's listener failed", failure))

    async def _open(self, dialer: Dialer, url: StoreUrl, scripts: Iterable[Script]) -> None:
        address = await dialer.find()
        await dialer.dial(address, self._commands)
        database = [(b"SELECT", b"%d" % url.database)] if url.database else []
        greetings = greeting(url.credentials)
        await self._commands.ask_all(*greetings, *database, *(script.load for script in scripts))
        if url.service:
            [role] = await self._commands.ask_all((b"ROLE",))
            if role[0] != b"master":
                raise NotMaster(f"the sentinels name {address} as the master, and it is none")
        await dialer.dial(address, self._subscriber)
        await self._subscriber.ask_all(*greetings, (b"SUBSCRIBE", self.channel))

    def _failed(self, reason: str) -> None:
        if not self._ended:
            self._lost(self, reason)

    def check_every(self, seconds: float) -> None:
        """Check every so many seconds that both connections still answer."""

        def check() -> None:
            self.check_every(seconds)
            for connection in (self._commands, self._subscriber):
                if not self._ended:
                    connection.check()

        self._check_call = self._reactor.callLater(seconds, check)

    def end(self) -> None:
        """End both connections and the attempt to connect. Only callbacks that wait for a reply are called."""
        if self._ended:
            return
        self._ended = True
        if self._check_call is not None:
            self._check_call.cancel()
        if self._attempt is not None:
            self._attempt.cancel()
        # The subscriber first: what arrives meanwhile must not reach the listener.
        self._subscriber.end()
        self._commands.end()


def _timed_out(_: object, seconds: float) -> Any:
    raise TimedOut(f"no answer within {seconds:g} s")
