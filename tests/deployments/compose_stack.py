"""The services of compose.yaml as processes of this machine, in a network of their own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.harness.server import Server, launch
from tests.programs import missing, need

TREE = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((TREE / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NAMED_VOLUMES = set(COMPOSE["volumes"])
PROGRAMS = Path(sys.executable).parent

# Raises the loopback interface of a new network, gives it the names of the services, and keeps both.
_NETWORK = """
import fcntl, os, socket, struct, subprocess, sys
with socket.socket() as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/hosts"], check=True)
print("ready", flush=True)
sys.stdin.read()
"""


class Stack:
    """What a container engine would do with compose.yaml, but for images and isolation.

    Each service gets the files and volumes that it mounts in a folder of its own, and the paths of its command lead
    there. All share one network with the ports that compose.yaml names, in which the name of every service is known.

    Args:
        folder: an empty one.
        environment: the variables that compose.yaml may use.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._environment = environment
        hosts = folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()} {' '.join(SERVICES)}\n")
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        self._network = subprocess.Popen(
            [need("unshare"), *user, "--net", "--mount", sys.executable, "-c", _NETWORK, str(hosts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._network.stdout is not None
        if self._network.stdout.readline() != b"ready\n":
            self.end()
            # As in a container without the capability SYS_ADMIN.
            raise missing("the right to make a network namespace")

    def end(self) -> None:
        """Give the network up."""
        self._network.communicate(timeout=60)

    def _inside(self, command: list[str]) -> list[str]:
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [need("nsenter"), f"--target={self._network.pid}", *user, "--net", "--mount", "--", *command]

    def root(self, service: str) -> Path:
        """Return the folder that stands for the root of a service's container, with all that it mounts."""
        root = self._folder / service
        if not root.exists():
            root.mkdir()
            for volume in SERVICES[service].get("volumes", ()):
                source, target = volume.split(":")[:2]
                path = root / target.removeprefix("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                if source in NAMED_VOLUMES:
                    shared = self._folder / "volumes" / source
                    shared.mkdir(parents=True, exist_ok=True)
                    path.symlink_to(shared)
                else:
                    shutil.copy(TREE / source, path)
            for target in SERVICES[service].get("tmpfs", ()):
                (root / target.removeprefix("/")).mkdir(parents=True)
        return root

    def localized(self, service: str, text: str) -> str:
        """Return a part of a command with its variables replaced, and its paths led to the service's folder."""

        def value(match: re.Match[str]) -> str:
            return self._environment.get(match[1], match[2] or "")

        text = re.sub(r"\$\{(\w+)(?::-(.*?))?\}", value, text)
        return re.sub(r"(^|=)/(?=\w)", rf"\g<1>{self.root(service)}/", text).replace("$$", "$")

    def command(self, service: str, entry_point: list[str]) -> list[str]:
        """Return the command line of a service.

        Args:
            service: its name.
            entry_point: of its image; that of compose.yaml has precedence.
        """
        said = SERVICES[service]
        if "entrypoint" in said:
            entry_point = [self.localized(service, part) for part in said["entrypoint"]]
        return [*entry_point, *(self.localized(service, part) for part in said.get("command", ()))]

    def run(self, command: list[str]) -> str:
        """Run a program in the network to its end; returns what it printed."""
        done = subprocess.run(
            self._inside(command), capture_output=True, text=True, check=False, timeout=60, env=_environment()
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def launch(self, command: list[str]) -> Server:
        """Start a program in the network."""
        return launch(self._inside([need(command[0]), *command[1:]]), env=_environment())

    def get(self, url: str) -> str:
        """Request a URL from within the network."""
        return self.run([sys.executable, "-c", _GET, url])


_GET = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
    sys.stdout.write(answer.read().decode())
"""


def _environment() -> dict[str, str]:
    path = os.pathsep.join((str(PROGRAMS), os.environ.get("PATH", os.defpath), "/usr/sbin"))
    return {**os.environ, "PATH": path}


@contextmanager
def stack(folder: Path, *more: str, scrape_seconds: int = 1) -> Iterator[Stack]:
    """Run all services but Grafana.

    Args:
        folder: an empty one.
        more: options of the server on top of those of compose.yaml.
        scrape_seconds: how often Prometheus asks, so that nothing waits for it.
    """
    with ExitStack() as ending:
        made = Stack(folder)
        ending.callback(made.end)
        secrets = made.root("secrets")
        made.run([*made.command("secrets", []), str(secrets / "run/secrets"), str(secrets / "turnserver.conf")])
        prometheus = made.root("prometheus") / "etc/prometheus/prometheus.yml"
        prometheus.write_text(prometheus.read_text().replace("interval: 15s", f"interval: {scrape_seconds}s"))
        entry_point = str(TREE / "deploy" / "docker-entrypoint.sh")
        # coturn does not choose the loopback interface by itself, and this network has no other.
        loopback = ("--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", "--allow-loopback-peers")
        options = {"signaling": more, "coturn": ("--verbose", *loopback)}
        for service, program, ready in (
            ("redis", [], "Ready to accept connections"),
            ("coturn", [], "UDP listener opened"),
            ("signaling", [entry_point], "serves its cluster"),
            ("prometheus", ["prometheus"], "Server is ready to receive web requests"),
        ):
            server = made.launch([*made.command(service, program), *options.get(service, ())])
            ending.callback(server.end)
            server.wait_for(ready)
        yield made
