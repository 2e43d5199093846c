"""The servers that are compared: how to start each, and where npm's come from."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.compare.dialects import Dialect, PeerJs, SocketIo, Wire, YWebrtc
from benchmarks.compare.meter import Meter
from benchmarks.processes import pin
from tests.harness.server import HOST, launch
from tests.harness.server import Server as Watched
from tests.programs import free_port

SERVER_CORE, GENERATOR_CORE = 0, 1
OURS = "ours"
NPM_PACKAGES = {
    "bun": "1.4.5",
    "deno": "2.9.6",
    "peer": "1.0.2",
    "socket.io": "4.8.4",
    "ws": "8.23.0",
    "y-webrtc": "10.3.0",
}

_PEERS = Path(__file__).parents[1] / "peers"
# Where Debian's golang-github-gorilla-websocket-dev is.
_GO_SOURCES = Path("/usr/share/gocode/src")
_START_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A named command.

    Args:
        command: ``{port}`` stands for the port, ``{store}`` for that of a Redis server, which is started then.
        environment: variables beside this process's own.
        processes: that share the work.
        nodes: how many servers serve together; connections go to them in turns.
        is_ours: whether it is our server, in whatever way it is run.
    """

    name: str
    command: Sequence[str]
    dialect: Dialect
    environment: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    processes: int = 1
    nodes: int = 1
    is_ours: bool = False

    @property
    def needs_store(self) -> bool:
        """Whether its nodes share a Redis server."""
        return any("{store}" in word for word in self.command)


class CannotStartError(Exception):
    """A server did not start; the text says why, for the person at the terminal."""


