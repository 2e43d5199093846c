"""The command ``signaling``, its configuration file, and SIGHUP in real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.harness.server import Server, launch, running, start

TREE = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "signaling"]


def example(folder: Path) -> Path:
    """Write the file of the documents, and those that it names; returns it."""
    page = (TREE / "docs" / "configuration.md").read_text()
    found = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert found
    file = folder / "signaling.toml"
    file.write_text(found[1].replace("tcp:8081", "tcp:0"))
    (folder / "ice-servers.json").write_text('[{"urls": "stun:stun.example.com"}]')
    (folder / "turn-secret").write_text("north")
    return file


def test_the_command_runs_the_file_of_the_documents_drains_at_a_signal_and_says_what_is_wrong(tmp_path: Path) -> None:
    server = launch([*COMMAND, f"--config={example(tmp_path)}", "--", "--reactor=poll"])
    try:
        server.wait_for(f'"listening", "address": "unix:{tmp_path}/signaling.sock"')
        server.port = int(server.wait_for(r'"listening", "address": "127\.0\.0\.1:(\d+)"')[1])
        server.wait_for("PollReactor")
        with connect(server.url + "room") as peer:
            assert [each["urls"] for each in json.loads(peer.recv(60))["iceServers"]] == [
                "stun:stun.example.com",
                ["turn:turn.example.com"],
            ]
            peer.recv(60)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(Exception, match="1001"):
                peer.recv(60)
        assert server.process.wait(60) == 0
    finally:
        server.end()
    wrong = launch([*COMMAND, "--prot=1"])
    assert wrong.process.wait(60) == 1
    wrong.join()
    assert wrong.log == "signaling: --prot: there is no such option; did you mean --port?"


def checked(*options: str, **environ: str) -> tuple[int, list[str]]:
    server = start(["--check-config", *options], env=environ)
    status = server.process.wait(60)
    server.join()
    return status, server.lines


def test_check_config_prints_what_is_in_force_or_what_is_wrong_and_listens_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "signaling.toml"
    file.write_text("listen = 'systemd:domain=INET6:index=0'\n")
    status, lines = checked(f"--config={file}", LOG_LEVEL="warn")
    assert status == 0
    assert [line for line in lines if not line.startswith("#")] == [
        f'config = "{file}"  # command line',
        f'listen = ["systemd:domain=INET6:index=0"]  # {file}: line 1',
        'log-level = "warn"  # LOG_LEVEL',
    ]
    file.write_text('\nmetrics-listen = "tcp:x"\n')
    status, [line] = checked(SIGNALING_CONFIG=str(file))
    assert status == 1
    assert line.startswith(f"signaling: {file}: line 2: metrics-listen tcp:x: 'x' is not a port")


class Call:
    """Two peers that send offers to each other without a pause, until they are told to stop."""

    def __init__(self, server: Server, topic: str) -> None:
        self._closing = ExitStack()
        self._peers = [self._closing.enter_context(connect(server.url + topic)) for _ in range(2)]
        self._callee_id = [json.loads(peer.recv(60))["selfId"] for peer in self._peers][1]
        self.relays = 0
        self.problem: object = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        caller, callee = self._peers
        try:
            while not self._stopped.is_set():
                caller.send(json.dumps({"type": "offer", "to": self._callee_id, "payload": self.relays}))
                while (message := json.loads(callee.recv(60)))["type"] != "offer":
                    assert message["type"] in ("peer-list", "peer-joined", "ice-servers")
                assert message["payload"] == self.relays
                self.relays += 1
        except Exception as problem:
            self.problem = problem

    def end(self) -> None:
        self._stopped.set()
        self._thread.join(60)
        self._closing.close()


def restart_a_worker_while_the_file_is_wrong(server: Server, file: Path) -> None:
    """Let a worker die; the one that replaces it has to have the bound that SIGHUP has set: 24 bytes for a topic."""
    file.write_text("wrong")
    os.kill(int(server.wait_for("worker 0 is ready, as process (\\d+)")[1]), signal.SIGKILL)
    server.wait_for("worker 0 died")
    server.wait_until_ready()
    topics = [f"{'x' * 22}{number:02}" for number in range(8)]
    assert [server.get(f"/ws/{topic}?check")[0] for topic in topics] == [200] * 8
    assert [server.get(f"/ws/{topic}x?check")[0] for topic in topics] == [400] * 8


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_under_load_drops_nobody_and_a_wrong_file_changes_nothing(tmp_path: Path, workers: int) -> None:
    file, secret = tmp_path / "signaling.toml", tmp_path / "secret"
    secret.write_text("north")
    fixed = f'port = 0\nworkers = {workers}\nturn-uri = "turn:turn.example.com"\nturn-secret-file = "secret"\n'
    file.write_text(fixed)
    with running([f"--config={file}"]) as server, ExitStack() as calls:
        server.wait_until_ready()
        running_calls = [Call(server, f"room-{number}") for number in range(6)]
        for call in running_calls:
            calls.callback(call.end)
        for number in range(5):
            secret.write_text(f"secret-{number}")
            file.write_text(f"{fixed}max-topic-bytes = {20 + number}\nping-interval = {5 + number}\n")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(rf"SIGHUP: max-topic-bytes: .* -> {20 + number}$")
            server.next_line("SIGHUP: turn-secret-file: its content has changed")
            assert server.get(f"/ws/{'x' * (21 + number)}?check")[0] == 400
            assert server.get(f"/ws/{'x' * (20 + number)}?check")[0] == 200
        file.write_text(f"{fixed}max-topic-bytes = 10\nping-interval = soon\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(re.escape(f"SIGHUP: all stays as it is: {file}: line 6: not TOML: Invalid value"))
        assert server.get(f"/ws/{'x' * 24}?check")[0] == 200
        file.write_text(f"{fixed}max-topic-bytes = 24\nping-interval = 9\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("SIGHUP: nothing changed")
        counts = [call.relays for call in running_calls]
        calls.close()
        assert [call.problem for call in running_calls] == [None] * 6
        assert min(counts) > 0
        if workers > 1:
            restart_a_worker_while_the_file_is_wrong(server, file)
        assert server.stop() == 0
        assert not [line for line in server.problems if not re.search("all stays as it is|worker 0 died", line)]
    assert "secret-4" not in server.log
