"""The Python clients at a real server whose operator speaks to them, removes them, and closes their topics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from signaling.client import Notice, PeerJoined, PeerLeft, Refused, Signaling
from signaling.client.aiortc import TopicSignaling
from signaling.client.mesh import Mesh
from tests.harness.operator import Operator, operated
from tests.harness.server import Server
from tests.system.test_python_client import joined, soon, until
from tests.system.test_twisted_client import program

SECONDS = 120


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Operator]]:
    with operated(tmp_path_factory.mktemp("admin"), "--resume-window=20") as made:
        yield made


async def end_of(signaling: Signaling) -> Refused:
    """Return with what the iteration ends."""
    with pytest.raises(Refused) as refused:
        async for _ in signaling:
            pass
    return refused.value


def test_everybody_gets_a_notice(site: tuple[Server, Operator]) -> None:
    server, operator = site

    async def scenario() -> None:
        async with joined(server.url + "notices") as ada, joined(server.url + "notices") as ben:
            assert "notices" in ada.features
            await asyncio.to_thread(operator.notify, "notices", {"text": "This server stops soon."})
            assert await until(ben, Notice) == [Notice({"text": "This server stops soon."})]
            notices: asyncio.Queue[object] = asyncio.Queue()
            meshing = asyncio.create_task(Mesh(ada, on_notice=notices.put_nowait).run())
            assert await asyncio.wait_for(notices.get(), SECONDS) == {"text": "This server stops soon."}
            await ada.leave()
            await meshing

    asyncio.run(scenario())


def test_a_removed_client_stays_away_and_says_why(site: tuple[Server, Operator]) -> None:
    server, operator = site

    async def scenario(url: str) -> None:
        async with joined(url) as stays:
            # Another token would be at hand.
            async with joined(url, token=lambda: "a") as ada:
                await until(stays, PeerJoined)
                await asyncio.to_thread(operator.remove, "removed", ada.self_id, "Enough")
                ended = await end_of(ada)
                assert (ended.status, ended.reason) == (4403, "Enough")
                assert await until(stays, PeerLeft) == [PeerLeft(ada.self_id)]
            aiortc = TopicSignaling(url, backoff=soon())
            await aiortc.connect()
            [there] = await until(stays, PeerJoined)
            await asyncio.to_thread(operator.remove, "removed", there.peer_id)
            with pytest.raises(Refused, match="close code 4403: an operator removed this peer"):
                await aiortc.receive()
            await aiortc.close()
            with program("echo_service.py", url) as echo:
                *_, there = await until(stays, PeerJoined)
                await asyncio.to_thread(operator.remove, "removed", there.peer_id, "Enough")
                await asyncio.to_thread(echo.wait_for, "close code 4403: Enough")
                # It ends, so it cannot come back.
                assert await asyncio.to_thread(echo.process.wait, SECONDS) == 0
            await until(stays, PeerLeft)
            assert await asyncio.to_thread(operator.topics) == {"removed": 1}

    asyncio.run(asyncio.wait_for(scenario(server.url + "removed"), SECONDS))


def test_the_clients_of_a_closed_topic_stay_away(site: tuple[Server, Operator]) -> None:
    server, operator = site

    async def scenario(url: str) -> None:
        async with joined(url) as ada, joined(url) as ben:
            await asyncio.to_thread(operator.close, "closed", "We meet elsewhere")
            for client in (ada, ben):
                ended = await end_of(client)
                assert (ended.status, ended.reason) == (4404, "We meet elsewhere")
            assert await asyncio.to_thread(operator.topics) == {}

    asyncio.run(asyncio.wait_for(scenario(server.url + "closed"), SECONDS))
