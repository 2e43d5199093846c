"""Connections to Redis: commands on their way, and whose the next reply is.

txredisapi parses what arrives, in C by hiredis; its own parser takes a pass of the reactor for each string, and falls
behind. It imports the global reactor: import this late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hiredis  # noqa: F401 - missed here, and not only when a connection is made
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import HiredisProtocol, InvalidData

from signaling.backplane.redis.resp import Refusal, command
from signaling.backplane.redis.url import Credentials

_log = Logger()

# A server that pauses, and our own process when it does, may leave two looks without an answer.
_MOST_QUIET_LOOKS = 2


class Refused(Exception):
    """The server answered with an error.

    Args:
        refusal: which.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class Lost(Exception):
    """The connection ended before the reply."""


Failed = Callable[[Callable[[Any], None], Exception | None], None]
"""Takes whoever waits for a reply, and the server's error; None where the connection ended first."""


class Connection(HiredisProtocol):
    """One connection; replies come in the order of what was sent.

    Args:
        lost: hears why it ended, unless it was ended here.
        received: takes what is published on the channels that it listens to.
    """

    def __init__(self, lost: Callable[[str], None], received: Callable[[bytes], None] | None = None) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self._lost = lost
        self._received = received
        self._waiting: deque[tuple[Callable[[Any], None], Failed]] = deque()
        self._ended = False
        self._quiet_looks = 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for a reply."""
        return not self._waiting

    def send(self, command: bytes, done: Callable[[Any], None], failed: Failed) -> None:
        """Send a command; ``done`` gets its reply, or ``failed`` gets ``done``."""
        self._waiting.append((done, failed))
        self.transport.write(command)

    def ask(self, *words: bytes) -> Deferred[Any]:
        """Send a command; fires with its reply, or fails with ``Refused`` or ``Lost``."""
        answered: Deferred[Any] = Deferred()
        verb = words[0].decode()

        def failed(_: object, error: Exception | None) -> None:
            answered.errback(Lost("the connection was lost") if error is None else Refused(Refusal(verb, str(error))))

        self.send(command(*words), answered.callback, failed)
        return answered

    async def ask_all(self, *questions: tuple[bytes, ...]) -> list[Any]:
        """Send commands, all at once; returns their replies, or raises the first that failed."""
        try:
            replies = await gatherResults([self.ask(*words) for words in questions], consumeErrors=True)
        except FirstError as error:
            # A server that refuses a connection says so once, and ends it.
            raise error.subFailure.value or Lost() from None
        return list(replies)

    def look(self) -> None:
        """Check that the other end still answers; called now and then."""
        if self._quiet_looks >= _MOST_QUIET_LOOKS:
            self._tell("it does not answer")
            return
        self._quiet_looks += 1
        self.send(command(b"PING"), _ignore, _give_up)

    def end(self) -> None:
        """End it at once; nothing is received from now on, and who waits for a reply hears that there is none."""
        if self._ended:
            return
        self._ended = True
        self._received = None
        waiting, self._waiting = self._waiting, deque()
        if self.transport is not None:
            # What is written may never be read: there is no other way to be sure of an end.
            self.transport.abortConnection()
        for done, failed in waiting:
            try:
                failed(done, None)
            except Exception:
                _log.failure("whoever waited for a reply failed")

    # For Twisted and txredisapi

    def connectionMade(self) -> None:
        """Set the connection up."""
        if self._ended:
            self.transport.abortConnection()
        # A UNIX socket has no such option, and delays nothing.
        with suppress(AttributeError, OSError):
            self.transport.setTcpNoDelay(True)

    def connectionLost(self, reason: Failure) -> None:
        """Tell why it ended."""
        self._tell("the server closed the connection" if reason.check(ConnectionDone) else describe(reason.value))

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        """Take what arrived."""
        self._quiet_looks = 0
        try:
            super().dataReceived(data, unpause)
        except InvalidData:
            self._tell("it does not speak as Redis does")

    def tryConvertData(self, data: Any) -> Any:
        """Leave everything as it is, in one step."""
        return data

    def replyReceived(self, reply: Any) -> None:
        """Hand on what was published, or a reply."""
        if self._received is not None and type(reply) is list and reply[0] == b"message":
            self._received(reply[2])
        elif self._waiting:
            done, failed = self._waiting.popleft()
            if isinstance(reply, Exception):
                failed(done, reply)
            else:
                done(reply)

    def _tell(self, reason: str) -> None:
        if not self._ended:
            self._lost(reason)
            self.end()


def greeting(credentials: Credentials | None) -> list[tuple[bytes, ...]]:
    """Return the commands that say who asks."""
    if credentials is None:
        return []
    user = [credentials.user.encode()] if credentials.user else []
    return [(b"AUTH", *user, credentials.password.encode())]


def describe(error: BaseException | None) -> str:
    """Say in one line why a connection failed."""
    if error is None:
        return "for no reason"
    # OpenSSL's errors are lists of triples, of which the last is for people.
    if error.args and isinstance(error.args[0], list) and error.args[0]:
        return f"TLS: {error.args[0][-1][-1]}"
    return " ".join(str(error).split()) or type(error).__name__


def _ignore(_: object) -> None:
    pass


def _give_up(_: object, __: Exception | None) -> None:
    pass
