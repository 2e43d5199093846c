"""Meshes of Python and of browsers through every loss of their signaling, in one topic.

After each loss, all peers know each other by their current ids, data flows anew on every pair, and a peer that joins
only then is connected to all. With a resume window, the peers have a secret as well. ``MESH_RESTARTS=10`` lets each
loss happen ten times, to meshes of Python alone, of browsers alone and of both, with the clients' own backoff.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest
from selenium import webdriver

from signaling.client import Backoff
from signaling.client.mesh import Mesh, MeshPeer, join
from tests.harness.fault_proxy import FaultProxy, fault_proxy
from tests.harness.redis import redis_running
from tests.harness.server import Node, Server, nodes
from tests.system.browser import chromium, run

RESTARTS = int(os.environ.get("MESH_RESTARTS", "1"))
SECONDS = 60
CONNECTED_SECONDS = 5.0
"""From the moment at which the server is there again."""
MESHES = {
    "mixed": ["python", "page", "python", "page"],
    **({"python": ["python"] * 3, "pages": ["page"] * 3} if RESTARTS > 1 else {}),
}
# In a short run, the machine's load is not to count as the clients' backoff.
BACKOFF = (0.5, 30.0) if RESTARTS > 1 else (0.1, 1.0)

# By resume window: a secret takes part in each kind of loss once.
SECRETS = {0: None, 10: "correct horse battery staple"}

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.timeout(60 + 30 * RESTARTS),
]

JOIN = """
const [name, url, [first, most], secret] = given;
const { join, Mesh } = await import("/signaling.js");
const backoff = { first: 1000 * first, most: 1000 * most };
const signaling = join(url, { metadata: { name }, backoff, ...(secret && { secret }) });
const member = { signaling, mesh: new Mesh(signaling), heard: [], removed: 0 };
member.mesh.addEventListener("data", ({ detail: { data } }) => member.heard.push(data));
member.mesh.addEventListener("peer-removed", () => member.removed++);
(window.members ??= {})[name] = member;
await signaling.ready;
"""
STATE = """
const { signaling, mesh, heard, removed } = members[given[0]];
const peers = [...mesh.peers.values()].filter(({ channel }) => channel.readyState === "open").map(({ id }) => id);
return [signaling.selfId, peers, heard, removed];
"""


class PythonMember:
    """A Python mesh."""

    def __init__(self, name: str, secret: str | None) -> None:
        self.name = name
        self.secret = secret
        self._heard: list[str] = []
        self._removed = 0

    async def enter(self, url: str, stack: AsyncExitStack) -> None:
        """Join, and leave at the end."""
        joining = join(url, metadata={"name": self.name}, backoff=Backoff(*BACKOFF), secret=self.secret)
        self._signaling = await stack.enter_async_context(joining)
        self._mesh = Mesh(self._signaling, self._prepare, on_data=lambda _, data: self._heard.append(str(data)))
        task = asyncio.create_task(self._mesh.run())
        stack.push_async_callback(self._end, task)

    def _prepare(self, peer: MeshPeer) -> None:
        def changed() -> None:
            self._removed += peer.connection.connectionState == "closed"

        peer.connection.on("connectionstatechange", changed)

    async def _end(self, task: asyncio.Task[None]) -> None:
        await self._signaling.leave()
        await task

    async def state(self) -> tuple[str, set[str], list[str], int]:
        """Return its id, the peers with an open channel, what it has heard, and how many connections have ended."""
        peers = self._mesh.peers.values()
        is_open = {peer.id for peer in peers if peer.channel is not None and peer.channel.readyState == "open"}
        return self._signaling.self_id, is_open, self._heard, self._removed

    async def say(self, text: str) -> None:
        """Send to all."""
        self._mesh.broadcast(text)


class PageMember:
    """A mesh in a browser."""

    def __init__(self, name: str, page: webdriver.Chrome, secret: str | None) -> None:
        self.name = name
        self.secret = secret
        self._page = page

    async def enter(self, url: str, stack: AsyncExitStack) -> None:
        await asyncio.to_thread(run, self._page, JOIN, self.name, url, BACKOFF, self.secret)
        stack.push_async_callback(self._run, "members[given[0]].signaling.leave();")

    async def state(self) -> tuple[str, set[str], list[str], int]:
        self_id, peers, heard, removed = await self._run(STATE)
        return self_id, set(peers), heard, removed

    async def say(self, text: str) -> None:
        await self._run("members[given[0]].mesh.broadcast(given[1]);", text)

    async def _run(self, body: str, *arguments: str) -> Any:
        return await asyncio.to_thread(run, self._page, body, self.name, *arguments)


Member = PythonMember | PageMember


@asynccontextmanager
async def mesh(
    kinds: Sequence[str], urls: Sequence[str], page: webdriver.Chrome, secret: str | None = None
) -> AsyncIterator[list[Member]]:
    """Let members join, each by its URL, and connect to each other."""
    members: list[Member] = []
    async with asyncio.timeout(SECONDS + 30 * RESTARTS), AsyncExitStack() as stack:
        for number, (kind, url) in enumerate(zip(kinds, urls, strict=True)):
            name = f"{kind} {number}"
            member: Member = PythonMember(name, secret) if kind == "python" else PageMember(name, page, secret)
            await member.enter(url, stack)
            members.append(member)
        await talk(members)
        yield members


TALKS = iter(range(1_000_000))


async def talk(members: Sequence[Member], *, ghosts: bool = False) -> None:
    """Wait until all members have each other by their ids, and let each send something that all others receive.

    Args:
        ghosts: whether members may be known by an id that they had before.
    """
    while True:
        states = [await member.state() for member in members]
        ids = {state[0] for state in states}
        if all(len(peers) == len(ids) - 1 and (ghosts or peers < ids) for _, peers, _, _ in states):
            break
        await asyncio.sleep(0.02)  # There is no event for the state of all together.
    texts = {member.name: f"{member.name} says {next(TALKS)}" for member in members}
    for member in members:
        await member.say(texts[member.name])
    for member in members:
        wanted = set(texts.values()) - {texts[member.name]}
        while not wanted <= set((await member.state())[2]):
            await asyncio.sleep(0.02)


async def talk_in_time(members: Sequence[Member], url: str, *, ghosts: bool = False) -> None:
    """Do so within the seconds that are documented, together with one more Python member and one that has joined."""
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        newcomer = PythonMember("newcomer", members[0].secret)
        await newcomer.enter(url, stack)
        await talk([*members, newcomer], ghosts=ghosts)
        seconds = time.monotonic() - started
        assert seconds < CONNECTED_SECONDS, seconds
    if not ghosts:
        await talk(members)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(params=MESHES.values(), ids=MESHES)
def kinds(request: pytest.FixtureRequest) -> list[str]:
    return request.param


@contextmanager
def node(*options: str) -> Iterator[Node]:
    """Run a server that can be killed and started again on its port."""
    made = Node("--serve-client", *options)
    made.start()
    try:
        yield made
    finally:
        made.end()


def url_of(port: int) -> str:
    return f"ws://127.0.0.1:{port}/ws/room"


def open_page(browser: webdriver.Chrome, port: int) -> None:
    browser.get(f"http://127.0.0.1:{port}/healthz")


async def ended(members: Sequence[Member]) -> list[int]:
    return [(await member.state())[3] for member in members]


@pytest.mark.parametrize("window", [0, 10])
def test_all_are_connected_again_after_the_server_was_killed(
    browser: webdriver.Chrome, kinds: list[str], window: int
) -> None:
    async def scenario(server: Node) -> None:
        url = url_of(server.port)
        async with mesh(kinds, [url] * len(kinds), browser, SECRETS[window]) as members:
            before = await ended(members)
            for _ in range(RESTARTS):
                await asyncio.to_thread(server.end)
                await asyncio.to_thread(server.start)
                await talk_in_time(members, url)
            # The connections to each other went on; those to the newcomer have ended.
            assert await ended(members) == [number + RESTARTS for number in before]

    with node(f"--resume-window={window}") as server:
        open_page(browser, server.port)
        asyncio.run(scenario(server))


@pytest.mark.parametrize("window", [0, 10])
def test_all_are_connected_again_after_one_lost_its_connection(
    browser: webdriver.Chrome, kinds: list[str], window: int
) -> None:
    async def scenario(server: Node, proxy: FaultProxy) -> None:
        url = url_of(server.port)
        for victim in dict.fromkeys(kinds):
            urls = [url] * len(kinds)
            urls[kinds.index(victim)] = url_of(proxy.port)
            async with mesh(kinds, urls, browser, SECRETS[window]) as members:
                before = await ended(members)
                for _ in range(RESTARTS):
                    reconnected = proxy.accepted + 1
                    proxy.cut()
                    while proxy.accepted < reconnected:
                        await asyncio.sleep(0.02)
                    await talk_in_time(members, url)
                assert await ended(members) == [number + RESTARTS for number in before]

    with node(f"--resume-window={window}") as server, fault_proxy(server.port) as proxy:
        open_page(browser, server.port)
        asyncio.run(scenario(server, proxy))


def test_all_are_connected_again_after_a_node_was_killed(browser: webdriver.Chrome, kinds: list[str]) -> None:
    async def scenario(first: Server, second: Server, proxy: FaultProxy) -> None:
        url = url_of(second.port)
        # Every other member is connected to the node that is killed.
        urls = [url_of(proxy.port) if number % 2 else url for number in range(len(kinds))]
        async with mesh(kinds, urls, browser) as members:
            proxy.aim_at(second.port)
            first.process.kill()
            await talk_in_time(members, url, ghosts=True)
            # Its peers are in the topic until the other node evicts it.
            await talk(members)

    with redis_running() as redis:
        with nodes([redis.url] * 2, "--serve-client") as (first, second), fault_proxy(first.port) as proxy:
            open_page(browser, second.port)
            asyncio.run(scenario(first, second, proxy))
