"""Meshes of Python and of browsers through every loss of their signaling or of their paths, in one topic.

After each loss, all peers know each other by their current ids, data flows anew on every pair, and a peer that joins
only then is connected to all. With a resume window, the peers have a secret as well. ``MESH_RESTARTS=10`` lets each
loss happen ten times, to meshes of Python alone, of browsers alone and of both.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aioice.ice
import pytest
from selenium import webdriver

from signaling.client import Backoff
from signaling.client.mesh import Mesh, MeshPeer, join
from tests import issuer
from tests.harness.fault_proxy import FaultProxy, fault_proxy
from tests.harness.redis import redis_running
from tests.harness.server import Node, Server, nodes
from tests.system.browser import run

RESTARTS = int(os.environ.get("MESH_RESTARTS", "1"))
SECONDS = 120
MESHES = {
    # Every kind of pair, as the peer that joins last is a Python one.
    "mixed": ["python", "page", "page"],
    **({"python": ["python"] * 3, "pages": ["page"] * 3} if RESTARTS > 1 else {}),
}
TOKEN_SECONDS = 10
# With the most of 30 s, one loss after the other would be a server that fails all the time, which clients spare.
BACKOFF = (0.5, 2.0) if RESTARTS > 1 else (0.1, 1.0)

# By resume window: a secret takes part in each kind of loss once.
SECRETS = {0: None, 10: "correct horse battery staple"}

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.timeout(300 + 30 * RESTARTS),
]

JOIN = """
const [name, url, [first, most], secret, tokens] = given;
const { join, Mesh } = await import("/signaling.js");
let used = -1;
const token = tokens.length ? () => {
  const current = tokens.findIndex(([expires]) => 1000 * expires > Date.now());
  if (current === used) throw new Error("there is no newer token yet");
  return tokens[used = current][1];
} : undefined;
const backoff = { first: 1000 * first, most: 1000 * most };
const signaling = join(url, { metadata: { name }, backoff, token, ...(secret && { secret }) });
const member = { signaling, mesh: new Mesh(signaling), heard: [], removed: 0 };
member.mesh.addEventListener("data", ({ detail: { data } }) => member.heard.push(data));
member.mesh.addEventListener("peer-removed", ({ detail: { metadata } }) => {
  if (metadata.name !== "newcomer") member.removed++;
});
(window.members ??= {})[name] = member;
await signaling.ready;
"""
STATE = """
const { signaling, mesh, heard, removed } = members[given[0]];
const peers = [...mesh.peers.values()].filter(({ channel }) => channel.readyState === "open").map(({ id }) => id);
return [signaling.selfId, peers, heard, removed];
"""


Tokens = list[tuple[int, str]]
"""When each expires, in seconds since 1970, in order."""


class PythonMember:
    """A Python mesh."""

    def __init__(self, name: str, secret: str | None, tokens: Tokens) -> None:
        self.name = name
        self.secret = secret
        self._tokens = tokens
        self._used = -1
        self._heard: list[str] = []
        self._removed = 0

    async def enter(self, url: str, stack: AsyncExitStack) -> None:
        """Join, and leave at the end."""
        token = self._token if self._tokens else None
        how = {"token": token, "secret": self.secret, "backoff": Backoff(*BACKOFF)}
        self._signaling = await stack.enter_async_context(join(url, metadata={"name": self.name}, **how))
        self._mesh = Mesh(self._signaling, self._prepare, on_data=lambda _, data: self._heard.append(str(data)))
        task = asyncio.create_task(self._mesh.run())
        stack.push_async_callback(self._end, task)

    def _token(self) -> str:
        now = time.time()
        current = next(number for number, (expires, _) in enumerate(self._tokens) if expires > now)
        if current == self._used:
            raise LookupError("there is no newer token yet")
        self._used = current
        return self._tokens[current][1]

    def _prepare(self, peer: MeshPeer) -> None:
        def changed() -> None:
            if peer.metadata["name"] != "newcomer":
                self._removed += peer.connection.connectionState == "closed"

        peer.connection.on("connectionstatechange", changed)

    async def _end(self, task: asyncio.Task[None]) -> None:
        await self._signaling.leave()
        await task

    async def state(self) -> tuple[str, set[str], list[str], int]:
        """Return its id, the peers with an open channel, what it has heard, and how many members it has lost."""
        peers = self._mesh.peers.values()
        is_open = {peer.id for peer in peers if peer.channel is not None and peer.channel.readyState == "open"}
        return self._signaling.self_id, is_open, self._heard, self._removed

    async def say(self, text: str) -> None:
        """Send to all."""
        self._mesh.broadcast(text)


class PageMember:
    """A mesh in a browser."""

    def __init__(self, name: str, secret: str | None, tokens: Tokens, page: webdriver.Chrome) -> None:
        self.name = name
        self.secret = secret
        self._tokens = tokens
        self._page = page

    async def enter(self, url: str, stack: AsyncExitStack) -> None:
        await asyncio.to_thread(run, self._page, JOIN, self.name, url, BACKOFF, self.secret, self._tokens)
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
    kinds: Sequence[str],
    urls: Sequence[str],
    page: webdriver.Chrome,
    secret: str | None = None,
    mint: Callable[[str], Tokens] = lambda _: [],
) -> AsyncIterator[list[Member]]:
    """Let members join, each by its URL, and connect to each other.

    Args:
        mint: returns the tokens of a member; without any, it presents none.
    """
    members: list[Member] = []
    async with asyncio.timeout(SECONDS + 30 * RESTARTS), AsyncExitStack() as stack:
        for number, (kind, url) in enumerate(zip(kinds, urls, strict=True)):
            name = f"{kind} {number}"
            python = kind == "python"
            made = PythonMember(name, secret, mint(name)) if python else PageMember(name, secret, mint(name), page)
            await made.enter(url, stack)
            members.append(made)
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


async def talk_with_a_newcomer(
    members: Sequence[Member], url: str, *, ghosts: bool = False, tokens: Tokens | None = None
) -> None:
    """Do so together with one more Python member, and without it again."""
    async with AsyncExitStack() as stack:
        newcomer = PythonMember("newcomer", members[0].secret, tokens or [])
        await newcomer.enter(url, stack)
        await talk([*members, newcomer], ghosts=ghosts)
    if not ghosts:
        await talk(members)


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


@pytest.mark.parametrize("window", [0, 10] if RESTARTS > 1 else [10])
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
                await talk_with_a_newcomer(members, url)
            # The connections to each other went on.
            assert await ended(members) == before

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
                    await talk_with_a_newcomer(members, url)
                assert await ended(members) == before

    with node(f"--resume-window={window}") as server, fault_proxy(server.port) as proxy:
        open_page(browser, server.port)
        asyncio.run(scenario(server, proxy))


@pytest.mark.parametrize("window", [0, 10])
def test_all_are_connected_again_after_their_tokens_expired(
    browser: webdriver.Chrome, kinds: list[str], window: int, tmp_path: Path
) -> None:
    async def scenario(server: Node) -> None:
        url = url_of(server.port)
        started = int(time.time()) + 1
        ends = [started + TOKEN_SECONDS * number for number in range(1, RESTARTS + 1)]

        def mint(name: str) -> Tokens:
            # The tokens set the metadata, and the peers are recognised all the same.
            own = {"topics": ["room"], "metadata": {"name": name}}
            return [(end, issuer.token(own, sub=name, exp=end)) for end in [*ends, started + 3_600]]

        async with mesh(kinds, [url] * len(kinds), browser, SECRETS[window], mint) as members:
            before = await ended(members)
            first_ids = {(await member.state())[0] for member in members}
            for end in ends:
                # There is no event for a connection that ended and is there again.
                await asyncio.sleep(end - time.time() + 0.1)
                await talk_with_a_newcomer(members, url, tokens=mint("newcomer"))
            assert await ended(members) == before
            ids = {(await member.state())[0] for member in members}
            assert ids == first_ids if window else ids.isdisjoint(first_ids)

    with node(f"--resume-window={window}", f"--auth=jwt:{issuer.key_file(tmp_path)}") as server:
        open_page(browser, server.port)
        asyncio.run(scenario(server))


def test_all_are_connected_again_after_a_node_was_killed(browser: webdriver.Chrome, kinds: list[str]) -> None:
    async def scenario(first: Server, second: Server, proxy: FaultProxy) -> None:
        url = url_of(second.port)
        # Every other member is connected to the node that is killed.
        urls = [url_of(proxy.port) if number % 2 else url for number in range(len(kinds))]
        async with mesh(kinds, urls, browser) as members:
            proxy.aim_at(second.port)
            first.process.kill()
            await talk_with_a_newcomer(members, url, ghosts=True)
            if RESTARTS > 1:
                # Its peers are in the topic until the other node evicts it, after ten seconds.
                await talk(members)

    with redis_running() as redis:
        with nodes([redis.url] * 2, "--serve-client") as (first, second), fault_proxy(first.port) as proxy:
            open_page(browser, second.port)
            asyncio.run(scenario(first, second, proxy))


class BreakablePath:
    """Between aiortc and everybody else: while it is broken, aiortc receives nothing, and what it sends is lost.

    aioice notices that after some seconds here, instead of half a minute.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_broken = False
        monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2)
        for name in ("datagram_received", "send_stun"):
            self._lose(monkeypatch, name)

    def _lose(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        protocol = aioice.ice.StunProtocol
        original = getattr(protocol, name)

        def passed(receiver: object, *arguments: object) -> None:
            if not self.is_broken:
                original(receiver, *arguments)

        monkeypatch.setattr(protocol, name, passed)


async def talk_again(members: Sequence[Member]) -> None:
    """Let each member send until all others have heard it: what goes into a connection that is replaced is lost."""
    texts = {member.name: f"{member.name} is back" for member in members}
    while True:
        for member in members:
            await member.say(texts[member.name])
        heard = [{*(await member.state())[2], texts[member.name]} for member in members]
        if all(each >= set(texts.values()) for each in heard):
            return
        await asyncio.sleep(0.1)


def test_all_are_connected_again_after_the_paths_between_them_broke(
    browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = BreakablePath(monkeypatch)
    # Between a page and a program, either offers once. The signaling goes on.
    kinds = ["python", "page", "python"]

    async def scenario(server: Node) -> None:
        async with mesh(kinds, [url_of(server.port)] * len(kinds), browser) as members:
            programs = [member for member in members if isinstance(member, PythonMember)]
            before = sum(await ended(programs))
            path.is_broken = True
            # Each of them has a connection to two others.
            while sum(await ended(programs)) < before + 2 * len(programs):
                await asyncio.sleep(0.05)
            path.is_broken = False
            await talk_again(members)

    with node() as server:
        open_page(browser, server.port)
        asyncio.run(scenario(server))