def _launch(name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Watched:
    """Start a process on the servers' core; ``{port}`` stands for its port."""
    port = free_port()
    # Threads that a server starts at once inherit the core, which a later change would not reach.
    pin(0, SERVER_CORE)
    try:
        words = [word.replace("{port}", str(port)) for word in command]
        return launch(words, env={"PORT": str(port), **environment}, cwd=folder, port=port)
    except OSError as error:
        raise CannotStartError(f"{name}: {error}") from error
    finally:
        pin(0, GENERATOR_CORE)


def _wait(name: str, process: Watched) -> None:
    try:
        process.wait_until_accepting(_START_SECONDS)
    except AssertionError:
        raise CannotStartError(f"{name} does not start:\n{process.log[-2000:]}") from None


class Running:
    """A server that accepts connections, and the store of its nodes, if there is one."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self._store: Watched | None = None
        self._nodes: list[Watched] = []

    def __enter__(self) -> Self:
        try:
            if self.server.needs_store:
                command = ["redis-server", "--port", "{port}", "--save", "", "--appendonly", "no"]
                self._store = _launch("redis-server", command, {}, self._folder)
                _wait("redis-server", self._store)
            self._nodes = [self._node() for _ in range(self.server.nodes)]
            for node in self._nodes:
                _wait(self.server.name, node)
        except BaseException:
            self.stop()
            raise
        return self

    def _node(self) -> Watched:
        store = str(self._store.port) if self._store is not None else ""
        command = [word.replace("{store}", store) for word in self.server.command]
        return _launch(self.server.name, command, self.server.environment, self._folder)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where its nodes listen."""
        return [(HOST, node.port) for node in self._nodes]

    @property
    def meter(self) -> Meter:
        """Measures its nodes, all together."""
        return Meter(*(node.pid for node in self._nodes))

    @property
    def store_meter(self) -> Meter | None:
        """Measures its store."""
        return Meter(self._store.pid) if self._store is not None else None

    def stop(self) -> None:
        """End it."""
        for process in (*self._nodes, *([self._store] if self._store is not None else [])):
            process.end()


class RunningServers:
    """All servers running at once, in the order of their names' first mention."""

    def __init__(self, servers: Iterable[Server]) -> None:
        self._servers = servers
        self._stack = ExitStack()
        self.running: dict[str, Running] = {}

    def __enter__(self) -> Self:
        _raise_file_limit()
        with self._stack:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            for server in self._servers:
                self.running[server.name] = self._stack.enter_context(Running(server, self.folder))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _raise_file_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Ours, and variants of it


def ours(reactor: str = "") -> Server:
    """Our server as ``twistd`` starts it.

    Args:
        reactor: its ``--reactor``; empty leaves it to Twisted.
    """
    return variant(OURS, [f"--reactor={reactor}"] if reactor else [])


def variant(name: str, words: Sequence[str]) -> Server:
    """Our server with other variables and options.

    Args:
        words: variables (``NAME=VALUE``), options of ``twistd`` itself (``--reactor=poll``), and behind the word
            ``signaling`` the server's own (``signaling --workers=2``).
    """
    of_twistd = list(itertools.takewhile(lambda word: word != "signaling", words))
    options = [word for word in of_twistd if word.startswith("-")]
    environment = dict(word.split("=", 1) for word in of_twistd if word not in options)
    twistd = str(Path(sys.executable).parent / "twistd")
    listening = ["signaling", "--port", "{port}", "--log-level", "warn", *words[len(of_twistd) + 1 :]]
    command = [sys.executable, twistd, "-n", "--pidfile=", *options, *listening]
    server = Server(name, command, Wire(), environment, version("twisted-signaling"), is_ours=True)
    workers = [int(word.partition("=")[2]) for word in words if word.startswith("--workers=")]
    return replace(server, processes=workers[-1]) if workers else server


def workers(count: int) -> Server:
    """Our server as so many processes that share the topics."""
    return variant(f"workers-{count}", ["signaling", f"--workers={count}"])


def has_redis() -> bool:
    """Return whether a Redis server is installed, for clusters."""
    return shutil.which("redis-server") is not None


def cluster(nodes: int) -> Server:
    """Our server as so many nodes that share topics through Redis."""
    alone = variant(f"cluster-{nodes}", [])
    command = [*alone.command, "--backplane", "redis://127.0.0.1:{store}"]
    return replace(alone, command=command, nodes=nodes)


def parse_variant(text: str) -> Server:
    """Parse ``NAME=WORDS``: ``poll=--reactor=poll``, ``old=PYTHONPATH=/some/tree``, ``two=signaling --workers=2``."""
    name, _, words = text.partition("=")
    return variant(name, shlex.split(words))


def parse_server(text: str) -> Server:
    """Parse ``NAME=COMMAND`` of any server that speaks our wire; ``{port}`` stands for its port."""
    name, _, command = text.partition("=")
    return Server(name, shlex.split(command), Wire())


# The others


@dataclass(frozen=True)
class Other:
    """Another project's server.

    Args:
        server: how to start it; what it needs from npm is installed first.
        programs: that have to be installed.
        modules: Python's, that have to be installed.
        sources: paths that have to exist.
    """

    server: Callable[[], Server]
    programs: Sequence[str] = ()
    modules: Sequence[str] = ()
    sources: Sequence[Path] = ()

    def missing(self) -> str:
        """Name what it needs and is not installed; empty if nothing."""
        wanted = [
            *((program, shutil.which(program)) for program in self.programs),
            *((module, find_spec(module)) for module in self.modules),
            *((str(path), path.exists()) for path in self.sources),
        ]
        return " and ".join(name for name, found in wanted if not found)


def _websockets() -> Server:
    command = [sys.executable, str(_PEERS / "plain_websockets.py"), "{port}"]
    return Server("websockets", command, Wire(), version=version("websockets"))


def _autobahn() -> Server:
    command = [sys.executable, str(_PEERS / "plain_autobahn.py"), "{port}"]
    return Server("autobahn", command, Wire(), version=version("autobahn"))


def _peerjs() -> Server:
    script = npm_modules("peer") / "peer/dist/bin/peerjs.js"
    # Its default of 5,000 would refuse the last of the idle connections while earlier ones are still open.
    command = ["node", str(script), "--port", "{port}", "--concurrent_limit", "100000"]
    return Server("peerjs-server", command, PeerJs(), version=NPM_PACKAGES["peer"])


def _y_webrtc(inboxes: bool = False) -> Server:
    command = ["node", str(npm_modules("y-webrtc") / "y-webrtc/bin/server.js")]
    name = "y-webrtc-inboxes" if inboxes else "y-webrtc"
    return Server(name, command, YWebrtc(inboxes=inboxes), version=NPM_PACKAGES["y-webrtc"])


def _bun() -> Server:
    binary = _binary("bun", "@oven/bun-*/bin/bun")
    command = [str(binary), str(_PEERS / "plain_bun.mjs"), "{port}"]
    return Server("bun", command, Wire(), version=NPM_PACKAGES["bun"])


def _deno() -> Server:
    binary = _binary("deno", "@deno/*/deno")
    command = [str(binary), "run", "--allow-net", str(_PEERS / "plain_deno.mjs"), "{port}"]
    return Server("deno", command, Wire(), version=NPM_PACKAGES["deno"])


def _ws() -> Server:
    command = ["node", str(_PEERS / "plain_ws.mjs"), "{port}"]
    return Server("ws", command, Wire(), {"NODE_PATH": str(npm_modules("ws"))}, NPM_PACKAGES["ws"])


def _socket_io() -> Server:
    command = ["node", str(_PEERS / "plain_socketio.mjs"), "{port}"]
    environment = {"NODE_PATH": str(npm_modules("socket.io"))}
    return Server("socket.io", command, SocketIo(), environment, NPM_PACKAGES["socket.io"])


def _picows() -> Server:
    command = [sys.executable, str(_PEERS / "plain_picows.py"), "{port}"]
    return Server("picows", command, Wire(), version=version("picows"))


def _go() -> Server:
    binary = _cache() / "plain_go"
    binary.parent.mkdir(parents=True, exist_ok=True)
    command = ["go", "build", "-o", str(binary), str(_PEERS / "plain_go.go")]
    _install(command, {"GO111MODULE": "off", "GOPATH": str(_GO_SOURCES.parent), "GOFLAGS": ""})
    found = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False)
    return Server("go", [str(binary), "{port}"], Wire(), version=found.stdout.strip().removeprefix("go"))


