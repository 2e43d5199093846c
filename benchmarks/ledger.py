"""The books of a load: what became of every message that the generator sent.

A message ends in one of four ways. It is *delivered* to its target; it is *refused*, which its sender hears; it was
*cut*: written to a connection that ended before its client read it; or its end is *unheard*, because its sender left
without waiting. Whatever has no such end is *lost*, and so is what arrives twice or at the wrong peer.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.client import Client, End, Message, text_frame

NOBODY = ""


class _Relay(NamedTuple):
    sender: Party
    target: str


class _Known(NamedTuple):
    """What a sender sent to a target before it heard that the target left, and was not answered since."""

    sender: Party
    target: str
    msg_ids: frozenset[str]


@dataclass
class Ledger:
    """What the parties of one load sent, and what became of it."""

    sent: int = 0
    delivered: int = 0
    cut: int = 0
    unheard: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    _open: dict[str, _Relay] = field(default_factory=dict)
    _complete: dict[str, bool] = field(default_factory=dict)
    _settling: dict[str, list[_Known]] = field(default_factory=lambda: defaultdict(list))

    def enter(self, sender: Party, target: str) -> str:
        """Enter one message and return its ``msgId``."""
        self.sent += 1
        msg_id = f"{self.sent}"
        self._open[msg_id] = _Relay(sender, target)
        return msg_id

    def arrived(self, msg_id: str, at: str) -> None:
        """Take note that a relay arrived."""
        relay = self._open.pop(msg_id, None)
        if relay is None or relay.target != at:
            self.lost.append(f"{msg_id} arrived at {at}, twice or by mistake")
        else:
            self.delivered += 1
            relay.sender.settled(relay.target, msg_id)

    def answered(self, sender: Party, message: Message) -> str:
        """Take note of an error that its sender heard; returns whom the message was for."""
        self.refused[message.code] += 1
        relay = self._open.pop(message.msg_id, None)
        if relay is None or relay.sender is not sender:
            self.lost.append(f"{message.msg_id} was answered {message.code}, twice or by mistake")
            return NOBODY
        sender.settled(relay.target, message.msg_id)
        return relay.target

    def left(self, known: _Known) -> None:
        """Settle messages to a target that their sender knows has left, once the target has read its last."""
        if known.target in self._complete:
            self._settle(known)
        else:
            self._settling[known.target].append(known)

    def ended(self, target: str, end: End) -> None:
        """Take note that ``target`` reads nothing more."""
        self._complete[target] = end.complete
        for known in self._settling.pop(target, ()):
            self._settle(known)

    def _settle(self, known: _Known) -> None:
        sender, target = known.sender, known.target
        for msg_id in known.msg_ids & sender.waiting.get(target, frozenset()):
            del self._open[msg_id]
            if self._complete[target]:
                self.lost.append(f"{msg_id} was accepted for {target}, which read all and did not get it")
            else:
                self.cut += 1
            sender.settled(target, msg_id)

    def close(self) -> None:
        """Sort what is open now that nothing more can come."""
        for msg_id, relay in self._open.items():
            if relay.sender.left_early:
                self.unheard += 1
            else:
                self.lost.append(f"{msg_id} to {relay.target or 'nobody'} was neither delivered nor answered")
        self._open.clear()

    def add(self, report: dict[str, Any]) -> None:
        """Add the books of a pair that kept its own (``benchmarks.latency``)."""
        self.sent += report["sent"]
        self.delivered += report["delivered"]
        self.refused.update(report["refused"])
        self.lost += ["a probe was neither delivered nor answered"] * report["waiting"]

    def check(self, server: dict[str, Any]) -> dict[str, bool]:
        """Compare with the server's counters at rest; returns each equation with whether it holds.

        Only messages whose end is unheard leave a play, and never more than their number.
        """
        written, refused = server["written"], Counter(server["refused"])
        unheard_written = written - self.delivered - self.cut
        unheard_refused = [refused[code] - self.refused[code] for code in refused | self.refused]
        ends = self.delivered + self.refused.total() + self.cut + self.unheard
        play = f" (within {self.unheard} unheard)" if self.unheard else ""
        return {
            f"server: accepted {server['accepted']} = written {written} + undelivered {server['undelivered']}"
            f" + waiting {server['waiting']}, which is 0": server["accepted"] == written + server["undelivered"]
            and server["waiting"] == 0,
            f"clients: sent {self.sent} = delivered {self.delivered} + refused {self.refused.total()} + cut {self.cut}"
            f" + unheard {self.unheard}": self.sent == ends,
            f"written {written} = delivered {self.delivered} + cut {self.cut}{play}": 0
            <= unheard_written
            <= self.unheard,
            f"refused by the server {refused.total()} = heard {self.refused.total()}, code by code{play}": min(
                unheard_refused, default=0
            )
            >= 0
            and sum(unheard_refused) + unheard_written <= self.unheard,
            f"lost without a word: {len(self.lost)}": not self.lost,
        }


class Party(Client):
    """A peer that keeps books.

    Attributes:
        waiting: the ids of the messages whose end is open, by target; some go to ``NOBODY``.
        left_early: whether it left without waiting for their ends.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.waiting: dict[str, set[str]] = {}
        self.left_early = False
        self._ledger = ledger
        self._unreadable: list[str] = []
        self._fences: dict[str, _Known] = {}
        self._quiet = asyncio.Event()
        self._quiet.set()

    def relay(self, kind: str, to: str, payload: bytes) -> None:
        """Send one relay.

        Args:
            payload: JSON text.
        """
        self.send(self.relay_frame(kind, to, payload))

    def relay_frame(self, kind: str, to: str, payload: bytes) -> bytes:
        """Enter one relay and return its frame, to be sent with others."""
        msg_id = self._enter(to)
        return text_frame(
            b'{"type":"%b","to":"%b","payload":%b,"msgId":"%b"}'
            % (kind.encode(), to.encode(), payload, msg_id.encode())
        )

    def send_unreadable(self, data: bytes) -> None:
        """Send a frame that the server answers with an error that names no ``msgId``."""
        self._unreadable.append(self._enter(NOBODY))
        self.send(data)

    def _enter(self, to: str) -> str:
        msg_id = self._ledger.enter(self, to)
        self.waiting.setdefault(to, set()).add(msg_id)
        self._quiet.clear()
        return msg_id

    def settled(self, target: str, msg_id: str) -> None:
        """Take note that one of its messages has an end."""
        waiting = self.waiting[target]
        waiting.remove(msg_id)
        if not waiting:
            del self.waiting[target]
            if not self.waiting:
                self._quiet.set()

    async def quiet(self, seconds: float = 30.0) -> None:
        """Wait until all that it sent has an end.

        Raises:
            TimeoutError: after ``seconds``.
        """
        async with asyncio.timeout(seconds):
            await self._quiet.wait()

    def vanish(self) -> None:
        """Reset the connection without waiting for what is open."""
        self.left_early = True
        self.reset()

    def heard(self, message: Message) -> None:
        """Keep the books."""
        if message.type == "error":
            self._answered(message)
        elif message.sender:
            self._ledger.arrived(message.msg_id, self.id)
        elif message.type == "peer-left" and message.peer_id in self.waiting:
            # What it sent before it heard this may still be answered. The answer to a fence comes after all of that.
            self._fence(message.peer_id)

    def _answered(self, message: Message) -> None:
        if not message.msg_id and self._unreadable:
            message.msg_id = self._unreadable.pop(0)
        self.refused(self._ledger.answered(self, message), message)
        known = self._fences.pop(message.msg_id, None)
        if known is not None:
            self._ledger.left(known)

    def refused(self, target: str, message: Message) -> None:
        """Hear an error; for a subclass to override."""

    def settle_all(self) -> None:
        """Settle what is open, knowing from elsewhere that all of its targets have left."""
        for target in self.waiting.keys() - {NOBODY}:
            self._fence(target)

    def _fence(self, target: str) -> None:
        msg_id = self._enter(NOBODY)
        self._fences[msg_id] = _Known(self, target, frozenset(self.waiting[target]))
        self.send(text_frame(b'{"type":"offer","msgId":"%b"}' % msg_id.encode()))

    def over(self, end: End) -> None:
        """Take note that it reads nothing more."""
        if self.id:
            self._ledger.ended(self.id, end)
