"""Every block of README.md, the quickstarts and a guide is run, in a folder of its own, in the order of the page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from selenium import webdriver

from signaling.app.options import Options
from tests.harness.server import Server, launch
from tests.programs import free_port
from tests.system.browser import chromium, wait_until

TREE = Path(__file__).parents[2]
PAGES = {page.name: page for page in [TREE / "README.md", *sorted((TREE / "docs").glob("quickstart-*.md"))]}
PAGES["access-python.md"] = TREE / "docs/access-python.md"


def check_compose(command: str) -> None:
    """Check that a command of Docker Compose names services that there are."""
    services = yaml.safe_load((TREE / "compose.yaml").read_text())["services"]
    arguments = [each for each in shlex.split(command)[3:] if not each.startswith("-")]
    assert not arguments or arguments[0] in services, command


def check_helm(command: str) -> None:
    """Check that a command of Helm names the chart, and values and options that there are."""
    arguments = shlex.split(command)
    assert "deploy/helm" in arguments, command
    values = yaml.safe_load((TREE / "deploy/helm/values.yaml").read_text())
    for at, argument in enumerate(arguments):
        if argument == "--set":
            path = arguments[at + 1].partition("=")[0].split(".")
            if path[0] == "config":
                assert f"--{path[1]} " in str(Options({})), command
                continue
            found = values
            for key in path:
                assert key in found, command
                found = found[key]


def check_image(command: str) -> None:
    """Check that a command names the image that the chart starts."""
    chart = yaml.safe_load((TREE / "deploy/helm/Chart.yaml").read_text())
    values = yaml.safe_load((TREE / "deploy/helm/values.yaml").read_text())
    assert f"{values['image']['repository']}:{chart['appVersion']}" in shlex.split(command), command


# Commands that are not run here, why not and what stands in for them, and what is checked all the same.
NOT_RUN: dict[str, tuple[str, Callable[[str], None] | None]] = {
    r"git clone https://github\.com/twisted-signaling/twisted-signaling": (
        "it needs the network; the tree is copied",
        None,
    ),
    r"make (check|test)": ("it runs all tests; CI does", None),
    r"python3 -m venv venv": ("the environment of the tests stands in for it", None),
    r"(venv/bin/pip|pipx) install \S+": ("it needs the network; tests/packages installs the wheel", None),
    r"\.venv/bin/python -m tests\.system\.test_wire_transcript --record": ("half a minute; its test does it", None),
    r"docker build --tag signaling \.": ("it needs Docker; tests/deployments follows the Dockerfile", None),
    r"docker run --publish 8081:8081 signaling --demo": ("as above", None),
    r"docker build --tag ghcr.io\S+ \.": ("as above; the chart starts this image", check_image),
    r"docker compose .*": ("it needs Docker; tests start the services of compose.yaml without it", check_compose),
    r"kind .*": ("it needs Docker", None),
    r"kind load docker-image \S+": ("as above", check_image),
    r"kubectl .*": ("it needs a cluster; tests render the chart and start what its pod runs", None),
    r"helm (install|upgrade) .*": ("it needs a cluster; as above", check_helm),
    r"helm (test|uninstall) .*": ("it needs a cluster; as above", None),
}
# Commands that go on until they are stopped, and what they print once they are ready. "" means that their port accepts
# connections then, and None that nothing says it.
SERVERS: dict[str, str | None] = {
    r"make run": "listening on",
    r"(venv/bin/)?signaling .*": "listening on",
    r"python3 -m http\.server (\d+) .*": "",
    r"venv/bin/python (app|members)\.py": "listening",
    r"venv/bin/python (peer\.py \w+|watch\.py)": None,
    r"venv/bin/python twisted-signaling/examples/echo_service\.py \S+": "here as",
}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        place: for people.
        language: behind the fence.
        text: between the fences.
    """

    place: str
    language: str
    text: str

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Return the commands of a console block without comments, and the output that it shows of each."""
        commands: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                commands.append((re.sub(r"\s+# .*", "", line[2:]), []))
            elif commands[-1][0].endswith("\\"):
                commands[-1] = (commands[-1][0].removesuffix("\\") + line.strip(), [])
            else:
                commands[-1][1].append(line)
        return commands


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text()
    found = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert text.count("\n```") == 2 * len(found), f"{page.name} has a fence that this test does not understand"
    return [Block(f"{page.name}:{text.count(chr(10), 0, each.start()) + 1}", each[1], each[2]) for each in found]


def is_left_out(command: str) -> bool:
    """Return whether a command is not run, and check what can be checked of it."""
    checks = [check for pattern, (_, check) in NOT_RUN.items() if re.fullmatch(pattern, command)]
    for check in checks:
        if check is not None:
            check(command)
    return bool(checks)


class Walk:
    """A reader who does what a page says, from its first block to its last.

    The ports of the page are others here, so that several walks are possible at a time.

    Args:
        page: has the blocks.
        folder: where the reader works.
        browser: in which it opens pages.
        ending: ends what it started.
    """

    def __init__(self, page: Path, folder: Path, browser: webdriver.Chrome, ending: ExitStack) -> None:
        self._blocks = iter(blocks(page))
        self._ports = {"8081": free_port(), "8080": free_port(), "8000": free_port()}
        self._ending = ending
        self._variables = ""
        self.folder = folder
        self.browser = browser

    def _here(self, text: str) -> str:
        return re.sub(r"\b(?:8081|8080|8000)\b", lambda port: str(self._ports[port[0]]), text)

    @property
    def server_port(self) -> int:
        """The port that the page calls 8081."""
        return self._ports["8081"]

    # Blocks

    def block(self, language: str) -> str:
        """Return the text of the next block."""
        block = next(self._blocks)
        assert block.language == language, f"{block.place}: expected {language}, not {block.language}"
        return self._here(block.text)

    def save(self, language: str, name: str) -> Path:
        """Save the next block as a file."""
        path = self.folder / name
        path.write_text(self.block(language))
        return path

    def save_of(self, page: str, language: str, name: str) -> Path:
        """Save the first block in a language of another page as a file."""
        path = self.folder / name
        path.write_text(self._here(next(each.text for each in blocks(PAGES[page]) if each.language == language)))
        return path

    def insert(self, language: str, path: Path, *, before: str = "", instead_of: str = "") -> None:
        """Change a file as the page says of the next block."""
        text = path.read_text()
        place = before or instead_of
        assert place in text
        path.write_text(text.replace(place, self.block(language) + before))
        # A browser and http.server compare whole seconds, and a reader takes longer than one.
        seconds = path.stat().st_mtime + 2
        os.utime(path, (seconds, seconds))

    def finish(self) -> None:
        """Fail if the page has more blocks."""
        assert not (rest := [block.place for block in self._blocks]), f"blocks that nothing runs: {rest}"

    # Commands

    def console(self, *, fails: bool = False) -> list[Server]:
        """Run the next block's commands; returns those that go on.

        Args:
            fails: whether the page says that the last one fails.
        """
        block = next(self._blocks)
        assert block.language == "console", f"{block.place}: expected console, not {block.language}"
        running = []
        commands = [each for each in block.commands if not is_left_out(each[0])]
        for command, output in commands:
            if re.fullmatch(r'[A-Z_]+="[^"]*"', command):
                self._variables = f"{command}; "
            elif command.startswith("cd "):
                self.folder /= command.removeprefix("cd ")
            elif (server := self.start(command)) is not None:
                running.append(server)
            else:
                self._run(block.place, command, output, fails=fails and command == commands[-1][0])
        return running

    def start(self, command: str) -> Server | None:
        """Start a command that goes on until it is stopped; None if it is none of those."""
        for pattern, ready in SERVERS.items():
            if re.fullmatch(pattern, command):
                server = launch(
                    ["bash", "-c", f"exec {self._here(command)}"],
                    cwd=self.folder,
                    env={**self._environment, "PORT": str(self._ports["8081"])},
                    port=self._ports["8000" if "http.server" in command else "8080"],
                )
                self._ending.callback(end, server)
                if ready:
                    server.wait_for(ready)
                elif ready is not None:
                    server.wait_until_accepting()
                return server
        return None

    def _run(self, place: str, command: str, output: list[str], *, fails: bool) -> None:
        result = subprocess.run(
            ["bash", "-c", self._variables + self._here(command)],
            cwd=self.folder,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        said = f"{place}: {command}\n{result.stdout}{result.stderr}"
        assert (result.returncode != 0) == fails, said
        if output:
            assert result.stdout.splitlines() == [self._here(line) for line in output], said

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "reader",
            "GIT_AUTHOR_EMAIL": "reader@example.com",
            "GIT_COMMITTER_NAME": "reader",
            "GIT_COMMITTER_EMAIL": "reader@example.com",
        }

    def run_beside(self, *command: str) -> Server:
        """Start a program of the page that no block starts."""
        program = launch(command, cwd=self.folder)
        self._ending.callback(end, program)
        return program

    # Pages

    def open(self, address: str, *, tabs: int = 1) -> list[str]:
        """Open an address of the page in new tabs; returns these."""
        opened = []
        for _ in range(tabs):
            self.browser.switch_to.new_window("tab")
            self.browser.get(self._here(address))
            opened.append(self.browser.current_window_handle)
        return opened

    def wait_for_text(self, tab: str, text: str) -> None:
        """Wait until a tab shows a text."""
        self.browser.switch_to.window(tab)
        wait_until(self.browser, f"document.body.innerText.includes({text!r})")

    def wait_for_picture(self, tab: str) -> None:
        """Wait until a tab plays a video."""
        self.browser.switch_to.window(tab)
        wait_until(self.browser, "[...document.querySelectorAll('video')].some((video) => video.videoWidth > 0)")

    def type(self, tab: str, text: str) -> None:
        """Type a line into the input of a tab."""
        self.browser.switch_to.window(tab)
        self.browser.find_element("css selector", "input").send_keys(text + "\n")

    def press(self, tab: str, text: str) -> None:
        """Press a button of a tab."""
        self.browser.switch_to.window(tab)
        self.browser.find_element("xpath", f"//button[.={text!r}]").click()

    def reload(self, tab: str) -> None:
        """Load the page of a tab again."""
        self.browser.switch_to.window(tab)
        self.browser.refresh()

    def close(self, *tabs: str) -> None:
        """Close tabs."""
        for tab in tabs:
            self.browser.switch_to.window(tab)
            self.browser.close()
        self.browser.switch_to.window(self.browser.window_handles[0])


def end(server: Server) -> None:
    """Stop a program if it still runs: ``make``, if it were killed, would leave its server behind."""
    if server.process.poll() is None:
        server.stop()
    server.end()


def checkout(folder: Path) -> None:
    """Copy the tree into a folder, and put beside it what installing would make of both."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=True).stdout
    copy = folder / "twisted-signaling"
    for name in listed.rstrip("\0").split("\0"):
        if (TREE / name).is_file():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TREE / name, target)
    environment = folder / "environment"
    environment.mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (environment / part).symlink_to(Path(sys.prefix) / part)
    # What `make` has installed already.
    for target in ("pip", "run"):
        (environment / f"{target}.stamp").touch()
    for link in (folder / "venv", copy / "venv", copy / ".venv"):
        link.symlink_to(environment)


