"""A server that cannot start says so in one line: what is wrong, and what would be right."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from signaling import Options, makeService
from tests.harness.certificates import chained, self_signed
from tests.harness.server import TWISTD, running, start
from tests.harness.starting import close_ports, problem_of

_CERTIFICATE = b"-----BEGIN CERTIFICATE"
_TCP = "; for example tcp:8081:interface=127.0.0.1"
_SSL = "; for example ssl:8443:privateKey=key.pem:certKey=cert.pem"
_UNIX = "; for example unix:/run/signaling.sock:mode=660"
_READABLE = "name a PEM file that this user can read"
_HOLD = "privateKey= has to hold a private key without a password, and certKey= its certificate, in PEM"
_IN_USE = "the path is in use; stop the other server, remove the file and its .lock, or choose another"
_NO_SOCKET = "no socket can be made there: its folder has to exist, and this user to be allowed to write to it"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with keys and certificates that fit each other or do not."""
    both, other = self_signed(), self_signed()
    at = both.index(_CERTIFICATE)
    key = load_pem_private_key(both[:at], None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"north"))
    for name, content in {
        "both": both,
        "key": both[:at],
        "cert": both[at:],
        "other": other[other.index(_CERTIFICATE) :],
        "locked": locked,
        "junk": b"junk",
        "empty": b"",
    }.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("tcp:", f"the port is missing{_TCP}"),
        ("tcp", f"the port is missing{_TCP}"),
        ("tcp:interface=127.0.0.1", f"the port is missing{_TCP}"),
        ("tcp:http", f"'http' is not a port (a whole number from 0 to 65535){_TCP}"),
        ("tcp:65536", f"'65536' is not a port (a whole number from 0 to 65535){_TCP}"),
        ("tcp:-1", f"'-1' is not a port (a whole number from 0 to 65535){_TCP}"),
        ("tcp:0:backlog=x", f"'x' is not a whole number{_TCP}"),
        ("tcp:0:address=::1", f"there is no address={_TCP}"),
        ("tcp:0:interface=::1", rf"interface= is given twice; a colon inside of a value is written \:{_TCP}"),
        ("tcp:0:interface=192.0.2.77", "interface= is not an address of this machine"),
        ("tcp:0:interface=300.1.1.1", "interface= is not an address of this machine"),
        (r"tcp6:0:interface=fe80\:\:1", "interface= is not an address of this machine"),
        ("haproxy:tcp:", f"the port is missing{_TCP}"),
        ("ssl:", f"the port is missing{_SSL}"),
        ("ssl:0", f"privateKey=server.pem: No such file or directory; {_READABLE}"),
        ("ssl:0:privateKey=", f"privateKey=: No such file or directory; {_READABLE}"),
        ("ssl:0:privateKey=gone.pem", f"privateKey=gone.pem: No such file or directory; {_READABLE}"),
        ("ssl:0:privateKey=key.pem:certKey=gone.pem", f"certKey=gone.pem: No such file or directory; {_READABLE}"),
        ("ssl:0:privateKey=folder", f"privateKey=folder: Is a directory; {_READABLE}"),
        ("haproxy:ssl:0:privateKey=gone.pem", f"privateKey=gone.pem: No such file or directory; {_READABLE}"),
        (
            "ssl:0:privateKey=both.pem:extraCertChain=gone.pem",
            f"extraCertChain=gone.pem: No such file or directory; {_READABLE}",
        ),
        (
            "ssl:0:privateKey=both.pem:dhParameters=gone.pem",
            f"dhParameters=gone.pem: No such file or directory; {_READABLE}",
        ),
        ("ssl:0:privateKey=both.pem:dhParameters=junk.pem", _HOLD),
        ("ssl:0:privateKey=both.pem:extraCertChain=junk.pem", _HOLD),
        ("ssl:0:privateKey=junk.pem", _HOLD),
        ("ssl:0:privateKey=empty.pem", _HOLD),
        ("ssl:0:privateKey=key.pem", _HOLD),
        ("ssl:0:privateKey=cert.pem", _HOLD),
        ("ssl:0:privateKey=locked.pem:certKey=cert.pem", _HOLD),
        (
            "ssl:0:privateKey=key.pem:certKey=other.pem",
            "the key of privateKey= and the certificate of certKey= do not belong together",
        ),
        ("ssl:0:privateKey=both.pem:key=x", f"there is no key={_SSL}"),
        ("unix:", f"the path is missing{_UNIX}"),
        ("unix:gone/socket", _NO_SOCKET),
        ("unix:both.pem/socket", _NO_SOCKET),
        ("unix:socket:mode=rw", f"'rw' is not an octal number{_UNIX}"),
        ("systemd:domain=INET6:index=0", "systemd handed no such socket over; for example systemd:domain=INET6"),
        ("stdio:", "standard input is no place to listen; for example tcp:8081"),
        ("", "there is no kind of endpoint ''; for example tcp:8081"),
        ("http:8081", "there is no kind of endpoint 'http'; for example tcp:8081"),
    ],
)
def test_an_endpoint_that_cannot_listen_is_named_with_the_reason(folder: Path, endpoint: str, problem: str) -> None:
    for option in ("listen", "metrics-listen"):
        said = problem_of(f"--{option}", endpoint)
        assert said.startswith(f"--{option} {endpoint}: {problem}")
        assert "\n" not in said


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--ice-servers", "gone.json"], "--ice-servers: gone.json: No such file or directory"),
        (["--ice-servers", "folder"], "--ice-servers: folder: Is a directory"),
        (["--ice-servers", ""], "--ice-servers: name a file"),
        (["--turn-uri", "turn:a", "--turn-secret-file", ""], "--turn-secret-file: name a file"),
        (["--turn-uri", "turn:a", "--turn-secret-file", "gone"], "--turn-secret-file: gone: No such file or directory"),
        (
            ["--turn-uri", "turn:a", "--turn-secret-file", "empty.pem"],
            "--turn-secret-file: empty.pem: there is no secret in it",
        ),
        (["--auth", "jwt:folder"], "--auth jwt: folder: Is a directory"),
        (["--auth", "file:gone"], "--auth file: gone: No such file or directory"),
        (["--auth", "file:folder"], "--auth file: folder: Is a directory"),
        (["--auth", "file:"], "--auth file: name a file"),
        (["--backplane", "redis://x?password-file=gone"], "--backplane: password-file=: gone: No such file"),
    ],
)
def test_an_option_whose_file_cannot_be_read_names_both(folder: Path, options: list[str], problem: str) -> None:
    assert problem_of(*options).startswith(problem)


