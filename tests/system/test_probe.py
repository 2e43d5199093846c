"""``signaling-probe`` against real servers, good and bad."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.http11 import Response
from websockets.sync.server import Server, ServerConnection, serve

from signaling.tools.probe import main, target
from tests import issuer
from tests.harness.certificates import self_signed
from tests.harness.server import running
from tests.programs import free_port

Report = Callable[..., dict[str, Any]]
STEPS = ["connect", "join", "relay", "relayBack"]


def probe(*arguments: str, **environ: str) -> tuple[int, str]:
    """Run the probe as a cron job does; returns its status and what it printed."""
    command = [sys.executable, "-m", "signaling.tools.probe", "--timeout", "3", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environ or None)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Run the probe for a program: one JSON object on the standard output, and nothing else."""

    def run(*arguments: str) -> dict[str, Any]:
        status = main(["--timeout", "60", "--json", *arguments])
        output, errors = capsys.readouterr()
        assert errors == ""
        [line] = output.splitlines()
        answer: dict[str, Any] = json.loads(line)
        assert status == (0 if answer["ok"] else 1)
        return answer

    return run


def test_a_working_server_is_ok_with_times(report: Report) -> None:
    with running() as server:
        for url in (f"ws://127.0.0.1:{server.port}", f"http://127.0.0.1:{server.port}/ws/"):
            status, text = probe(url)
            assert status == 0, text
            number = r"\d+\.\d ms"
            assert re.fullmatch(rf"ok: connect {number}, join {number}, relay {number} there, {number} back\n", text)
        answer = report(f"ws://127.0.0.1:{server.port}")
    assert list(answer) == ["ok", "milliseconds"]
    assert list(answer["milliseconds"]) == STEPS
    assert all(0 < milliseconds < 3_000 for milliseconds in answer["milliseconds"].values())


def test_a_server_with_workers_below_a_path_is_ok_and_its_metrics_are_there() -> None:
    with running(["--port", "0", "--workers", "2", "--path-prefix", "/signal", "--metrics"]) as server:
        for number in range(2):
            server.wait_for(f"worker {number} is ready")
        assert probe(f"ws://localhost:{server.port}/signal")[0] == 0
        assert server.get("/ws/room?check")[0] == 404
        assert b"\nsignaling_joins_total" in server.get("/signal/metrics")[1]


