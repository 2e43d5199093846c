"""The JavaScript client as a package for npm."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from signaling._version import VERSION
from tests import issuer
from tests.harness.npm_package import NAME, PACKAGE, install, program, run
from tests.harness.server import Server, running
from tests.programs import free_port, need

TREE = Path(__file__).parents[2]
HERE = Path(__file__).parent
SOURCES = {path.name for path in (TREE / "signaling" / "browser" / "client").iterdir()}
SHIPPED = {
    "package.json",
    "README.md",
    "LICENSE",
    "react/package.json",
    *(f"dist/{name}" for name in SOURCES),
    "dist/signaling.cjs",
    "dist/signaling.d.cts",
    *(f"dist/react.{suffix}" for suffix in ("js", "d.ts", "cjs", "d.cts")),
}
EXPORTS = "Mesh,Signaling,join\n"


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of an application that has the package."""
    return tmp_path_factory.mktemp("application")


@pytest.fixture(scope="module")
def packed(application: Path) -> dict[str, Any]:
    """Install the package there; returns what npm says of it."""
    return install(application)


@pytest.fixture(scope="module")
def guarded(application: Path) -> Iterator[Server]:
    """Run a server that controls access."""
    with running(["--port=0", "--auth", f"jwt:{issuer.key_file(application)}:audience=us"]) as server:
        yield server


def old_node() -> list[str]:
    """Return a command that runs Node as older ones are, which cannot require an ES module."""
    return [need("node"), "--no-experimental-require-module"]


def test_the_package_holds_the_client_and_nothing_else(packed: dict[str, Any]) -> None:
    assert (packed["name"], packed["version"]) == (NAME, VERSION)
    assert {file["path"] for file in packed["files"]} == SHIPPED
    print(f"{packed['size']} bytes packed, {packed['unpackedSize']} bytes unpacked")
    assert packed["size"] < 80_000


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize(
    "script",
    [
        f"import('{NAME}').then((client) => console.log(Object.keys(client).join()))",
        f"console.log(Object.keys(require('{NAME}')).sort().join())",
    ],
    ids=["import", "require"],
)
def test_node_finds_what_the_package_exports(application: Path, script: str) -> None:
    assert run(*old_node(), "-e", script, cwd=application) == EXPORTS


IN_NODE = """
const states_of = [];
const signaling = join(process.argv[1], { WebSocket, backoff: { first: 1, most: 1 } });
signaling.addEventListener("statechange", ({ detail }) => {
  states_of.push(detail.state);
  if (states_of.length < 6 && detail.state !== "closed") return;
  console.log([...states_of, detail.reason].join(", "));
  signaling.leave();
});
"""


@pytest.mark.usefixtures("packed")
def test_a_program_in_node_outlives_a_server_that_is_not_there_and_ends_with_one_that_refuses(
    application: Path, guarded: Server
) -> None:
    def states_of(url: str) -> list[str]:
        script = HEADS["module"] + IN_NODE
        output = run(need("node"), "--input-type=module", "-e", script, url, cwd=application)
        return output.splitlines()[0].split(", ")

    *states, reason = states_of(f"ws://127.0.0.1:{free_port()}/ws/room")
    assert states == ["waiting", "connecting"] * 3
    assert reason == ""
    refused = states_of(f"{guarded.url}room?token={issuer.token(aud='us', number=1)}")
    assert refused == ["closed", "the token's signature is wrong"]


HEADS = {
    "module": f'import {{ WebSocket }} from "ws"; import {{ join }} from "{NAME}";',
    "commonjs": f'const {{ WebSocket }} = require("ws"); const {{ join }} = require("{NAME}");',
}
MEETING = """
const signaling = join(process.argv[1], { WebSocket, secret: "correct horse battery staple" });
signaling.addEventListener("peer-joined", ({ detail }) => signaling.send("offer", detail.peerId, "a sealed offer"));
signaling.addEventListener("offer", ({ detail }) => {
  console.log(detail.payload);
  signaling.send("answer", detail.from, "a sealed answer");
});
signaling.addEventListener("peer-left", () => signaling.leave());
signaling.addEventListener("answer", ({ detail }) => {
  console.log(detail.payload);
  signaling.leave();
});
"""