# The pages


def walk_readme(walk: Walk) -> None:
    [server] = walk.console()
    [demo] = walk.open("http://localhost:8081/")
    walk.wait_for_text(demo, "Signaling demo")
    chat = walk.save("html", "chat.html").as_uri()
    one, other = walk.open(chat, tabs=2)
    for tab in (one, other):
        walk.wait_for_text(tab, "connected")
    walk.type(one, "good morning")
    walk.wait_for_text(other, "they: good morning")
    walk.close(demo, one, other)

    meet = str(walk.save("python", "meet.py"))
    first = walk.run_beside(sys.executable, "-u", meet)
    first.wait_for("PeerList")
    second = walk.run_beside(sys.executable, "-u", meet)
    second.wait_for(r"Answer\(.*v=0")
    first.wait_for("PeerJoined")
    first.wait_for(r"Offer\(.*v=0")

    server.stop()
    for _ in ("in a virtual environment", "with pipx"):
        [installed] = walk.console()
        assert installed.get("/signaling.js", walk.server_port)[0] == 200
        assert installed.stop() == 0
    assert walk.console() == []


def walk_browser(walk: Walk) -> None:
    [server] = walk.console()
    walk.console()
    page = walk.save("html", "call/index.html")
    one, other = walk.open("http://localhost:8000/", tabs=2)
    for tab in (one, other):
        walk.wait_for_text(tab, "signaling: open")
        walk.wait_for_text(tab, ": connected")
    walk.close(other)
    walk.wait_for_text(one, "is gone")
    walk.close(one)

    walk.insert("js", page, before="</script>")
    walk.insert("js", page, before="</script>")
    one, other = walk.open("http://localhost:8000/", tabs=2)
    walk.wait_for_text(one, ": connected")
    for tab in (one, other):
        walk.wait_for_picture(tab)
    walk.type(one, "good morning")
    walk.wait_for_text(one, "you: good morning")
    walk.wait_for_text(other, ": good morning")

    server.stop()
    walk.wait_for_text(one, "signaling: waiting")
    walk.run_beside(sys.executable, "-m", "signaling", f"--port={walk.server_port}", "--demo")
    walk.browser.execute_script("document.querySelector('pre').textContent = ''")
    walk.wait_for_text(one, "signaling: open")
    walk.wait_for_picture(one)
    walk.close(one, other)


