"""The asyncio client against a real server, over losses of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest

from signaling.client import (
    Backoff,
    Error,
    IceCandidate,
    Lost,
    NotDelivered,
    NotUpdated,
    Offer,
    PeerJoined,
    PeerLeft,
    PeerList,
    PeerUpdated,
    Refused,
    Signaling,
    Welcome,
    join,
)
from tests.harness.certificates import self_signed
from tests.harness.fault_proxy import FaultProxy, fault_proxy
from tests.harness.server import Server, running
from tests.programs import free_port

SECONDS = 120
RESUMING = ["--port=0", "--resume-window=20"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that lets peers resume; each test has a topic of its own."""
    with running(RESUMING) as started:
        yield started


def soon() -> Backoff:
    return Backoff(first_seconds=0.02, most_seconds=0.2)


async def until(signaling: Signaling, kind: type) -> list:
    """Return the messages up to the first of a kind."""
    received = []
    async with asyncio.timeout(SECONDS):
        async for message in signaling:
            received.append(message)
            if isinstance(message, kind):
                return received
    raise AssertionError(f"no {kind.__name__}: {received}")


@asynccontextmanager
async def joined(url: str, **options) -> AsyncIterator[Signaling]:
    """Join, and read the greeting."""
    async with asyncio.timeout(SECONDS), join(url, **{"backoff": soon(), **options}) as signaling:
        await until(signaling, PeerList)
        yield signaling


def test_two_peers_meet_and_part(server: Server) -> None:
    async def scenario(url: str) -> None:
        async with joined(url, metadata={"name": "Ada & Söhne"}) as ada:
            async with joined(url) as ben:
                assert ben.peers == {ada.self_id: {"name": "Ada & Söhne"}}
                assert await until(ada, PeerJoined) == [PeerJoined(ben.self_id)]
                msg_id = await ada.send("offer", ben.self_id, {"sdp": "x"})
                assert await until(ben, Offer) == [Offer(ada.self_id, {"sdp": "x"}, msg_id)]
            assert await until(ada, PeerLeft) == [PeerLeft(ben.self_id)]
            assert ada.peers == {}
            with pytest.raises(NotDelivered, match="target_not_found"):
                await ada.deliver("offer", ben.self_id)
            msg_id = await ada.send("offer", ben.self_id)
            [error] = await until(ada, Error)
            assert (error.code, error.msg_id) == ("target_not_found", msg_id)
            await ada.leave()
            assert [message async for message in ada] == []

    asyncio.run(scenario(server.url + "meet"))


def test_what_was_delivered_is_there_even_if_the_sender_leaves_at_once(server: Server) -> None:
    async def scenario(url: str) -> None:
        async with joined(url) as ada:
            async with joined(url) as ben:
                for number in range(10):
                    await ben.send("offer", ada.self_id, number)
            received = await until(ada, PeerLeft)
            assert [message.payload for message in received if isinstance(message, Offer)] == list(range(10))

    asyncio.run(scenario(server.url + "leaves"))


def test_a_killed_and_restarted_server_is_joined_again_as_somebody_else() -> None:
    async def scenario() -> None:
        port = free_port()
        with running([f"--listen=tcp:{port}:interface=127.0.0.1"]) as first:
            ada = join(first.url + "room", backoff=soon())
            ben = join(first.url + "room", backoff=soon())
            await ada.__aenter__()
            await until(ada, PeerList)
            await ben.__aenter__()
            await until(ada, PeerJoined)
            before = ben.self_id
            first.process.kill()
        with running([f"--listen=tcp:{port}:interface=127.0.0.1"]):
            received = await until(ada, Welcome)
            assert [type(message) for message in received] == [Welcome]
            assert not received[-1].resumed
            left = joined_again = 0
            while not (left and joined_again):
                message = await asyncio.wait_for(anext(ada), SECONDS)
                left += message == PeerLeft(before)
                joined_again += isinstance(message, PeerJoined)
            await until(ben, PeerList)
            await until(ben, Welcome)
            await ada.deliver("offer", next(iter(ada.peers)), "again")
            assert (await until(ben, Offer))[-1].payload == "again"
            await ada.leave()
            await ben.leave()

    asyncio.run(asyncio.wait_for(scenario(), SECONDS))


