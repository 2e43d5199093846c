"""Access control as an operator switches it on, with a client that is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests import issuer
from tests.harness.server import Server, running, start
from tests.harness.starting import problem_of
from tests.system.browser import chromium


def join(server: Server, transport: str, token: str, topic: str = "room") -> ClientConnection:
    """Connect, with the token in one of three places."""
    url = server.url + topic
    if transport == "header":
        return connect(url, additional_headers={"Authorization": f"Bearer {token}"})
    if transport == "query":
        return connect(f"{url}?token={token}")
    subprotocols: Any = ["signaling", f"signaling.bearer.{token}"]
    return connect(url, subprotocols=subprotocols)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The issuer's public keys."""
    path = tmp_path_factory.mktemp("access") / "keys.json"
    path.write_bytes(issuer.key_set(issuer.jwk("EdDSA", "EdDSA"), issuer.jwk("ES256", "ES256")))
    return path


@pytest.fixture(scope="module")
def server(keys: Path) -> Iterator[Server]:
    """A server that takes the issuer's tokens, and logs all that it does."""
    options = ["--port", "0", "--log-level", "debug", "--auth", f"jwt:{keys}:audience=us"]
    with running(options) as running_server:
        yield running_server


@pytest.mark.parametrize("transport", ["header", "query", "subprotocol"])
def test_a_token_opens_its_topic_to_a_real_client(server: Server, transport: str) -> None:
    good, wrong = issuer.token(aud="us"), issuer.token(aud="us", number=1)
    with join(server, transport, good) as peer:
        assert json.loads(peer.recv(60))["type"] == "welcome"
        assert peer.subprotocol == ("signaling" if transport == "subprotocol" else None)
    for token, topic, status in ((wrong, "room", 401), (good, "other", 403)):
        with pytest.raises(InvalidStatus) as refused, join(server, transport, token, topic):
            pass
        assert refused.value.response.status_code == status
    server.wait_for("refused a request from .*: 401 the token's signature is wrong")
    for token in (good, wrong):
        assert not [part for part in token.split(".") if part in server.log]


def test_a_connection_outlives_its_first_token_by_a_newer_one(server: Server) -> None:
    expires = time.time() + 5
    first = issuer.token(aud="us", sub="Ada", exp=expires)
    with join(server, "header", first) as peer:
        self_id = json.loads(peer.recv(60))["selfId"]
        peer.recv(60)
        for sub, kind in (("Eve", "error"), ("Ada", "token")):
            newer = issuer.token(aud="us", sub=sub)
            peer.send(json.dumps({"type": "token", "token": newer}))
            assert json.loads(peer.recv(60))["type"] == kind
        with pytest.raises(TimeoutError):
            peer.recv(max(0.0, expires - time.time()) + 0.2)
        peer.send(json.dumps({"type": "offer", "to": self_id}))
        assert json.loads(peer.recv(60))["type"] == "offer"
    server.wait_for(f"{self_id} renewed its token")
    assert not [part for part in newer.split(".") if part in server.log]


IN_A_PAGE = """
const [url, protocols, closesAfterJoining, done] = arguments;
const socket = new WebSocket(url, protocols), seen = [];
socket.onopen = () => seen.push("open as " + socket.protocol);
socket.onmessage = (event) => {
  seen.push(JSON.parse(event.data).type);
  if (closesAfterJoining && seen.at(-1) === "peer-list") socket.close(4000);
};
socket.onclose = (event) => done([...seen, event.code, event.reason]);
"""