def walk_twisted(walk: Walk) -> None:
    walk.console()
    application = walk.save("python", "app.py")
    walk.console()
    walk.save("html", "public/index.html")
    [server] = walk.console()
    one, other = walk.open("http://localhost:8080/", tabs=2)
    for tab in (one, other):
        walk.wait_for_text(tab, ": connected")
    walk.console()
    assert server.stop() == 0
    walk.close(other)

    walk.insert("python", application, instead_of="factory = SignalingFactory()\n")
    observed = walk.run_beside(sys.executable, str(application))
    walk.browser.switch_to.window(one)
    observed.wait_for("opened my-room")
    observed.wait_for("joined my-room .*'name': 'page'")
    walk.close(one)
    observed.wait_for("left my-room")
    observed.wait_for("closed my-room")
    [echo] = walk.console()
    observed.wait_for("joined echo")
    echo.stop()
    observed.wait_for("left echo")


def walk_access_in_python(walk: Walk) -> None:
    application = walk.save_of("quickstart-twisted.md", "python", "app.py")
    (walk.folder / "public").mkdir()
    walk.insert("python", application, instead_of="factory = SignalingFactory()\n")
    server = walk.start("venv/bin/python app.py")
    assert server is not None
    walk.console()
    assert server.stop() == 0
    # It needs a key: tests of access control have some.
    walk.block("python")

    members = walk.save("python", "members.py")
    walk.console()
    page = walk.save("html", "members/index.html")
    [server] = walk.console()
    tabs = {}
    for name in ("ada", "bob"):
        # The tabs share their cookies, and so two users need two names of the host.
        [tabs[name]] = walk.open(f"http://{'localhost' if name == 'ada' else '127.0.0.1'}:8080/")
        walk.type(tabs[name], name)
    walk.wait_for_text(tabs["ada"], "lobby: bob is here")
    walk.wait_for_text(tabs["bob"], "lobby: ada is here")
    walk.wait_for_text(tabs["bob"], "team-a: the token does not cover this topic")
    assert server.stop() == 0
    # The sessions are lost, so the page shows the form again.
    lines = [line for line in members.read_text().splitlines(keepends=True) if line.startswith(("factory =", "root ="))]
    walk.insert("python", members, instead_of="".join(lines))
    walk.insert("html", page, before="<pre></pre>")
    server = walk.start("venv/bin/python members.py")
    assert server is not None
    walk.wait_for_text(tabs["ada"], "Log in")
    walk.reload(tabs["ada"])
    walk.type(tabs["ada"], "ada")
    for topic in ("lobby", "team-a"):
        server.wait_for(f"ada joined {topic}")
    walk.press(tabs["ada"], "Log out")
    for topic in ("lobby", "team-a"):
        server.wait_for(f"ada left {topic} removed")
    walk.wait_for_text(tabs["ada"], "Log in")
    walk.close(*tabs.values())