def test_a_port_may_be_given_by_its_name(folder: Path) -> None:
    options = Options({})
    options.parseOptions(["--listen", "tcp:port=0:interface=127.0.0.1"])
    service = makeService(options)
    service.privilegedStartService()
    assert len(service.addresses) == 1  # type: ignore[union-attr]
    service.stopService()
    close_ports()


def last_line_of_a_failed_start(*options: str, **more: Any) -> str:
    server = start(options, **more)
    assert server.process.wait(60) == 1
    server.join()
    assert not re.search("Traceback|rror|arning", "".join(server.lines[:-1]))
    return server.lines[-1]


def test_a_failed_start_ends_with_status_1_and_one_line(folder: Path) -> None:
    cwd: Any = {"cwd": folder}
    for name in ("folder", "both.pem"):
        line = last_line_of_a_failed_start("--listen", f"unix:{name}", **cwd)
        assert line == f"signaling: --listen unix:{name}: {_IN_USE}"
    with running(["--listen", "unix:socket"], **cwd):
        assert problem_of("--listen", "unix:socket") == f"--listen unix:socket: {_IN_USE}"


def test_tls_is_served_without_a_warning(folder: Path) -> None:
    with running(["--listen", "ssl:0:interface=127.0.0.1:privateKey=key.pem:certKey=cert.pem"], cwd=folder) as server:
        context = ssl.create_default_context(cafile="cert.pem")
        with urllib.request.urlopen(f"https://localhost:{server.port}/healthz", timeout=60, context=context) as answer:
            assert answer.read() == b"ok"
        assert server.stop() == 0
        assert "arning" not in server.log


@pytest.mark.parametrize(
    ("files", "listen"),
    [
        (("server", "intermediate"), "privateKey=0.pem:extraCertChain=1.pem"),
        # As certbot's fullchain.pem.
        (("server+intermediate",), "privateKey=0.pem"),
        (("server+intermediate", "server"), "privateKey=1.pem:certKey=0.pem"),
    ],
)
def test_a_client_that_knows_the_root_alone_trusts_the_server(
    tmp_path: Path, files: tuple[str, ...], listen: str
) -> None:
    root, server, intermediate = chained()
    parts = {"server": server, "intermediate": intermediate}
    for at, names in enumerate(files):
        (tmp_path / f"{at}.pem").write_bytes(b"".join(parts[name] for name in names.split("+")))
    context = ssl.create_default_context(cadata=root.decode())
    with running(["--listen", f"ssl:0:interface=127.0.0.1:{listen}"], cwd=tmp_path) as running_server:
        url = f"https://localhost:{running_server.port}/healthz"
        with urllib.request.urlopen(url, timeout=60, context=context) as answer:
            assert answer.read() == b"ok"


def test_an_old_pid_file_does_not_prevent_the_start(tmp_path: Path) -> None:
    # Of a process that lives, as after a restart of the machine.
    left = tmp_path / "twistd.pid"
    left.write_text(str(os.getpid()))
    how: dict[str, Any] = {"command": [TWISTD], "cwd": tmp_path, "pidfile": None}
    with running(**how) as first, running(**how) as second:
        assert first.port != second.port
        assert (first.stop(), second.stop()) == (0, 0)
    assert left.read_text() == str(os.getpid())


@pytest.mark.parametrize("option", ["--help", "--version", "--check-config"])
def test_a_reader_that_has_seen_enough_is_no_error(option: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as output:
        command = [sys.executable, "-m", "signaling", option]
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