CHECK_IN_A_PAGE = """
const [url, token, done] = arguments;
const options = { headers: { Authorization: `Bearer ${token}` }, credentials: "omit", cache: "no-store" };
fetch(url, options).then((answer) => answer.json()).then(done, (error) => done(String(error)));
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser."""
    with chromium(tmp_path_factory.mktemp("browser")) as chrome:
        chrome.set_script_timeout(60)
        yield chrome


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_page_of_any_origin_learns_why_it_cannot_join(server: Server, driver: Any) -> None:
    expired, good = issuer.token(aud="us", exp=1), issuer.token(aud="us")
    with running(["--port", "0", "--allow-origin", "https://own.example"]) as other:
        driver.get(f"http://127.0.0.1:{other.port}/healthz")

        def check(of: Server, topic: str, token: str) -> Any:
            url = f"http://127.0.0.1:{of.port}/ws/{topic}?check"
            answer = driver.execute_async_script(CHECK_IN_A_PAGE, url, token)
            return answer["status"], answer["reason"]

        assert check(server, "room", good) == (200, "ok")
        assert check(server, "room", expired) == (401, "the token has expired")
        assert check(server, "other", good) == (403, "the token does not cover this topic")
        driver.get(f"http://127.0.0.1:{server.port}/healthz")
        status, reason = check(other, "room", good)
        assert (status, reason.endswith("is not on the server's list (--allow-origin)")) == (403, True)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_page_presents_its_token_as_a_subprotocol_and_learns_that_it_expired(server: Server, driver: Any) -> None:
    with running() as open_server:
        # A browser asks before a page from nowhere connects to this machine.
        driver.get(f"http://127.0.0.1:{server.port}/healthz")

        def run(to: Server, token: str, closes_after_joining: bool = False) -> Any:
            protocols = ["signaling", f"signaling.bearer.{token}"]
            return driver.execute_async_script(IN_A_PAGE, to.url + "room", protocols, closes_after_joining)

        soon = issuer.token(aud="us", exp=int(time.time()) + 8)
        assert run(server, soon) == ["open as signaling", "welcome", "peer-list", 4401, "the token has expired"]
        assert run(server, soon) == [1006, ""]
        # The page is the same if access is not controlled.
        assert run(open_server, soon, True) == ["open as signaling", "welcome", "peer-list", 4000, ""]


def test_rotated_keys_count_without_a_restart(server: Server, keys: Path) -> None:
    new = keys.with_suffix(".new")
    new.write_bytes(issuer.key_set(issuer.jwk("EdDSA", "EdDSA"), issuer.jwk("RS256", "2027")))
    new.replace(keys)
    token = issuer.token(algorithm="RS256", kid="2027", aud="us")
    deadline = time.monotonic() + 60
    while True:
        try:
            with join(server, "header", token):
                break
        except InvalidStatus:
            # The file is checked at most once a second, when a client joins.
            assert time.monotonic() < deadline
            time.sleep(0.2)
    server.wait_for("--auth jwt: keys.json: read again; keys: 2")


def test_passwords_of_a_file(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("ada:north\n")
    with running(["--port", "0", "--auth", f"file:{passwords}"]) as server:
        with connect(f"ws://ada:north@127.0.0.1:{server.port}/ws/room") as peer:
            assert json.loads(peer.recv(60))["type"] == "welcome"
        wrong = f"ws://ada:southward@127.0.0.1:{server.port}/ws/room"
        with pytest.raises(InvalidStatus, match="401"), connect(wrong):
            pass
        assert server.stop() == 0
        assert "north" not in server.log
        assert "southward" not in server.log


@pytest.fixture
def without_the_extra(tmp_path: Path) -> dict[str, str]:
    """An environment without PyJWT."""
    (tmp_path / "jwt.py").write_text('raise ModuleNotFoundError("No module named \'jwt\'", name="jwt")\n')
    return {"PYTHONPATH": str(tmp_path)}


def test_without_the_extra_the_server_starts_and_auth_is_one_line(
    without_the_extra: dict[str, str], keys: Path
) -> None:
    with running(env=without_the_extra) as plain:
        assert plain.stop() == 0
    server = start(["--port", "0", "--auth", f"jwt:{keys}"], env=without_the_extra)
    assert server.process.wait(60) != 0
    server.join()
    needed = "PyJWT and cryptography are needed: pip install 'twisted-signaling[jwt]'"
    assert server.log == f"signaling: --auth jwt: {needed}"
    command = [Path(sys.executable).parent / "signaling-token", "--key", "x"]
    env = {**os.environ, **without_the_extra}
    minted = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (minted.returncode, minted.stderr) == (1, f"signaling-token: {needed}\n")


@pytest.mark.parametrize(
    ("auth", "line"),
    [
        (["nope:secret"], "--auth: 'nope' is no kind of check; there are "),
        (["jwt:/nowhere.json"], "--auth jwt: /nowhere.json: No such file or directory"),
        (["memory:ada:secret:eve"], "--auth memory: argstring must be in format U:P:..."),
        (["anonymous"], "--auth anonymous: it checks neither tokens nor passwords"),
        (["memory:a:secret", "memory:b:secret"], "--auth memory: there is another --auth that checks the"),
    ],
)
def test_a_wrong_auth_is_one_line_that_repeats_no_password(auth: list[str], line: str) -> None:
    problem = problem_of(*(word for value in auth for word in ("--auth", value)))
    assert problem.startswith(line)
    assert "\n" not in problem
    assert "secret" not in problem