def walk_aiortc(walk: Walk) -> None:
    walk.console()
    [server] = walk.console()
    program = walk.save("python", "peer.py")
    [ada] = walk.console()
    [grace] = walk.console()
    ada.wait_for("connected to Grace")
    ada.wait_for("Grace says: hello from Grace")
    grace.wait_for("Ada says: hello from Ada")
    page = walk.save("html", "watch.html").as_uri()
    [tab] = walk.open(page)
    for program_name, peer in (("Ada", ada), ("Grace", grace)):
        walk.wait_for_text(tab, f"hello from {program_name}")
        peer.wait_for("the browser says: hello from a page")
    walk.close(tab)
    for peer in (ada, grace):
        peer.end()
    for _ in range(3):
        server.next_line("left 'my-room'")

    walk.insert("python", program, before="async def main():")
    line = "        await Mesh(signaling, on_open=greet, on_data=show).run()\n"
    walk.insert("python", program, instead_of=line)
    [ada] = walk.console()
    server.next_line("joined 'my-room'")
    [tab] = walk.open(page)
    walk.wait_for_picture(tab)
    walk.wait_for_text(tab, "hello from Ada")
    walk.save("python", "watch.py")
    [viewer] = walk.console()
    viewer.wait_for("Ada 640 x 480")
    walk.close(tab)