def test_a_cut_connection_is_resumed_and_nobody_notices(server: Server) -> None:
    async def scenario(url: str, proxy: FaultProxy) -> None:
        async with joined(url) as observer:
            async with joined(f"ws://127.0.0.1:{proxy.port}/ws/cut") as ada:
                await until(observer, PeerJoined)
                before = ada.self_id
                proxy.cut(refuse=True)
                await observer.deliver("offer", before, "while you were away")
                proxy.accept()
                welcome, offer = await until(ada, Offer)
                assert welcome.resumed
                assert ada.self_id == before
                assert offer.payload == "while you were away"
                await ada.deliver("offer", observer.self_id, "back")
                assert [message.payload for message in await until(observer, Offer)] == ["back"]

    with fault_proxy(server.port) as proxy:
        asyncio.run(scenario(server.url + "cut", proxy))


def test_an_update_of_metadata_reaches_everybody_over_a_cut() -> None:
    async def scenario(url: str, proxy: FaultProxy) -> None:
        async with joined(url) as observer:
            async with joined(f"ws://127.0.0.1:{proxy.port}/ws/names", metadata={"name": "Ada"}) as ada:
                await until(observer, PeerJoined)
                assert "metadata-updates" in ada.features
                await ada.update_metadata({"name": "Grace"})
                assert await until(observer, PeerUpdated) == [PeerUpdated(ada.self_id, {"name": "Grace"})]
                proxy.cut(refuse=True)
                # Whether the loss has been noticed or not, nobody answers.
                with pytest.raises(NotUpdated, match="unconfirmed"):
                    await ada.update_metadata({"name": "Joan"})
                proxy.accept()
                assert await until(observer, PeerUpdated) == [PeerUpdated(ada.self_id, {"name": "Joan"})]
                await until(ada, PeerUpdated)
                with pytest.raises(NotUpdated, match="invalid_metadata"):
                    await ada.update_metadata({"name": "x" * 10_000})
                assert observer.peers == {ada.self_id: {"name": "Joan"}}

    with running([*RESUMING, "--metadata-updates"]) as server, fault_proxy(server.port) as proxy:
        asyncio.run(scenario(server.url + "names", proxy))


TOTAL, CUTS = 1_000, 20


