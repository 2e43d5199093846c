"""A healthy pair in a process of its own, which measures how long relays take while others load the server.

Messages leave at a fixed rate, whatever became of those before (an open loop), and each is timed from its own sending,
so neither a slow answer nor the load generator's stalls hide or add a delay. Requests on the standard input are
answered by one line of JSON: ``report`` and ``stop``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.client import Client, Message, text_frame
from benchmarks.processes import hurry

_PAYLOAD = "candidate:842163049 1 udp 1677729535 203.0.113.9 46154 typ srflx raddr 10.0.0.7 rport 46154 generation 0"
_LAST_SECONDS = 20.0


class Probe:
    """What a pair measured.

    Attributes:
        sent: how many messages.
        delivered: how many arrived.
        refused: how many were answered by an error, by code.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.delivered = 0
        self.refused: Counter[str] = Counter()
        self._sent_at: dict[str, float] = {}
        self._latencies_ms: list[float] = []
        self._latest_ms = 0.0

    @property
    def waiting(self) -> int:
        """How many messages are on their way."""
        return len(self._sent_at)

    def send(self, sender: Client, to: str, due: float) -> None:
        """Send one message that should have left at ``due``."""
        msg_id = f"probe-{self.sent}"
        message = {"type": "ice-candidate", "to": to, "payload": {"candidate": _PAYLOAD}, "msgId": msg_id}
        self.sent += 1
        now = self._sent_at[msg_id] = time.monotonic()
        self._latest_ms = max(self._latest_ms, 1000 * (now - due))
        sender.send(text_frame(json.dumps(message).encode()))

    def heard(self, message: Message) -> None:
        """Take note of a relay or an error."""
        if not message.msg_id:
            return
        elapsed = time.monotonic() - self._sent_at.pop(message.msg_id)
        if message.type == "error":
            self.refused[message.code] += 1
        else:
            self.delivered += 1
            self._latencies_ms.append(round(1000 * elapsed, 3))

    def report(self) -> dict[str, Any]:
        """Tell the totals, and what was measured since the last report.

        ``late_ms`` is by how much the latest message left after its time: the measuring process's own delay.
        """
        latencies, self._latencies_ms = self._latencies_ms, []
        latest, self._latest_ms = self._latest_ms, 0.0
        totals = {"sent": self.sent, "delivered": self.delivered, "refused": self.refused, "waiting": self.waiting}
        return {**totals, "latencies_ms": latencies, "late_ms": latest}


class Member(Client):
    """One of the pair."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self._probe = probe

    def heard(self, message: Message) -> None:
        """Hand relays and errors to the probe."""
        self._probe.heard(message)


async def _send(probe: Probe, sender: Member, to: str, rate: float) -> None:
    due = time.monotonic()
    while True:
        probe.send(sender, to, due)
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _answer(probe: Probe) -> None:
    """Answer requests until told to stop."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while (line := await lines.readline()) not in (b"", b"stop\n"):
        assert line == b"report\n"
        _print(probe.report())


def _print(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def measure(port: int, topic: str, rate: float) -> None:
    """Measure ``rate`` relays a second until told to stop, then wait for what is on its way."""
    probe = Probe()
    receiver = await Member.join(port, topic, probe)
    sender = await Member.join(port, topic, probe)
    _print({"peers": [sender.id, receiver.id]})
    sending = asyncio.create_task(_send(probe, sender, receiver.id, rate))
    await _answer(probe)
    sending.cancel()
    deadline = time.monotonic() + _LAST_SECONDS
    while probe.waiting and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    await sender.close()
    await receiver.close()
    _print(probe.report())


if __name__ == "__main__":
    hurry()
    asyncio.run(measure(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
