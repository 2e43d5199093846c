"""The scripts that a Redis server runs for a cluster, and the commands that run them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files

import hiredis

NAMES = ("join", "leave", "update", "sync", "move", "heartbeat", "evict", "deregister", "broadcast")

# Replies come in the order of the calls. If one is lost and the connection stays open, the next one would be taken for
# it: so each call has a tag, which its reply repeats.
_TAGGED = """\
local function run()
%s
end
local tag = table.remove(ARGV)
return {tag, run()}
"""


def text(name: str) -> str:
    """Return a script as the server runs it."""
    folder = files("signaling.backplane.redis") / "lua"
    return "\n".join((folder / f"{part}.lua").read_text() for part in ("prelude", name))


class Script:
    """The commands that load and run a script. Its reply is a list: the tag of the call, and what the script returned.

    Attributes:
        name: without ``.lua``.
        load: the arguments of the command that loads it.
    """

    def __init__(self, name: str) -> None:
        body = (_TAGGED % text(name)).encode()
        self.name = name
        self.load = (b"SCRIPT", b"LOAD", body)
        # The server's name for it, not a secret.
        self._loaded = (b"EVALSHA", sha1(body, usedforsecurity=False).hexdigest().encode())
        self._whole = (b"EVAL", body)

    def run(self, keys: Sequence[bytes], arguments: Sequence[bytes], tag: bytes) -> bytes:
        """Return the command that runs the script if the server has loaded it, else fails with NOSCRIPT."""
        command: bytes = hiredis.pack_command((*self._loaded, b"%d" % len(keys), *keys, *arguments, tag))
        return command

    def load_and_run(self, keys: Sequence[bytes], arguments: Sequence[bytes], tag: bytes) -> bytes:
        """Return the command that runs the script in any case, and loads it."""
        command: bytes = hiredis.pack_command((*self._whole, b"%d" % len(keys), *keys, *arguments, tag))
        return command
