"""What is said to a Redis server in its own words, and what its errors mean.

An error's text may quote what it is about: topics, metadata, passwords. Only its code is taken over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha1

from signaling.backplane.redis.scripts import NAMES, text

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
    "NOPERM": "the user may not; docs/options.md has the rights that it needs",
    "NOREPLICAS": "it has too few replicas to take writes",
    "NOSCRIPT": "its scripts were flushed while calls were on their way",
    "OOM": "its memory is full (maxmemory)",
    "READONLY": "it is a replica",
    "WRONGPASS": "the user or the password is wrong",
    "WRONGTYPE": "something else has keys of the same prefix",
}
# What may be meant by an error without a code of its own.
_PLAIN_HINTS = {
    "AUTH": "it knows no such user, or no password",
    "SELECT": "it has no such database",
    "SENTINEL": "it is no sentinel",
}
# What is refused within a script comes as an error without a code.
_REFUSED_IN_SCRIPT = "The user executing the script"
# The server says so in place of its first reply.
_TOO_MANY = "max number of clients"
_OUTDATED = frozenset({"LOADING", "MASTERDOWN", "NOAUTH", "NOSCRIPT", "READONLY"})


# Replies come in the order of the calls. Where one is lost on its way and the connection stays, the next would be taken
# for it: so each call has a tag, which comes back.
_TAGGED = """\
local function run()
%s
end
local tag = table.remove(ARGV)
return {tag, run()}
"""


class Script:
    """A script, as it is loaded and run. Its reply comes behind the tag of the call.

    Attributes:
        name: as the cluster calls it.
        load: the words that make the server know it.
    """

    def __init__(self, name: str) -> None:
        body = (_TAGGED % text(name)).encode()
        self.name = name
        self.load = (b"SCRIPT", b"LOAD", body)
        # The server's name for it, not a secret.
        self._known = (b"EVALSHA", sha1(body, usedforsecurity=False).hexdigest().encode())
        self._whole = (b"EVAL", body)

    def run(self, keys: Sequence[bytes], arguments: Sequence[bytes], tag: bytes) -> bytes:
        """Return the command that runs it where the server knows it."""
        return command(*self._known, b"%d" % len(keys), *keys, *arguments, tag)

    def bring_and_run(self, keys: Sequence[bytes], arguments: Sequence[bytes], tag: bytes) -> bytes:
        """Return the command that runs it, and makes the server know it."""
        return command(*self._whole, b"%d" % len(keys), *keys, *arguments, tag)


def scripts() -> dict[str, Script]:
    """Read all scripts."""
    return {name: Script(name) for name in NAMES}


def command(*words: bytes) -> bytes:
    """Write a command."""
    return b"".join([b"*%d\r\n" % len(words), *[b"$%d\r\n%b\r\n" % (len(word), word) for word in words]])


def publication(channel: bytes, data: bytes) -> bytes:
    """Write a PUBLISH."""
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(data), data)


class Refusal:
    """An error that a server answered with.

    Args:
        verb: the first word of what it refused, or a script's name.
        message: the server's.

    Attributes:
        code: its first word where that is one of Redis's codes, else ``ERR``.
    """

    def __init__(self, verb: str, message: str) -> None:
        found = re.match(r"[A-Z]+(?= |$)", message)
        self.verb = verb
        self.code = found[0] if found else "ERR"
        self._detail = _HINTS.get(self.code) or _detail(verb, message)

    def __str__(self) -> str:
        return f"{self.verb}: {self.code}" + (f", {self._detail}" if self._detail else "")

    @property
    def is_outdated(self) -> bool:
        """Whether another connection may be answered better: this server is not, or not yet, the one to ask."""
        return self.code in _OUTDATED


def _detail(verb: str, message: str) -> str:
    if _TOO_MANY in message:
        return "it has as many clients as it takes (maxclients)"
    if _REFUSED_IN_SCRIPT in message:
        return _HINTS["NOPERM"]
    line = re.search(r"user_script:\s?(\d+)", message)
    return _PLAIN_HINTS.get(verb) or (f"in line {line[1]}" if line else "")
