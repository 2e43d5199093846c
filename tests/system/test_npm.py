"""The JavaScript client as a package for npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from signaling._version import VERSION
from tests import issuer
from tests.harness.server import running
from tests.programs import free_port, need

TREE = Path(__file__).parents[2]
SHIPPED = {
    "package.json",
    "README.md",
    "LICENSE",
    "signaling/browser/client/signaling.js",
    "signaling/browser/client/sealing.js",
    "signaling/browser/client/signaling.d.ts",
}
NAME = "twisted-signaling-client"
COMPILER = "typescript@5.9"


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pack(*options: str) -> dict:
    # Without the lifecycle's scripts nothing of the tree changes.
    [packed] = json.loads(run(need("npm"), "pack", "--json", "--ignore-scripts", *options, cwd=TREE))
    return packed


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package for an application; returns the application's folder."""
    folder = tmp_path_factory.mktemp("application")
    packed = pack(f"--pack-destination={folder}")
    subprocess.run(["tar", "-xf", packed["filename"]], cwd=folder, check=True)
    (folder / "node_modules").mkdir()
    (folder / "package").rename(folder / "node_modules" / NAME)
    return folder


def test_the_package_holds_the_client_and_nothing_else() -> None:
    packed = pack("--dry-run")
    assert (packed["name"], packed["version"]) == (NAME, VERSION)
    assert {file["path"] for file in packed["files"]} == SHIPPED


def test_node_finds_what_the_package_exports(installed: Path) -> None:
    script = f"import('{NAME}').then((client) => console.log(Object.keys(client).join()))"
    assert run(need("node"), "-e", script, cwd=installed) == "Mesh,Signaling,join\n"


def test_typescript_accepts_an_application(installed: Path) -> None:
    shutil.copy(Path(__file__).with_name("consumer.mts"), installed)
    options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022"]
    run(need("npx"), "--yes", "--package", COMPILER, "tsc", *options, "consumer.mts", cwd=installed)


IN_NODE = f"""
import {{ WebSocket }} from "WS";
import {{ join }} from "{NAME}";
globalThis.WebSocket = WebSocket;
const states_of = [];
const signaling = join(process.argv[1], {{ backoff: {{ first: 1, most: 1 }} }});
signaling.addEventListener("statechange", ({{ detail }}) => {{
  states_of.push(detail.state);
  if (states_of.length < 6 && detail.state !== "closed") return;
  console.log([...states_of, detail.reason].join(", "));
  signaling.leave();
}});
"""


def test_a_program_in_node_outlives_a_server_that_is_not_there_and_ends_with_one_that_refuses(
    installed: Path, tmp_path: Path
) -> None:
    run(need("npm"), "install", "ws@8", cwd=tmp_path)
    script = IN_NODE.replace('"WS"', json.dumps(str(tmp_path / "node_modules" / "ws" / "wrapper.mjs")))

    def states_of(url: str) -> list[str]:
        return run(need("node"), "--input-type=module", "-e", script, url, cwd=installed).splitlines()[0].split(", ")

    *states, reason = states_of(f"ws://127.0.0.1:{free_port()}/ws/room")
    assert states == ["waiting", "connecting"] * 3
    assert reason == ""
    keys = tmp_path / "keys.json"
    keys.write_bytes(issuer.key_set(issuer.jwk("EdDSA", "EdDSA")))
    with running(["--port=0", "--auth", f"jwt:{keys}:audience=us"]) as server:
        refused = states_of(f"{server.url}room?token={issuer.token(aud='us', number=1)}")
    assert refused == ["closed", "the server refuses (HTTP 401)"]
