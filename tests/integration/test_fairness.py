"""Nobody waits long because another sends much."""

from __future__ import annotations

import pytest
from websockets.frames import Frame, Opcode

from tests.integration.harness import Harness, Peer, upgrade

pytestmark = pytest.mark.unmeasured

FLOOD = 2000
FEW = 200


def text(sender: Peer, target: Peer, msg_id: int | str) -> bytes:
    message = b'{"type":"offer","to":"%b","msgId":"%b"}' % (target.id.encode(), str(msg_id).encode())
    return Frame(Opcode.TEXT, message).serialize(mask=True)


def arrivals(target: Peer) -> list[str]:
    return [message["msgId"] for message in target.heard() if message["type"] == "offer"]


def test_a_flood_in_one_segment_does_not_hold_up_another_peer(server: Harness) -> None:
    flood, quick, target = (server.join("room") for _ in range(3))
    flood.send_together(b"".join(text(flood, target, n) for n in range(FLOOD)))
    quick.send_together(text(quick, target, "quick"))
    server.run()
    arrived = arrivals(target)
    assert arrived.index("quick") < FEW
    assert [msg_id for msg_id in arrived if msg_id != "quick"] == [str(n) for n in range(FLOOD)]


def test_floods_take_turns_and_together_hold_up_nobody(server: Harness) -> None:
    target, quick = server.join("room"), server.join("room")
    floods = [server.join("room") for _ in range(10)]
    for flood in floods:
        flood.send_together(b"".join(text(flood, target, f"{flood.id}-{n}") for n in range(FLOOD)))
    server.run_once()
    quick.send_together(text(quick, target, "quick"))
    server.run()
    arrived = arrivals(target)
    assert arrived.index("quick") < 2 * FEW
    halfway = {msg_id.partition("-")[0] for msg_id in arrived[: len(arrived) // 10]}
    assert len(halfway - {"quick"}) == len(floods)
    assert len(arrived) == len(floods) * FLOOD + 1


@pytest.mark.parametrize("opcode", [Opcode.PONG, Opcode.PING])
def test_tiny_frames_do_not_hold_up_another_peer(harness: Harness, opcode: Opcode) -> None:
    flood, quick = harness.join("room"), harness.join("room")
    flood.send_together(Frame(opcode, b"").serialize(mask=True) * FLOOD + text(flood, quick, "flood"))
    quick.send_together(text(quick, quick, "quick"))
    harness.run()
    assert arrivals(quick) == ["quick", "flood"]


def test_a_flood_that_leaves_in_the_middle_is_forgotten(harness: Harness) -> None:
    flood, observer = harness.join("room"), harness.join("room")
    flood.send_together(text(flood, observer, 1) * FLOOD)
    harness.run_once()
    flood.transport.abortConnection()
    harness.run()
    assert flood.lost
    assert observer.heard()[-1] == {"type": "peer-left", "peerId": flood.id}
    assert len([call for call in harness.clock.getDelayedCalls() if call.getTime() <= harness.clock.seconds()]) == 0


def test_what_was_sent_before_the_end_is_relayed(server: Harness) -> None:
    flood, target = server.join("room"), server.join("room")
    flood.send_together(b"".join(text(flood, target, n) for n in range(FLOOD)))
    flood.hang_up()
    assert arrivals(target) == [str(n) for n in range(FLOOD)]
    assert flood.lost


def test_a_crowd_that_joins_does_not_hold_up_those_who_are_there(harness: Harness) -> None:
    members = [harness.join("room") for _ in range(40)]
    for member in members:
        member.heard()
    crowd = [harness.connect() for _ in range(30)]
    for connection in crowd:
        connection.send_together(upgrade("/ws/room").encode() + text(members[0], members[0], "early"))
    members[0].send_together(text(members[0], members[1], "quick"))
    harness.run()
    kinds = [message["type"] for message in members[1].heard()]
    assert kinds.index("offer") < 10
    assert kinds.count("peer-joined") == 30
    assert [message["type"] for message in members[0].heard()].count("offer") == 30


def test_who_leaves_before_its_turn_to_join_never_joined(server: Harness) -> None:
    members = [server.join("room") for _ in range(40)]
    crowd = [server.connect() for _ in range(30)]
    for connection in crowd:
        connection.send_together(upgrade("/ws/room").encode())
    server.run_once()
    crowd[-1].transport.abortConnection()
    server.run()
    assert [message["type"] for message in members[-1].heard()] == ["peer-joined"] * 29
    server.drain()
    server.advance(10)
    assert not server.open_connections


def test_an_error_in_a_turn_ends_its_connection_alone(server: Harness) -> None:
    broken, target = server.join("room"), server.join("room")
    protocol = next(c for c in server.factory.connections if c.transport.adapted is broken.transport)
    handle, handled = protocol.onMessage, []

    def break_at_30(payload: bytes, is_binary: bool) -> None:
        handled.append(payload)
        if len(handled) == 30:
            raise ValueError("planted")
        handle(payload, is_binary)

    protocol.onMessage = break_at_30  # type: ignore[method-assign]
    broken.send_together(b"".join(text(broken, target, n) for n in range(100)))
    server.run()
    assert broken.lost
    assert [message["type"] for message in target.heard()] == ["offer"] * 29 + ["peer-left"]
