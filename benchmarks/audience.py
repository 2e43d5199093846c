"""Peers of one topic in a process of their own, who keep a list of the others.

On its standard output it tells the ids of its peers when all are there, and then, for each line that it reads, what
they believe and which peers they heard leave.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from benchmarks.client import Client, Message

_AT_ONCE = 8
_JOINED, _LEFT = b'{"type":"peer-joined","peerId":"', b'{"type":"peer-left","peerId":"'
_ID_BYTES = 26


def digest(ids: Iterable[str]) -> str:
    """Write a set of ids in a few characters."""
    return sha256(" ".join(sorted(ids)).encode()).hexdigest()[:16]


class Numbers:
    """Numbers for ids, so that a set of thousands takes a byte for each."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._numbers: dict[bytes, int] = {}

    def of(self, peer: bytes) -> int:
        """Return the number of an id."""
        number = self._numbers.setdefault(peer, len(self.ids))
        if number == len(self.ids):
            self.ids.append(peer.decode())
        return number


class Listener(Client):
    """A peer that keeps a list of the others."""

    def __init__(self, numbers: Numbers, left: Counter[int]) -> None:
        super().__init__()
        self._numbers = numbers
        self._left = left
        self._known = bytearray()

    @property
    def known(self) -> set[str]:
        """Who is there as far as it knows, and itself."""
        return {self._numbers.ids[number] for number, here in enumerate(self._known) if here} | {self.id}

    def heard(self, message: Message) -> None:
        """Begin with the list."""
        if message.type == "peer-list":
            for entry in message.peers:
                self._note(entry.id.encode(), 1)

    def _take_frame(self, first: int, payload: bytes) -> None:
        # There are millions of these.
        if payload.startswith(_LEFT):
            self._left[self._note(payload[len(_LEFT) :][:_ID_BYTES], 0)] += 1
        elif payload.startswith(_JOINED):
            self._note(payload[len(_JOINED) :][:_ID_BYTES], 1)
        else:
            super()._take_frame(first, payload)

    def _note(self, peer: bytes, here: int) -> int:
        number = self._numbers.of(peer)
        if number >= len(self._known):
            self._known.extend(bytes(number + 1 - len(self._known)))
        self._known[number] = here
        return number


async def gather(port: int, topic: str, count: int) -> None:
    """Let so many peers join, and answer until standard input ends."""
    numbers, left = Numbers(), Counter[int]()
    waiting = iter(range(count))
    peers: list[Listener] = []

    async def join_some() -> None:
        for _ in waiting:
            peers.append(await Listener.join(port, topic, numbers, left))

    async with asyncio.TaskGroup() as joining:
        for _ in range(_AT_ONCE):
            joining.create_task(join_some())
    _print({"peers": [peer.id for peer in peers]})
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        views = Counter(digest(peer.known) for peer in peers if not peer.ended.done())
        _print({"views": views, "left": {numbers.ids[number]: times for number, times in left.items()}})


def _print(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(gather(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
