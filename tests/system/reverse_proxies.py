"""Real proxies with the configurations of ``deploy/``, and clients that come back as browsers do."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.harness.certificates import self_signed
from tests.harness.server import Node, Server, launch, start
from tests.programs import free_port, need

DEPLOY = Path(__file__).parents[2] / "deploy"
PATIENCE_SECONDS = 60.0
SECRET = "secret-of-a-session"
QUERY = f"?resume={SECRET}&seen=0"

_RECONNECT_SECONDS = 0.05
# As sd_listen_fds(3) finds sockets: from descriptor 3 up, and meant for this very process.
_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""
_NODES = ("10.0.0.11:8081", "10.0.0.12:8081")
_NGINX = """
daemon off;
pid {folder}/nginx.pid;
worker_processes 2;
worker_shutdown_timeout 1s;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/signaling.conf;
}}
"""
# Caddy would ask for a certificate, install its own authority and listen on port 80.
_CADDY = "\n{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n"


def topics_at(node: Node) -> set[str]:
    """Return the topics that peers joined at a node since its last start."""
    return {line.split(" joined ")[1].split("'")[1] for line in node.server.lines if " joined " in line}


class ActivatedNode(Node):
    """A node behind a socket that stays open from one process to the next, as systemd keeps it."""

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.socket.getsockname()[1]

    def end(self) -> None:
        super().end()
        self.socket.close()

    def _launch(self) -> Server:
        return start_activated(self.socket, "--listen=systemd:domain=INET:index=0", *self._options)


def start_activated(listening: socket.socket, *options: str) -> Server:
    """Start a server on a socket of ours, at once, as systemd does with a service that it restarts."""
    # systemd-socket-activate takes a socket over from its parent too. It waits for a first connection.
    activate = [need("systemd-socket-activate"), "--fdname=signaling", str(Path(sys.executable).parent / "twistd")]
    command = [sys.executable, "-c", _HAND_OVER, str(listening.fileno()), *activate]
    with socket.create_connection(listening.getsockname()):
        server = start(options, command=command, pass_fds=(listening.fileno(),))
        server.wait_for("Execing")
    return server


@contextmanager
def two_nodes(*options: str, kind: type[Node] = Node, **how: Any) -> Iterator[tuple[Node, Node]]:
    with ExitStack() as stack:
        nodes = []
        for _ in range(2):
            node = kind("--trusted-proxy=127.0.0.1", *options, **how)
            stack.callback(node.end)
            node.start()
            nodes.append(node)
        yield nodes[0], nodes[1]


class ReverseProxy:
    """A proxy that runs one of the configurations, over TLS.

    Args:
        name: ``haproxy``, ``nginx`` or ``caddy``.
        folder: an empty one, for its files.
        changes: replaced in the configuration, which has to have each key.
    """

    def __init__(self, name: str, folder: Path, nodes: Sequence[str], changes: dict[str, str] | None = None) -> None:
        self.name = name
        self.port = free_port()
        self._folder = folder
        self._program = need(name)
        (folder / "signaling.pem").write_bytes(self_signed())
        text = getattr(self, f"_fill_{name}")(dict(zip(_NODES, nodes, strict=True)) | (changes or {}))
        self.file = folder / "signaling.conf"
        self.file.write_text(text)
        self.server: Server | None = None

    # The configurations, with the places of this machine

    def _fill_haproxy(self, changes: dict[str, str]) -> str:
        here = {
            ":443 ssl crt /etc/haproxy/": f"127.0.0.1:{self.port} ssl crt {self._folder}/",
            "127.0.0.1:10000": f"127.0.0.1:{free_port()}",
            "maxconn 50000": "maxconn 500",
            "inter 1s fastinter 250ms": "inter 200ms fastinter 50ms",
            # A slow machine is no reason to take a node for down.
            "timeout check 1s": "timeout check 30s",
        }
        return filled("haproxy.cfg", here | changes)

    def _fill_nginx(self, changes: dict[str, str]) -> str:
        (self._folder / "nginx.conf").write_text(_NGINX.format(folder=self._folder))
        here = {
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            "    listen [::]:443 ssl;\n": "",
            "/etc/nginx/signaling.crt": f"{self._folder}/signaling.pem",
            "/etc/nginx/signaling.key": f"{self._folder}/signaling.pem",
            "/var/log/nginx/signaling.access.log": f"{self._folder}/access.log",
            "/var/log/nginx/signaling.error.log": f"{self._folder}/error.log",
            "fail_timeout=5s": "fail_timeout=1s",
        }
        return filled("nginx.conf", here | changes)

    def _fill_caddy(self, changes: dict[str, str]) -> str:
        pem = f"{self._folder}/signaling.pem"
        here = {
            "\n{\n": _CADDY,
            "\nsignaling.example.com {": f"\nhttps://localhost:{self.port} {{\n\ttls {pem} {pem}",
            "health_interval 1s": "health_interval 100ms",
            "health_timeout 1s": "health_timeout 30s",
            "lb_try_duration 5s": "lb_try_duration 500ms",
        }
        return filled("Caddyfile", here | changes)

    # The programs

    def _run(self, *arguments: str) -> Server:
        home = {"HOME": str(self._folder), "XDG_DATA_HOME": str(self._folder)}
        return launch([self._program, *arguments], env=home, cwd=self._folder, port=self.port)

    def _arguments(self) -> list[str]:
        return {
            "haproxy": ["-db", "-f", str(self.file)],
            "nginx": ["-e", "stderr", "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")],
            "caddy": ["run", "--adapter", "caddyfile", "--config", str(self.file)],
        }[self.name]

    def check(self) -> tuple[int, str]:
        """Let the program check its configuration; returns its exit status, and what it said."""
        arguments = self._arguments()
        checked = {
            "haproxy": ["-c", *arguments],
            "nginx": ["-t", *arguments],
            "caddy": ["validate", *arguments[1:]],
        }[self.name]
        checking = self._run(*checked)
        status = checking.process.wait(PATIENCE_SECONDS)
        checking.join()
        return status, checking.log

    def __enter__(self) -> Self:
        self.server = self._run(*self._arguments())
        try:
            self.server.wait_until_accepting()
        except BaseException:
            self.server.end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.server is not None
        # nginx's workers outlive a master that is killed.
        self.server.process.terminate()
        self.server.process.wait(PATIENCE_SECONDS)
        self.server.end()

    def reload(self) -> None:
        """Let nginx read its configuration anew."""
        assert self.server is not None
        self.server.process.send_signal(signal.SIGHUP)

    def wait_for(self, pattern: str) -> None:
        """Wait until the program prints it."""
        assert self.server is not None
        self.server.wait_for(pattern)

    def log(self) -> str:
        """Return all that it printed or wrote."""
        assert self.server is not None
        return self.server.log + "".join(path.read_text() for path in sorted(self._folder.glob("*.log")))

    # Its clients

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._folder / "signaling.pem"))
        # Clients in two threads: Python's ssl does not always survive that with TLS 1.3.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    def url(self, path: str) -> str:
        return f"wss://localhost:{self.port}{path}"


def filled(name: str, changes: dict[str, str]) -> str:
    """Return a configuration with the places of this machine in it; all else is as it is shipped."""
    text = (DEPLOY / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    return text


class ReconnectingPeer:
    """A peer that stays in its topic, and comes back whenever its connection is lost.

    Attributes:
        id: its own, empty while it has no connection.
        others: the ids of those that it knows of.
        closed: the close codes of its former connections.
        refused: how often it tried in vain to connect.
    """

    def __init__(self, proxy: ReverseProxy, topic: str, changed: asyncio.Condition) -> None:
        self.topic = topic
        self.id = ""
        self.others: set[str] = set()
        self.closed: list[int] = []
        self.refused = 0
        self._proxy = proxy
        self._changed = changed
        self.task = asyncio.create_task(self._stay())

    async def _stay(self) -> None:
        context = self._proxy.context()
        while True:
            try:
                async with connect(self._proxy.url(f"/ws/{self.topic}{QUERY}"), ssl=context) as connection:
                    async for text in connection:
                        await self._received(json.loads(text))
                self.closed.append(connection.close_code or 1006)
            except ConnectionClosed as closed:
                self.closed.append(closed.rcvd.code if closed.rcvd else 1006)
            except (OSError, InvalidHandshake):
                self.refused += 1
            self.id, self.others = "", set()
            await asyncio.sleep(_RECONNECT_SECONDS)  # As a client does.

    async def _received(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "welcome":
                self.id = message["selfId"]
            case "peer-list":
                self.others = {peer["id"] for peer in message["peers"]}
            case "peer-joined":
                self.others.add(message["peerId"])
            case "peer-left":
                self.others.discard(message["peerId"])
        async with self._changed:
            self._changed.notify_all()


class ReconnectingPeers:
    """Two peers in each of some topics."""

    def __init__(self, proxy: ReverseProxy, topics: Sequence[str]) -> None:
        self._proxy = proxy
        self._changed = asyncio.Condition()
        self.all = [ReconnectingPeer(proxy, topic, self._changed) for topic in topics for _ in range(2)]

    def of(self, topic: str) -> list[ReconnectingPeer]:
        return [peer for peer in self.all if peer.topic == topic]

    def split(self) -> set[str]:
        """Return the topics whose peers do not all know each other, and nobody else."""
        ids = {topic: {peer.id for peer in self.of(topic)} for topic in {peer.topic for peer in self.all}}
        return {peer.topic for peer in self.all if not peer.id or peer.others != ids[peer.topic] - {peer.id}}

    async def until(self, wanted: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), self._changed:
                await self._changed.wait_for(wanted)
        except TimeoutError:
            state = [(peer.topic, peer.id, peer.others, peer.closed, peer.refused) for peer in self.all]
            raise AssertionError(f"{state}\n{self._proxy.log()}") from None

    async def meet(self) -> None:
        """Wait until all topics are whole."""
        await self.until(lambda: not self.split())

    async def move(self, from_node: Sequence[str], action: Callable[[], Any]) -> None:
        """Do what costs the peers of these topics their connections, and wait until all topics are whole again."""
        before = {peer: peer.id for topic in from_node for peer in self.of(topic)}
        await asyncio.to_thread(action)
        await self.until(lambda: not self.split() and all(peer.id != old for peer, old in before.items()))

    async def new_peer(self, topic: str) -> set[str]:
        """Join once more, and return the peers that a new one meets."""
        async with connect(self._proxy.url(f"/ws/{topic}{QUERY}"), ssl=self._proxy.context()) as connection:
            await connection.recv()
            return {peer["id"] for peer in json.loads(await connection.recv())["peers"]}

    async def check_new_peers(self) -> None:
        """Check that a new peer meets all peers of its topic."""
        for topic in {peer.topic for peer in self.all}:
            assert await self.new_peer(topic) == {peer.id for peer in self.of(topic)}, topic
        await self.meet()


@asynccontextmanager
async def reconnecting_peers(proxy: ReverseProxy, topics: Sequence[str]) -> AsyncIterator[ReconnectingPeers]:
    staying = ReconnectingPeers(proxy, topics)
    try:
        await staying.meet()
        yield staying
    finally:
        for peer in staying.all:
            peer.task.cancel()
        await asyncio.gather(*(peer.task for peer in staying.all), return_exceptions=True)