def test_a_server_on_a_unix_socket_is_ok_also_below_a_path(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "signaling.sock"
    with running(["--listen", f"unix:{path}", "--path-prefix", "/signal"]):
        assert probe(f"unix:{path}", "--path-prefix", "/signal")[0] == 0
        assert probe(f"unix://{path}", "--path-prefix", "/signal")[0] == 0
        refused = report(f"unix:{path}")
    assert refused["error"]["status"] == 404
    assert "/signal/ws/{topic}" in refused["error"]["text"]


def test_a_missing_socket_is_named(tmp_path: Path) -> None:
    status, text = probe(f"unix:{tmp_path}/none.sock")
    assert status == 1
    assert text.startswith("failed: connecting: FileNotFoundError")


def test_a_failed_connection_is_named(report: Report) -> None:
    port = free_port()
    status, text = probe(f"ws://127.0.0.1:{port}")
    assert status == 1
    assert text.startswith("failed: connecting: ConnectionRefusedError")
    answer = report(f"ws://127.0.0.1:{port}")
    assert (answer["step"], answer["milliseconds"], answer["error"]["code"]) == ("connect", {}, "connection_failed")


def test_a_refused_request_is_quoted(report: Report) -> None:
    with running(["--port", "0", "--max-connections", "1"]) as server:
        status, text = probe(f"ws://127.0.0.1:{server.port}")
        answer = report(f"ws://127.0.0.1:{server.port}")
    reason = "the server answered 503: the server is full: it takes 1 connections"
    assert (status, text) == (1, f"failed: joining: {reason}\n")
    assert list(answer["milliseconds"]) == ["connect"]
    assert (answer["step"], answer["error"]) == ("join", {"code": "refused", "text": reason, "status": 503})


def test_a_silent_server_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, text = probe(f"ws://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.3")
    assert status == 1
    assert text == "failed: connecting: no answer in time\n"


# TLS


def test_only_a_trusted_certificate_of_that_host_is_accepted(report: Report, tmp_path: Path) -> None:
    chain = tmp_path / "server.pem"
    chain.write_bytes(self_signed(["signaling.example.com"]))
    with running(["--listen", f"ssl:0:interface=127.0.0.1:privateKey={chain}:certKey={chain}"]) as server:
        url = f"wss://127.0.0.1:{server.port}"
        untrusted = report(url)
        wrong_host = report(url, "--ca-file", str(chain))
        named = report(url, "--ca-file", str(chain), "--server-name", "signaling.example.com")
        without_tls = report(f"ws://127.0.0.1:{server.port}")
    assert untrusted["error"]["code"] == "certificate_not_trusted"
    assert untrusted["error"]["text"].startswith("the certificate is not trusted: self-signed certificate;")
    assert "--ca-file" in untrusted["error"]["text"]
    assert wrong_host["error"]["code"] == "certificate_for_another_host"
    assert "--server-name" in wrong_host["error"]["text"]
    assert named["ok"], named
    assert without_tls["error"]["text"] == "the server does not answer in HTTP; if its port has TLS, use wss://"


def test_a_server_without_tls_is_named(report: Report) -> None:
    with running() as server:
        error = report(f"wss://127.0.0.1:{server.port}")["error"]
    assert error["code"] == "tls_failed"
    assert error["text"].endswith("; the port has no TLS: use ws://")


# Access


def test_what_a_token_has_to_have_is_said(report: Report, tmp_path: Path) -> None:
    file = tmp_path / "token"

    def refused(own: dict[str, Any] | None = None, **claims: Any) -> dict[str, Any]:
        file.write_text(issuer.token(own, **claims))
        return report(url, "--token-file", str(file))["error"]  # type: ignore[no-any-return]

    with running(["--port", "0", "--auth", f"jwt:{issuer.key_file(tmp_path)}:audience=us"]) as server:
        url = f"ws://127.0.0.1:{server.port}"
        none = report(url)["error"]
        other_topic = refused({"topics": ["room"]}, aud="us")
        no_audience = refused({"prefixes": ["probe-"]})
        mute = refused({"prefixes": ["probe-"], "send": False}, aud="us")
        alone = refused({"prefixes": ["probe-"], "maxPeers": 1}, aud="us")
        token = issuer.token({"prefixes": ["probe-"]}, aud="us")
        file.write_text(f"{token}\n")
        assert probe(url, "--token-file", str(file))[0] == 0
        status, text = probe(url, SIGNALING_TOKEN=token, PATH=os.environ["PATH"])
        assert status == 0, text
    assert (none["code"], none["status"]) == ("token_needed", 401)
    for needed in ('"exp"', '"signaling": {"prefixes": ["probe-"]}', "--token-file FILE", "SIGNALING_TOKEN"):
        assert needed in none["text"]
    assert (other_topic["code"], other_topic["status"]) == ("topic_not_covered", 403)
    assert '"prefixes": ["probe-"]' in other_topic["text"]
    assert no_audience["code"] == "token_refused"
    assert "aud" in no_audience["text"]
    assert mute["code"] == "sending_forbidden"
    assert alone["code"] == "topic_full"


def test_a_name_and_a_password_are_asked_for_and_presented(report: Report, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("probe:right\n")
    with running(["--port", "0", "--auth", f"file:{tmp_path}/passwords"]) as server:
        url = f"ws://127.0.0.1:{server.port}"
        none = report(url)["error"]
        (tmp_path / "mine").write_text("probe:wrong")
        wrong = report(url, "--password-file", str(tmp_path / "mine"))["error"]
        (tmp_path / "mine").write_text("probe:right\n")
        assert probe(url, "--password-file", str(tmp_path / "mine"))[0] == 0
    assert none["code"] == "password_needed"
    assert "--password-file" in none["text"]
    assert wrong["code"] == "password_refused"


# Arguments


@pytest.mark.parametrize(
    ("url", "start"),
    [
        ("ws://a", "ws://a/ws/probe-"),
        ("https://a:8443/", "wss://a:8443/ws/probe-"),
        ("wss://a/x/ws/", "wss://a/x/ws/probe-"),
        ("wss://a/x?y=z", "wss://a/x/ws/probe-"),
        ("unix:/run/a", "ws://localhost/ws/probe-"),
    ],
)
def test_the_url_of_a_topic(url: str, start: str) -> None:
    assert target(url).url.startswith(start)


def test_the_server_name_is_in_place_of_the_host() -> None:
    place = target("wss://[::1]/x", "a.example")
    assert place.url.startswith("wss://a.example:443/x/ws/probe-")
    assert place.how == {"host": "::1", "port": 443}


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ([], "URL"),
        *(([url], "is not the address of a server") for url in ("a", "ws://[::1", "ftp://a", "ws://", "ws://a:x")),
        (["localhost:8081"], "for example wss://signaling.example.com or unix:/run/signaling.sock"),
        (["unix:"], "for example unix:/run/signaling.sock"),
        (["ws://a", "--timeout", "soon"], "'soon' is not a number of seconds (for example 5 or 0.5)"),
        (["ws://a", "--timeout", "0"], "is not a number of seconds"),
        (["ws://a", "--server-name", "a b"], "for example signaling.example.com"),
        (["ws://a", "--path-prefix", "/x"], "write the path into the URL"),
        (["unix:a", "--path-prefix", "x"], "write /x"),
        (["ws://name:hidden@a"], "--password-file FILE"),
        (["ws://a", "--token", "hidden"], "put it into a file (--token-file FILE) or into SIGNALING_TOKEN"),
        (["ws://a", "--token-file", "/none"], "/none: No such file or directory"),
        (["wss://a", "--ca-file", "/none"], "/none: No such file or directory"),
        (["wss://a", "--ca-file", __file__], "it needs certificates in PEM"),
        (["ws://a", "--token-file", __file__], "it needs one token"),
        (["ws://a", "--password-file", __file__], "it needs one line, NAME:PASSWORD"),
        (["ws://a", "--tokn-file", "x"], "unrecognized arguments: --tokn-file"),
    ],
)
def test_wrong_arguments_are_one_line_that_says_what_is_right(
    arguments: list[str], right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    [line] = errors.splitlines()
    assert line.startswith("signaling-probe: ")
    assert line.endswith("; see signaling-probe --help")
    assert right in line
    assert "hidden" not in line


def test_help_has_an_example_of_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for example in ("wss://signaling.example.com\n", "unix:/run/signaling.sock\n", "--ca-file ca.pem\n", "--json\n"):
        assert re.search(rf"^  signaling-probe .*{re.escape(example)}", text, re.MULTILINE)
    assert "--token TOKEN" not in text


def test_the_documents_list_every_code() -> None:
    tree = Path(__file__).parents[2]
    source = (tree / "signaling" / "tools" / "probe.py").read_text()
    rows = re.findall(r"^\| (`[a-z_]+`.*?) \|", (tree / "docs" / "probe.md").read_text(), re.MULTILINE)
    listed = set(re.findall(r"`([a-z_]+)`", " ".join(rows))) - {"code"}
    assert listed == set(re.findall(r'ProbeError\("([a-z_]+)"', source))


# Servers that are none


@pytest.mark.parametrize(
    "said",
    [
        "[" * 100_000,
        '{"type":"welcome","selfId":' + "9" * 5_000 + "}",
        "[]",
        "7",
        "{}",
        '{"type":["welcome"]}',
        '{"type":"welcome"}',
        '{"type":"error"}',
        '{"type":"error","code":{"a":1}}',
        '{"type":"\\u001b[2J\\nok: connect 1 ms"}',
        b"\xff",
    ],
)
def test_any_invalid_answer_is_one_printable_line(said: str | bytes, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(serve(lambda connection: connection.send(said), "127.0.0.1", 0), capsys)
    assert line.startswith("failed: ")
    assert line.isprintable()


def test_a_probe_that_an_operator_removes_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    def remove(connection: ServerConnection) -> None:
        connection.send('{"type":"notice","data":"This server stops soon."}')
        connection.close(4403, "Enough")

    line = failure(serve(remove, "127.0.0.1", 0), capsys)
    assert line == "failed: joining: the server closed the connection with 4403: Enough"


def test_a_redirect_is_not_followed_with_the_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNALING_TOKEN", "secret")
    asked = []

    def redirect(connection: ServerConnection, request: Any) -> Response:
        asked.append(request.path)
        answer = connection.respond(302, "")
        answer.headers["Location"] = "/elsewhere"
        return answer

    line = failure(serve(lambda connection: None, "127.0.0.1", 0, process_request=redirect), capsys)
    assert line.startswith("failed: connecting: the server answered 302: redirects are not followed")
    assert len(asked) == 1


def failure(server: Server, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the probe says of a server."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        status = main(["--timeout", "60", f"ws://127.0.0.1:{server.socket.getsockname()[1]}"])
        server.shutdown()
        thread.join()
    output, errors = capsys.readouterr()
    assert (status, output) == (1, "")
    [line] = errors.splitlines()
    return line
