"""Peers that can only meet through a TURN server get there with the ice servers of the welcome: a real coturn."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from aioice.stun import TransactionFailed
from aioice.turn import TurnClientUdpProtocol
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from signaling.client import IceServers, Signaling, join
from signaling.client.mesh import Mesh, MeshPeer
from tests.harness.server import Server, running
from tests.programs import need
from tests.system.browser import chromium, wait_until
from tests.system.coturn import LOOPBACK, coturn

SECRET = "not much of a secret"
SECONDS = 120
# Of credentials that expire.
TTL_SECONDS = 6

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

PAGE = """
window.received = []; window.pairs = [];
const [url] = arguments, socket = new WebSocket(url);
let pc, other;
const send = (type, payload) => socket.send(JSON.stringify({type, to: other, payload}));
socket.onmessage = async ({data}) => {
  const message = JSON.parse(data);
  if (message.type === "welcome") {
    pc = new RTCPeerConnection({iceServers: message.iceServers, iceTransportPolicy: "relay"});
    pc.onicecandidate = ({candidate}) => candidate && send("ice-candidate", candidate.toJSON());
  } else if (message.type === "peer-list") {
    other = message.peers[0].id;
    const channel = pc.createDataChannel("chat");
    channel.onopen = () => channel.send("hello");
    channel.onmessage = async ({data}) => {
      const stats = await pc.getStats();
      for (const report of stats.values()) {
        if (report.type !== "candidate-pair" || !report.nominated) continue;
        pairs.push(stats.get(report.localCandidateId).candidateType);
      }
      received.push(data);
    };
    await pc.setLocalDescription();
    send("offer", pc.localDescription.toJSON());
  } else if (message.type === "answer") await pc.setRemoteDescription(message.payload);
};
"""


@contextmanager
def both(folder: Path, *options: str) -> Iterator[tuple[Server, Server]]:
    """Run coturn, and a server that knows its secret."""
    secret = folder / "turn-secret"
    secret.write_text(SECRET)
    with coturn(folder, SECRET, *LOOPBACK) as turn:
        uri = f"turn:127.0.0.1:{turn.port}?transport=udp"
        named = ["--port=0", f"--turn-secret-file={secret}", f"--turn-uri={uri}", *options]
        with running(named) as server:
            yield server, turn


class Member:
    """A peer that speaks with the others only over relays, and says hello."""

    def __init__(self, signaling: Signaling) -> None:
        self.signaling = signaling
        self.received: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.mesh = Mesh(
            signaling,
            self._prepare,
            channel=False,
            iceTransportPolicy=RTCIceTransportPolicy.RELAY,
        )
        self.candidates: list[str] = []

    async def run(self) -> None:
        await self.mesh.run()

    def _prepare(self, peer: MeshPeer) -> None:
        connection = peer.connection

        def use(channel) -> None:
            @channel.on("message")
            def on_message(text: str) -> None:
                sdp = connection.localDescription.sdp
                self.candidates = re.findall(r"a=candidate:.* typ (\w+)", sdp)
                if not self.received.done():
                    self.received.set_result(text)

            if channel.readyState == "open":
                channel.send("hello")
            else:
                channel.on("open", lambda: channel.send("hello"))

        connection.on("datachannel", use)
        if peer.offers:
            use(connection.createDataChannel("chat"))


def assert_relayed_for(turn: Server, peer_id: str) -> None:
    """Assert that coturn opened a relay and a way to a peer for a credential of ``peer_id``."""
    for step in ("ALLOCATE", r"(?:CHANNEL_BIND|CREATE_PERMISSION)"):
        turn.wait_for(rf"user <\d+:{peer_id}>: incoming packet {step} processed, success")


def test_two_aiortc_peers_meet_over_coturn_alone(tmp_path: Path) -> None:
    async def scenario(url: str) -> list[str]:
        async with asyncio.timeout(SECONDS), join(url) as first, join(url) as second:
            members = [Member(first), Member(second)]
            tasks = [asyncio.create_task(member.run()) for member in members]
            assert await asyncio.gather(*(member.received for member in members)) == ["hello", "hello"]
            assert {kind for member in members for kind in member.candidates} == {"relay"}
            ids = [first.self_id, second.self_id]
            await asyncio.gather(first.leave(), second.leave())
            await asyncio.gather(*tasks)
        return ids

    with both(tmp_path) as (server, turn):
        for peer_id in asyncio.run(scenario(server.url + "room")):
            assert_relayed_for(turn, peer_id)


def test_a_chromium_and_aiortc_meet_over_coturn_alone(tmp_path: Path) -> None:
    async def scenario(server: Server, driver) -> list[str]:
        async with asyncio.timeout(SECONDS), join(server.url + "room") as signaling:
            member = Member(signaling)
            task = asyncio.create_task(member.run())
            await asyncio.to_thread(driver.execute_script, PAGE, server.url + "room")
            assert await member.received == "hello"
            await asyncio.to_thread(wait_until, driver, "received.includes('hello')")
            assert set(member.candidates) == {"relay"}
            ids = [signaling.self_id, *signaling.peers]
            await signaling.leave()
            await task
        return ids

    with both(tmp_path) as (server, turn), chromium(tmp_path / "profile") as driver:
        driver.get(f"http://127.0.0.1:{server.port}/healthz")
        for peer_id in asyncio.run(scenario(server, driver)):
            assert_relayed_for(turn, peer_id)
        assert set(driver.execute_script("return pairs")) == {"relay"}


def test_an_expired_credential_is_refused_and_the_renewed_one_connects(tmp_path: Path) -> None:
    async def renewal_after(signaling: Signaling, username: str) -> None:
        """Wait for a credential that is made after the end of another one."""
        async for message in signaling:
            ends = int(signaling.ice_servers[0]["username"].split(":")[0])
            if isinstance(message, IceServers) and ends > int(username.split(":", maxsplit=1)[0]) + TTL_SECONDS:
                return

    async def scenario(url: str, turn: Server) -> None:
        async with asyncio.timeout(SECONDS), join(url) as signaling:
            [expired] = signaling.ice_servers
            await renewal_after(signaling, expired["username"])
            assert await relays(expired) == []
            turn.wait_for(rf"user <{expired['username']}>: incoming packet message processed, error 401: Unauthorized")
            assert await relays(signaling.ice_servers[0]) == ["relay"]
            assert_relayed(turn, signaling.ice_servers[0]["username"])

    def assert_relayed(turn: Server, username: str) -> None:
        turn.wait_for(rf"user <{username}>: incoming packet ALLOCATE processed, success")

    with both(tmp_path, f"--turn-ttl={TTL_SECONDS}") as (server, turn):
        asyncio.run(scenario(server.url + "room", turn))


async def relays(server: dict) -> list[str]:
    """Return the types of the candidates that a connection gathers with one ICE server, and only by relay."""
    configuration = RTCConfiguration(
        iceServers=[RTCIceServer(**server)], iceTransportPolicy=RTCIceTransportPolicy.RELAY
    )
    connection = RTCPeerConnection(configuration)
    connection.createDataChannel("chat")
    await connection.setLocalDescription(await connection.createOffer())
    found = re.findall(r"a=candidate:.* typ (\w+)", connection.localDescription.sdp)
    await connection.close()
    return found


@pytest.mark.parametrize(("options", "arrives"), [((), False), (LOOPBACK, True)])
def test_the_shipped_configuration_relays_to_no_private_address(
    tmp_path: Path, options: tuple[str, ...], arrives: bool
) -> None:
    with coturn(tmp_path, SECRET, *options) as turn, running(turn_options(tmp_path, turn)) as server:
        [ice_server] = asyncio.run(ice_servers_of(server.url + "room"))
        command = [need("turnutils_uclient"), "-y", "-n", "1", "-m", "1", "-p", str(turn.port)]
        command += ["-u", ice_server["username"], "-w", ice_server["credential"], "127.0.0.1"]
        with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
            try:
                turn.wait_for("CREATE_PERMISSION processed, success|error 403: Forbidden IP")
            finally:
                client.kill()
        assert ("403: Forbidden IP" not in turn.log) == arrives


def test_the_shipped_configuration_knows_an_ipv4_address_by_its_other_names(tmp_path: Path) -> None:
    with coturn(tmp_path, SECRET, "--relay-ip=::1") as turn, running(turn_options(tmp_path, turn)) as server:
        [ice_server] = asyncio.run(ice_servers_of(server.url + "room"))
        command = [need("turnutils_uclient"), "-x", "-n", "1", "-m", "1", "-p", str(turn.port)]
        command += ["-u", ice_server["username"], "-w", ice_server["credential"]]
        for peer, outcome in (
            ("2002:a00:1::1", "CHANNEL_BIND processed, error 403: Forbidden IP"),
            ("2606:4700::1", "CHANNEL_BIND processed, success"),
        ):
            with subprocess.Popen([*command, "-e", peer, "127.0.0.1"], stdout=subprocess.DEVNULL) as client:
                try:
                    turn.wait_for(outcome)
                finally:
                    client.kill()


def test_the_shipped_configuration_relays_to_public_ipv4_addresses(tmp_path: Path) -> None:
    async def allowed(server: dict, port: int, addresses: list[str]) -> list[str]:
        """Return the addresses to which coturn opens a channel; nothing is sent to them."""
        _, client = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: TurnClientUdpProtocol(
                ("127.0.0.1", port),
                username=server["username"],
                password=server["credential"],
                lifetime=600,
                channel_refresh_time=600,
            ),
            remote_addr=("127.0.0.1", port),
        )
        await client.connect()
        opened = []
        for channel, address in enumerate(addresses, 0x4000):
            with suppress(TransactionFailed):
                await client.channel_bind(channel, (address, 9))
                opened.append(address)
        await client.delete()
        return opened

    public, private = ["1.0.0.1", "223.255.255.254"], ["0.0.0.0", "0.0.0.1", "10.0.0.1", "169.254.169.254"]
    with coturn(tmp_path, SECRET) as turn, running(turn_options(tmp_path, turn)) as server:
        [ice_server] = asyncio.run(ice_servers_of(server.url + "room"))
        assert asyncio.run(allowed(ice_server, turn.port, public + private)) == public


def turn_options(folder: Path, turn: Server) -> list[str]:
    secret = folder / "turn-secret"
    secret.write_text(SECRET)
    return ["--port=0", f"--turn-secret-file={secret}", f"--turn-uri=turn:127.0.0.1:{turn.port}"]


async def ice_servers_of(url: str) -> list[dict]:
    async with join(url) as signaling:
        return signaling.ice_servers
