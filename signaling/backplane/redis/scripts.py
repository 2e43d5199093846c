"""The scripts that a store runs for a cluster, and the names of its keys."""

from __future__ import annotations

from importlib.resources import files

NAMES = ("join", "leave", "sync", "move", "beat", "bury", "resign")


def text(name: str) -> str:
    """Return a script as the store runs it."""
    folder = files("signaling.backplane.redis") / "lua"
    return "\n".join((folder / f"{part}.lua").read_text() for part in ("prelude", name))


class Keys:
    """Names what a cluster keeps in the store.

    Args:
        prefix: in front of every name, so that clusters can share a store.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.nodes = self.prefix + b"nodes"

    def topic(self, name: bytes) -> list[bytes]:
        """Name a topic's members and its state."""
        return [self.prefix + b"members:" + name, self.prefix + b"state:" + name]

    def index(self, node: bytes) -> bytes:
        """Name the set of topics in which a node has members."""
        return self.prefix + b"topics:" + node

    def tomb(self, node: bytes) -> bytes:
        """Name what tells a node that the others took it for dead."""
        return self.prefix + b"buried:" + node

    def channel(self, node: bytes) -> bytes:
        """Name the channel of a node."""
        return self.prefix + b"node:" + node