_NODE = ("node", "npm")
OTHERS = {
    "bun": Other(_bun, programs=["npm"]),
    "go": Other(_go, programs=["go"], sources=[_GO_SOURCES / "github.com/gorilla/websocket"]),
    "peerjs-server": Other(_peerjs, programs=_NODE),
    "y-webrtc": Other(_y_webrtc, programs=_NODE),
    "websockets": Other(_websockets),
    "autobahn": Other(_autobahn),
    "picows": Other(_picows, modules=["picows"]),
    "deno": Other(_deno, programs=["npm"]),
    "ws": Other(_ws, programs=_NODE),
    "socket.io": Other(_socket_io, programs=_NODE),
    "y-webrtc-inboxes": Other(lambda: _y_webrtc(inboxes=True), programs=_NODE),
}


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "twisted-signaling" / "benchmark-peers"


def _install(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, cwd=_cache()
    )
    if done.returncode:
        raise CannotStartError(f"{shlex.join(command)}:\n{done.stderr[-2000:]}")


def npm_modules(package: str) -> Path:
    """Return where npm's packages are, and install one there once."""
    folder = _cache()
    modules, wanted = folder / "node_modules", NPM_PACKAGES[package]
    if _installed(modules, package) != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        words = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
        _install([*words, f"{package}@{wanted}"], {})
    return modules


def _binary(package: str, pattern: str) -> Path:
    """Find the program of a package whose install script, which would put it in place, did not run."""
    found = sorted(npm_modules(package).glob(pattern))
    if not found:
        raise CannotStartError(f"{package} has no program for this machine: there is no {pattern}")
    return found[0]


def _installed(modules: Path, package: str) -> str:
    try:
        found: str = json.loads((modules / package / "package.json").read_text())["version"]
    except FileNotFoundError:
        return ""
    return found
