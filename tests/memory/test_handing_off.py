"""Sessions that resume on the same node or on another one."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from signaling import IceServers, Turn
from tests.memory.world import Peer, World

WINDOW = 30.0


class Client:
    """A client that resumes on the node that a test names; it counts what it receives."""

    def __init__(self, world: World, node: int, topic: str = "room") -> None:
        self._world = world
        self._topic = topic
        self.id = self.token = ""
        self.seen = 0
        self.connection = self._connect(node, "")
        self.read()

    def _connect(self, node: int, query: str) -> Peer:
        connection = self._world.knock(f"/ws/{self._topic}{query}", node=node)
        self._world.run()
        return connection

    def read(self) -> list[Any]:
        """Return the messages received since the last time."""
        messages = self.connection.heard()
        for message in messages:
            self.seen += 1
            if message["type"] == "welcome":
                self.seen = self.seen if message.get("resumed") else 1
                self.id, self.token = message["selfId"], message["resume"]["token"]
        return messages

    def lose(self) -> None:
        """Lose the connection."""
        self.read()
        self.connection.reset()

    def resume(self, node: int) -> list[Any]:
        """Connect to a node; returns what comes at once."""
        self.connection = self._connect(node, f"?resume={self.token}&seen={self.seen}")
        return self.read()

    def move(self, node: int) -> None:
        """Resume on another node, which has to work."""
        self.lose()
        assert self.resume(node)[0].get("resumed")

    def offer(self, target: Client, *numbers: int) -> None:
        """Send numbered offers in one segment."""
        self.connection.say_many([{"type": "offer", "to": target.id, "msgId": str(number)} for number in numbers])

    def offers(self) -> list[int]:
        """Return the numbers of the offers received since the last time."""
        return [int(message["msgId"]) for message in self.read() if message["type"] == "offer"]

    def errors(self) -> list[tuple[str, int]]:
        """Return the errors received since the last time."""
        return [(each["code"], int(each["msgId"])) for each in self.read() if each["type"] == "error"]


@pytest.mark.parametrize("node", [0, 1])
def test_a_resumed_client_ends_with_the_latest_ice_servers(node: int) -> None:
    def servers(clock: Clock) -> IceServers:
        return IceServers(turn=Turn(("turn:turn.example.com",), b"s", 20), wall_clock=clock.seconds)

    world = World(nodes=2, resume_window_seconds=WINDOW, ice_servers=servers)
    sender, target = Client(world, 0), Client(world, 0)
    target.read()
    target.connection.vanish()
    sender.offer(target, 1)
    world.advance(11)
    assert any("ice-servers" in text for text in target.connection.transport.texts_written())
    sender.offer(target, 2)
    target.connection.reset()
    messages = target.resume(node)
    assert [message["type"] for message in messages] == ["welcome", "peer-list", "offer", "offer"]
    sender.offer(target, 3)
    target.lose()
    assert target.resume(1 - node)[0]["resumed"]
    world.close()