@pytest.mark.usefixtures("packed")
def test_a_program_of_es_modules_and_one_of_commonjs_exchange_sealed_payloads(
    application: Path, guarded: Server
) -> None:
    url = f"{guarded.url}room?token={issuer.token(aud='us')}"
    programs = [
        subprocess.Popen(
            [*old_node(), f"--input-type={kind}", "-e", head + MEETING, url],
            cwd=application,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind, head in HEADS.items()
    ]
    try:
        said = {program.communicate(timeout=60)[0] for program in programs}
    finally:
        for each in programs:
            each.kill()
    assert said == {"a sealed offer\n", "a sealed answer\n"}


def frame(first: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """Write a frame; ``length`` is what it claims of its payload."""
    size = len(payload) if length is None else length
    head = bytes([first, size]) if size < 126 else bytes([first, 127]) + size.to_bytes(8, "big")
    return head + payload


OPEN = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n"
TAKEN = OPEN + b"Sec-WebSocket-Protocol: signaling\r\n\r\n"
JOINED = frame(0x81, b'{"type":"welcome","selfId":"a"}') + frame(0x81, b'{"type":"peer-list","peers":[]}')
# What a server or a proxy may answer; %s is the right Sec-WebSocket-Accept.
ODD_ANSWERS = [
    TAKEN + frame(0xF1),
    TAKEN + frame(0x81, b"\xff"),
    TAKEN + frame(0x88, (999).to_bytes(2, "big")),
    TAKEN + frame(0x88, b"x"),
    TAKEN + frame(0x81, length=2**62),
    TAKEN + bytes([0x81, 0x85]) + b"maskhello",
    TAKEN + frame(0x80, b"a continuation"),
    TAKEN + frame(0x82, b"{}") + frame(0x89, b"x") * 1_000,
    TAKEN + JOINED[:20],
    b"",
    b"nonsense",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
    b"HTTP/1.1 503 x\r\nRetry-After: 0\r\n\r\n",
    b"HTTP/1.1 101 x\r\n\r\n",
    OPEN.replace(b"%s", b"wrong") + b"\r\n",
    OPEN + b"\r\n",
    OPEN + b"Sec-WebSocket-Protocol: another\r\n\r\n",
    OPEN + b"Sec-WebSocket-Extensions: x; y=z\r\nSec-WebSocket-Protocol: signaling\r\n\r\n",
    b"HTTP/1.1 101 x\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
]


class OddServer(socketserver.BaseRequestHandler):
    """Answers one connection after the other oddly, and then as it should; it answers no check."""

    answers: Iterator[bytes]

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n") and (data := self.request.recv(4_096)):
            head += data
        if key := re.search(rb"(?i)sec-websocket-key: (.*)\r", head):
            answer = next(type(self).answers)
            accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            with suppress(OSError):
                self.request.sendall(answer.replace(b"%s", accept))
                if answer.endswith(JOINED):
                    self.request.recv(4_096)


SURVIVING = """
const signaling = join(process.argv[1], { WebSocket, token: async () => "t", backoff: { first: 1, most: 1 } });
let attempts = 1;
signaling.addEventListener("statechange", ({ detail }) => detail.state === "connecting" && attempts++);
await signaling.ready;
console.log(attempts);
const early = join(process.argv[1], { WebSocket });
early.leave();
signaling.leave();
"""


@pytest.mark.usefixtures("packed")
def test_a_program_in_node_outlives_whatever_a_socket_emits(application: Path) -> None:
    OddServer.answers = iter([*ODD_ANSWERS, TAKEN + JOINED, b""])
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OddServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{server.server_address[1]}/ws/room"
        script = HEADS["module"] + SURVIVING
        try:
            output = run(need("node"), "--input-type=module", "-e", script, url, cwd=application)
        finally:
            server.shutdown()
            thread.join()
    assert output == f"{len(ODD_ANSWERS) + 1}\n"


# Of examples: names that the text around them introduces.
CONTEXT = f"""
declare const mesh: import("{NAME}").Mesh;
declare const signaling: import("{NAME}").Signaling;
declare function show(line: string): void;
declare function nameOf(peer: import("{NAME}").MeshPeer): string;
declare function showVideo(peer: import("{NAME}").MeshPeer, stream: MediaStream | undefined): void;
declare function removeVideo(peer: import("{NAME}").MeshPeer): void;
"""
PAGES = [TREE / "README.md", PACKAGE / "README.md", *sorted((TREE / "docs").glob("*.md"))]
SUFFIXES = {"js": ".mts", "ts": ".mts", "jsx": ".tsx", "tsx": ".tsx", "html": ".mjs"}


def examples() -> Iterator[tuple[str, str]]:
    """Find the code of all documents; yields names and texts of files for the compiler."""
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            language, code = block.groups()
            if language not in SUFFIXES or (language == "html" and "<script" not in code):
                continue
            if language == "html":
                [code] = re.findall(r'<script type="module">\n(.*?)</script>', code, re.DOTALL)
                # A server has the same client under an address of its own.
                code = re.sub(r'from "\S*/signaling\.js"', f'from "{NAME}"', code)
            line = text.count("\n", 0, block.start()) + 1
            yield f"{page.parent.name}-{page.stem}-line-{line}{SUFFIXES[language]}", code


@pytest.mark.usefixtures("packed")
def test_every_documented_example_is_strict_typescript(application: Path) -> None:
    folder = application / "examples"
    folder.mkdir()
    (folder / "context.d.ts").write_text(CONTEXT)
    shutil.copy(HERE / "consumer.mts", folder)
    names = []
    for name, code in examples():
        (folder / name).write_text(code)
        names.append(name)
    assert len([name for name in names if "clients" in name]) >= 4
    options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--moduleDetection", "force"]
    options += ["--lib", "es2023,dom,dom.iterable", "--jsx", "react-jsx", "--exactOptionalPropertyTypes"]
    options += ["--noUncheckedIndexedAccess", "--types", "node", "--skipDefaultLibCheck"]
    # In a page, nothing can say what the parameters of a function are. The package's types are checked with the others.
    page = ["--allowJs", "--checkJs", "--noImplicitAny", "false", "--skipLibCheck"]
    scripts = {name for name in names if name.endswith(".mjs")}
    typed = ["consumer.mts", *(name for name in names if name not in scripts)]
    compilers = [
        subprocess.Popen(
            [program("tsc"), *options, *more, "context.d.ts", *files],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        for more, files in ((page, scripts), ([], typed))
    ]
    problems = "".join(compiler.communicate(timeout=280)[0] for compiler in compilers)
    assert not problems, problems
