"""A connection to a Redis server: commands, their replies in order, and what the server's errors mean.

An error's text may quote what it is about: topics, metadata, passwords. Only its code is kept.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hiredis
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from signaling.backplane.redis.url import Credentials

_log = Logger()

# The server may pause, and so may our own process: two checks without an answer are allowed.
_MAX_UNANSWERED_CHECKS = 2

_HINTS = {
    "BUSY": "another script runs for too long",
    "CLUSTERDOWN": "a Redis Cluster is no store for this; take one server, or Sentinel",
    "CROSSSLOT": "a Redis Cluster is no store for this; take one server, or Sentinel",
    "DENIED": "it is in protected mode: it has to ask for a password before it takes connections of other machines",
    "LOADING": "it still reads its data",
    "MASTERDOWN": "it is a replica without a master",
    "MISCONF": "it cannot save to its disk, and takes no writes",
    "MOVED": "a Redis Cluster is no store for this; take one server, or Sentinel",
    "NOAUTH": "it asks for a password",
    "NOPERM": "the user may not; docs/redis.md has the rights that it needs",
    "NOREPLICAS": "it has too few replicas to take writes",
    "NOSCRIPT": "its scripts were flushed while calls were on their way",
    "OOM": "its memory is full (maxmemory)",
    "READONLY": "it is a replica",
    "WRONGPASS": "the user or the password is wrong",
    "WRONGTYPE": "something else has keys of the same prefix",
}
# The likely meaning of an error without a code of its own, by the command that failed.
_COMMAND_HINTS = {
    "AUTH": "it knows no such user, or no password",
    "SELECT": "it has no such database",
    "SENTINEL": "it is no sentinel",
}
# A command that is refused within a script is reported without a code.
_REFUSED_IN_SCRIPT = "The user executing the script"
# Sent in place of the first reply.
_TOO_MANY_CLIENTS = "max number of clients"
_WRONG_SERVER_CODES = frozenset({"LOADING", "MASTERDOWN", "NOAUTH", "NOSCRIPT", "READONLY"})


class ServerError(Exception):
    """The server answered with an error. The text names the command, the code and what it means.

    Args:
        command: the first word of what failed, or a script's name.
        message: the server's.

    Attributes:
        code: the first word of the message if that is one of Redis's codes, else ``ERR``.
    """

    def __init__(self, command: str, message: str) -> None:
        found = re.match(r"[A-Z]+(?= |$)", message)
        self.code = found[0] if found else "ERR"
        hint = _HINTS.get(self.code) or _hint(command, message)
        super().__init__(f"{command}: {self.code}" + (f", {hint}" if hint else ""))

    @property
    def wants_another_server(self) -> bool:
        """Whether another connection may do better: this server is not, or not yet, the one to ask."""
        return self.code in _WRONG_SERVER_CODES


def _hint(command: str, message: str) -> str:
    if _TOO_MANY_CLIENTS in message:
        return "it has as many clients as it takes (maxclients)"
    if _REFUSED_IN_SCRIPT in message:
        return _HINTS["NOPERM"]
    line = re.search(r"user_script:\s?(\d+)", message)
    return _COMMAND_HINTS.get(command) or (f"in line {line[1]}" if line else "")


class Lost(Exception):
    """The connection ended before the reply."""


Failed = Callable[[Callable[[Any], None], str | None], None]
"""Takes the callback for a reply, and the server's error message; None if the connection ended first."""


class Connection(Protocol):
    """One connection; replies come in the order of the commands.

    Args:
        on_lost: called with the reason when the connection ends, unless ``end`` ended it.
        on_message: called with each message on the channels that the connection is subscribed to.
    """

    transport: Any = None

    def __init__(self, on_lost: Callable[[str], None], on_message: Callable[[bytes], None] | None = None) -> None:
        self._on_lost = on_lost
        self._on_message = on_message
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[Callable[[Any], None], Failed]] = deque()
        self._ended = False
        self._unanswered_checks = 0

    @property
    def is_idle(self) -> bool:
        """Whether every command has its reply."""
        return not self._waiting

    def send(self, command: bytes, done: Callable[[Any], None], failed: Failed) -> None:
        """Send a packed command; ``done`` is called with its reply, or ``failed`` with ``done``."""
        self._waiting.append((done, failed))
        self.transport.write(command)

    def ask(self, *command: bytes) -> Deferred[Any]:
        """Send a command; fires with its reply, or fails with ``ServerError`` or ``Lost``."""
        answered: Deferred[Any] = Deferred()

        def failed(_: object, message: str | None) -> None:
            verb = command[0].decode()
            answered.errback(Lost("the connection was lost") if message is None else ServerError(verb, message))

        self.send(hiredis.pack_command(command), answered.callback, failed)
        return answered

    async def ask_all(self, *commands: tuple[bytes, ...]) -> list[Any]:
        """Send commands, all at once; returns their replies, or raises the first that failed."""
        try:
            replies = await gatherResults([self.ask(*command) for command in commands], consumeErrors=True)
        except FirstError as error:
            # A server that refuses a connection says so once, and ends it.
            raise error.subFailure.value or Lost() from None
        return list(replies)

    def check(self) -> None:
        """Check that the server still answers; to be called now and then."""
        if self._unanswered_checks >= _MAX_UNANSWERED_CHECKS:
            self._fail("it does not answer")
            return
        self._unanswered_checks += 1
        self.send(hiredis.pack_command((b"PING",)), lambda _: None, lambda _, __: None)

    def end(self) -> None:
        """End the connection at once; commands without a reply fail, and nothing is received from now on."""
        if self._ended:
            return
        self._ended = True
        self._on_message = None
        waiting, self._waiting = self._waiting, deque()
        if self.transport is not None:
            # The other end may never read what is written: only an abort surely ends the connection.
            self.transport.abortConnection()
        for done, failed in waiting:
            try:
                failed(done, None)
            except Exception:
                _log.failure("a callback for a reply failed")

    # Called by Twisted

    def connectionMade(self) -> None:
        """Set the connection up."""
        if self._ended:
            self.transport.abortConnection()
        # A UNIX socket has no such option, and delays nothing.
        with suppress(AttributeError, OSError):
            self.transport.setTcpNoDelay(True)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Report why the connection ended."""
        self._fail("the server closed the connection" if reason.check(ConnectionDone) else describe(reason.value))

    def dataReceived(self, data: bytes) -> None:
        """Parse replies and messages, and call back for each."""
        self._unanswered_checks = 0
        reader = self._reader
        reader.feed(data)
        try:
            # False means that there is no complete reply; 0 is one.
            while (reply := reader.gets()) is not False:
                self._received(reply)
        except hiredis.ProtocolError:
            self._fail("it does not speak as Redis does")

    def _received(self, reply: Any) -> None:
        if self._on_message is not None and type(reply) is list and reply[0] == b"message":
            self._on_message(reply[2])
        elif self._waiting:
            done, failed = self._waiting.popleft()
            if type(reply) is hiredis.ReplyError:
                failed(done, str(reply))
            else:
                done(reply)

    def _fail(self, reason: str) -> None:
        if not self._ended:
            self._on_lost(reason)
            self.end()


def greeting(credentials: Credentials | None) -> list[tuple[bytes, ...]]:
    """Return the commands that authenticate a connection."""
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