def walk_contributor(walk: Walk) -> None:
    git = ["git", "-c", "user.name=reader", "-c", "user.email=reader@example.com"]
    for command in (["init", "-q", "-b", "main"], ["add", "--all"], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *command], cwd=walk.folder / "twisted-signaling", check=True)
    walk.console()
    walk.console()
    walk.console()
    walk.console(fails=True)
    walk.console()
    # What `make lint` would find.
    changed = [walk.folder / f"tests/integration/test_{name}.py" for name in ("relaying", "backplane")]
    assert max(len(line) for path in changed for line in path.read_text().splitlines()) <= 120
    walk.console()
    walk.console()
    walk.console()


def walk_docker(walk: Walk) -> None:
    for _ in range(4):
        walk.console()
    hosts = dict(line.split("=") for line in walk.block("ini").splitlines())
    assert set(hosts) == set(re.findall(r"\$\{(\w+)", (TREE / "compose.yaml").read_text()))
    for _ in range(2):
        walk.console()


def walk_kubernetes(walk: Walk) -> None:
    for _ in range(8):
        walk.console()


WALKS: dict[str, Callable[[Walk], None]] = {
    "README.md": walk_readme,
    "access-python.md": walk_access_in_python,
    "quickstart-aiortc.md": walk_aiortc,
    "quickstart-browser.md": walk_browser,
    "quickstart-contributor.md": walk_contributor,
    "quickstart-docker.md": walk_docker,
    "quickstart-kubernetes.md": walk_kubernetes,
    "quickstart-twisted.md": walk_twisted,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Run a Chromium that has a camera."""
    flags = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    with chromium(tmp_path_factory.mktemp("profile"), *flags) as driver:
        yield driver


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_does_what_the_page_says(page: str, browser: webdriver.Chrome, tmp_path: Path) -> None:
    checkout(tmp_path)
    with ExitStack() as ending:
        walk = Walk(PAGES[page], tmp_path, browser, ending)
        WALKS[page](walk)
        walk.finish()


def test_every_exception_is_needed() -> None:
    commands = [
        command
        for page in PAGES.values()
        for block in blocks(page)
        if block.language == "console"
        for command, _ in block.commands
    ]
    for pattern in (*NOT_RUN, *SERVERS):
        assert any(re.fullmatch(pattern, command) for command in commands), pattern
