"""A pair in a process of its own, which measures how long relays take while others load the server.

Relays leave at a fixed rate, whatever becomes of those before (an open loop), and each is timed from its own sending.
So neither a slow answer nor a stalled load generator hides or adds a delay. It answers ``report`` and ``stop``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from benchmarks.client import LoggedClient, Message
from benchmarks.processes import serve_requests, use_realtime_priority, wait_until
from tests.harness.delivery_log import DeliveryLog

_PAYLOAD = json.dumps(
    {
        "candidate": "candidate:842163049 1 udp 1677729535 203.0.113.9 46154 typ srflx raddr 10.0.0.7 rport 46154"
        " generation 0"
    }
).encode()
_LAST_SECONDS = 20.0


class TimedClient(LoggedClient):
    """A client that times what it receives."""

    latencies_ms: list[float]

    def received(self, message: Message) -> None:
        """Enter it, and how long it took."""
        if message.sender:
            relay = self.log.delivered(message.msg_id, self.id)
            if relay is not None and relay.delivered_at is not None:
                self.latencies_ms.append(round(1000 * (relay.delivered_at - relay.sent_at), 3))
        else:
            super().received(message)


async def measure(receiver_port: int, sender_port: int, topic: str, rate: float) -> None:
    """Measure ``rate`` relays a second until told to stop, then wait for those under way."""
    log = DeliveryLog(keep=False)
    latest_ms = 0.0
    receiver = await TimedClient.join(receiver_port, topic, log)
    sender = await LoggedClient.join(sender_port, topic, log)
    receiver.latencies_ms = []

    async def send() -> None:
        nonlocal latest_ms
        due = time.monotonic()
        while True:
            latest_ms = max(latest_ms, 1000 * (time.monotonic() - due))
            sender.relay("ice-candidate", receiver.id, _PAYLOAD)
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def report(_: str = "") -> dict[str, Any]:
        """Return what was measured since the last report; ``late_ms`` is the measuring process's own delay."""
        nonlocal latest_ms
        answer = {"latencies_ms": receiver.latencies_ms, "late_ms": latest_ms}
        receiver.latencies_ms, latest_ms = [], 0.0
        return answer

    sending = asyncio.create_task(send())
    await serve_requests(report, {"peers": [sender.id, receiver.id]})
    sending.cancel()
    await wait_until(lambda: not log.open(), _LAST_SECONDS)
    await asyncio.gather(sender.close(), receiver.close())
    log.close()
    print(json.dumps(report() | {"log": log.summary()}), flush=True)


if __name__ == "__main__":
    use_realtime_priority()
    # One port, or that of the receiver and that of the sender.
    ports = [int(port) for port in sys.argv[1].split(",")]
    asyncio.run(measure(ports[0], ports[-1], sys.argv[2], float(sys.argv[3])))