async def send_over_cuts(ada: Signaling, target: str, proxy: FaultProxy) -> None:
    for number in range(TOTAL):
        if number % (TOTAL // CUTS) == TOTAL // CUTS // 2:
            # While the message is under way.
            asyncio.get_running_loop().call_soon(cut, proxy, number)
        while not await delivered(ada, target, number):
            pass


def cut(proxy: FaultProxy, number: int) -> None:
    if number % 100 < 50:
        # For a while no connection gets through.
        proxy.refuse()
        asyncio.get_running_loop().call_later(0.05, proxy.accept)
    proxy.cut()


async def delivered(ada: Signaling, target: str, number: int) -> bool:
    try:
        await ada.deliver("ice-candidate", target, number)
    except NotDelivered as error:
        if error.code != "dropped":
            raise
        return False
    return True


async def hear_candidates(ben: Signaling) -> tuple[list[int], int]:
    """Return the payloads of all candidates, and how often the session was resumed meanwhile."""
    received, resumed = [], 0
    while len(received) < TOTAL:
        message = await anext(ben)
        assert isinstance(message, Welcome | IceCandidate)
        if isinstance(message, Welcome):
            resumed += message.resumed
        else:
            received.append(message.payload)
    return received, resumed


def test_a_thousand_messages_over_twenty_cuts_arrive_once_and_in_order(server: Server) -> None:
    async def scenario(url: str, proxy: FaultProxy) -> None:
        async with joined(url) as observer:
            through = f"ws://127.0.0.1:{proxy.port}/ws/thousand"
            async with joined(through) as ada, joined(through) as ben:
                first = (ada.self_id, ben.self_id)
                sending = asyncio.create_task(send_over_cuts(ada, ben.self_id, proxy))
                received, resumed = await hear_candidates(ben)
                await sending
                assert received == list(range(TOTAL))
                assert resumed == CUTS
                assert (ada.self_id, ben.self_id) == first
                assert len(await until(observer, PeerJoined)) + len(await until(observer, PeerJoined)) == 2
            assert {type(await anext(observer)), type(await anext(observer))} == {PeerLeft}

    with fault_proxy(server.port) as proxy:
        asyncio.run(asyncio.wait_for(scenario(server.url + "thousand", proxy), SECONDS))


def test_a_burst_sent_without_waiting_survives_a_cut(server: Server) -> None:
    async def scenario(url: str, proxy: FaultProxy) -> None:
        async with joined(url) as ben:
            async with joined(f"ws://127.0.0.1:{proxy.port}/ws/burst") as ada:
                for number in range(100):
                    if number == 50:
                        proxy.cut()
                    await ada.send("ice-candidate", ben.self_id, number)
                await until(ben, PeerJoined)
                assert [(await anext(ben)).payload for _ in range(100)] == list(range(100))

    with fault_proxy(server.port) as proxy:
        asyncio.run(scenario(server.url + "burst", proxy))


def test_without_reconnect_a_loss_ends_the_iteration(server: Server) -> None:
    async def scenario(url: str, proxy: FaultProxy) -> None:
        async with joined(f"ws://127.0.0.1:{proxy.port}/ws/lost", reconnect=False) as ada:
            proxy.cut()
            with pytest.raises(Lost):
                await anext(ada)

    with fault_proxy(server.port) as proxy:
        asyncio.run(scenario(server.url + "lost", proxy))


def test_what_is_refused_for_good_is_not_asked_again(server: Server) -> None:
    async def scenario(url: str) -> None:
        with pytest.raises(Refused, match="404"):
            async with join(url + "a/b"):
                pass

    asyncio.run(asyncio.wait_for(scenario(server.url), SECONDS))


def test_a_server_that_is_asked_too_often_is_asked_again_after_the_time_that_it_names() -> None:
    async def scenario(url: str) -> None:
        async with joined(url):
            started = asyncio.get_running_loop().time()
            async with joined(url):
                # The backoff alone would have asked again after 20 ms.
                assert asyncio.get_running_loop().time() - started >= 0.9
        server.wait_for(": 429 ")
        assert server.log.count(": 429 ") == 1

    with running(["--port=0", "--max-connection-rate=0.2", "--connection-burst=1"]) as server:
        asyncio.run(scenario(server.url + "room"))


def test_only_a_server_whose_certificate_names_its_host_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(url: str) -> None:
        async with joined(url, reconnect=False):
            pass

    cases = [(["localhost"], ""), ([], "mismatch|not valid for"), (["example.com"], "not valid for")]
    trusted, listen = tmp_path / "trusted.pem", list[str]()
    with trusted.open("wb") as bundle:
        for number, (names, _) in enumerate(cases):
            pem = tmp_path / f"{number}.pem"
            pem.write_bytes(self_signed(names))
            bundle.write(pem.read_bytes())
            listen += ["--listen", f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"]
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with running(listen) as server:
        for _, problem in cases:
            port = server.next_line(r"listening on 127\.0\.0\.1:(\d+)")[1]
            with pytest.raises(Lost, match=problem) if problem else nullcontext():
                asyncio.run(scenario(f"wss://localhost:{port}/ws/room"))
