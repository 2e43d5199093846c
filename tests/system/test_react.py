"""The hook for React in Chromium, in StrictMode, against a real server."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from tests import issuer
from tests.harness.npm_package import install, program
from tests.harness.npm_package import run as run_program
from tests.harness.server import Server, running
from tests.programs import free_port
from tests.system.browser import run

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "clients-react.md"

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an application that has the package, and the component of the document."""
    folder = tmp_path_factory.mktemp("application")
    install(folder)
    shutil.copy(HERE / "react_app.jsx", folder)
    [component] = re.findall(r"```tsx\n([^`]*function Room.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (folder / "documented.tsx").write_text(component)
    return folder


@functools.cache
def bundle(application: Path, react: str) -> str:
    """Return the application as one script, with the development build of React, which alone mounts twice."""
    aliases = [] if react == "19" else [f"--alias:{name}={name}-{react}" for name in ("react", "react-dom")]
    options = ["--bundle", "--jsx=automatic", '--define:process.env.NODE_ENV="development"', *aliases]
    return run_program(program("esbuild"), "react_app.jsx", *options, cwd=application)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(["--port=0", "--metadata-updates"]) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(application: Path) -> Iterator[Server]:
    """Run a server that controls access."""
    with running(["--port=0", "--auth", f"jwt:{issuer.key_file(application)}:audience=us"]) as server:
        yield server


@pytest.fixture(params=["18", "19"])
def page(request: pytest.FixtureRequest, application: Path, browser: webdriver.Chrome, server: Server) -> str:
    """Open a page with an application on that version of React; returns the URL of a topic of its own."""
    browser.get(f"http://127.0.0.1:{server.port}/healthz")
    browser.execute_script(bundle(application, request.param))
    assert browser.execute_script("return version").startswith(f"{request.param}.")
    return f"{server.url}{request.node.name}"


def test_strict_mode_joins_once_and_unmounting_leaves(browser: webdriver.Chrome, page: str) -> None:
    script = """
      const [url] = given;
      const observer = await observe(url);
      const before = opened.length;
      render(Probe, { url });
      await until(() => seen.results.at(-1).peers.some(({ channel }) => channel.readyState === "open"));
      // Who joins now, joins after all that the mounts may have caused.
      const later = await observe(url);
      await until(() => observer.joined.length >= 2);
      const names = observer.joined.map(({ metadata }) => metadata.name);
      const result = { mounts: seen.mounts, names, opened: opened.length - before, left: observer.left.length };
      const { selfId } = seen.results.at(-1).signaling;
      unmount();
      await until(() => observer.left.length);
      later.signaling.leave();
      await until(() => observer.left.length > 1);
      return { ...result, leftFirst: observer.left[0] === selfId, ghosts: observer.mesh.peers.size };
    """
    assert run(browser, script, page) == {
        "mounts": 2,
        "names": ["Ada", "an observer"],
        "opened": 2,
        "left": 0,
        "leftFirst": True,
        "ghosts": 0,
    }


def test_new_options_do_not_join_again_and_their_listeners_are_the_latest(browser: webdriver.Chrome, page: str) -> None:
    script = """
      const [url] = given;
      const observer = await observe(url);
      render(Probe, { url });
      const isOpen = ({ peers }) => peers.some(({ channel }) => channel.readyState === "open");
      await until(() => isOpen(seen.results.at(-1)));
      const { mesh } = seen.results.at(-1);
      for (let number = 1; number <= 20; number++) render(Probe, { url, number });
      await until(() => [...observer.mesh.peers.values()].some(({ channel }) => channel?.readyState === "open"));
      observer.mesh.broadcast("hello");
      await until(() => seen.data.length);
      const same = seen.results.at(-1).mesh === mesh;
      unmount();
      await until(() => observer.left.length);
      return { data: seen.data, same, opened: opened.length, joined: observer.joined.length };
    """
    assert run(browser, script, page) == {"data": [[20, "hello"]], "same": True, "opened": 2, "joined": 1}


def test_a_peer_that_updates_its_metadata_is_rendered_again(browser: webdriver.Chrome, page: str) -> None:
    script = """
      const [url] = given;
      const observer = await observe(url);
      render(Probe, { url });
      await until(() => seen.results.at(-1).peers.length);
      const { peers: before, signaling } = seen.results.at(-1);
      await observer.signaling.updateMetadata({ name: "Grace" });
      const name = () => seen.results.at(-1).peers[0].metadata.name;
      await until(() => name() === "Grace");
      await signaling.updateMetadata({ name: "Joan" });
      const mine = () => observer.mesh.peers.get(signaling.selfId)?.metadata.name;
      await until(() => mine() === "Joan");
      unmount();
      await until(() => observer.left.length);
      return { isNew: seen.results.at(-1).peers !== before, joined: observer.joined.length };
    """
    assert run(browser, script, page) == {"isNew": True, "joined": 1}


def test_another_url_leaves_one_topic_for_another(browser: webdriver.Chrome, page: str) -> None:
    script = """
      const [first, second] = [given[0], `${given[0]}-2`];
      const observers = await Promise.all([observe(first), observe(second)]);
      render(Probe, { url: first });
      await until(() => seen.results.at(-1).peers.length);
      render(Probe, { url: second });
      await until(() => seen.results.at(-1).peers.length && observers[0].left.length);
      const old = seen.results.find(({ url, mesh }) => url === first && mesh).mesh;
      const result = {
        stale: seen.results.filter(({ url, mesh }) => url === second && mesh === old).length,
        peers: seen.results.at(-1).peers.map(({ id }) => id === observers[1].signaling.selfId),
        joined: observers.map(({ joined }) => joined.length),
        opened: opened.length,
      };
      unmount();
      await until(() => observers[1].left.length);
      return result;
    """
    assert run(browser, script, page) == {"stale": 0, "peers": [True], "joined": [1, 1], "opened": 4}


def test_a_component_that_is_unmounted_at_once_never_joins(browser: webdriver.Chrome, page: str) -> None:
    script = """
      render(Probe, { url: given[0] });
      unmount();
      await observe(given[0]);
      return opened.length;
    """
    assert run(browser, script, page) == 1


@pytest.mark.usefixtures("page")
def test_a_page_sees_why_there_is_no_connection(browser: webdriver.Chrome) -> None:
    script = """
      render(Probe, { url: given[0] });
      await until(() => seen.results.at(-1).state === "waiting");
      const { reason } = seen.results.at(-1);
      unmount();
      render(Probe, { url: "ws://" });
      await until(() => document.body.textContent.includes("caught"));
      return [reason, document.querySelector("main:last-of-type").textContent];
    """
    url = f"ws://127.0.0.1:{free_port()}/ws/room"
    assert run(browser, script, url) == ["no connection (1006)", "caught TypeError"]


@pytest.mark.usefixtures("page")
def test_the_latest_token_function_is_asked_and_a_refusal_is_shown(browser: webdriver.Chrome, guarded: Server) -> None:
    script = """
      const [url, good, wrong] = given;
      let answer;
      const first = () => new Promise((resolve) => { answer = resolve; });
      render(Probe, { url, token: first });
      await until(() => answer);
      render(Probe, { url, token: () => good });
      answer(wrong);
      await until(() => seen.results.at(-1).state === "open");
      const asked = [seen.results.at(-1).refused, new Set(seen.results.map(({ mesh }) => mesh)).size];
      render(Probe, { url, key: "another", token: () => wrong });
      await until(() => seen.results.at(-1).state === "closed");
      const { refused, reason } = seen.results.at(-1);
      return [...asked, refused.status, refused.reason === reason];
    """
    good, wrong = issuer.token(aud="us"), issuer.token(aud="us", number=1)
    # Before and after `undefined`, one mesh.
    assert run(browser, script, f"{guarded.url}room", good, wrong) == [None, 2, 401, True]


def test_the_documented_component_works(browser: webdriver.Chrome, page: str) -> None:
    script = """
      const [url] = given;
      const observer = await observe(url);
      const heard = new Promise((done) => observer.mesh.addEventListener("data", ({ detail }) => done(detail.data)));
      render(Room, { url, name: "Ada" });
      const shown = (selector) => document.querySelector(`main ${selector}`)?.textContent;
      await until(() => shown("li") === "an observer" && shown("p") === "open");
      const isOpen = () => [...observer.mesh.peers.values()].some(({ channel }) => channel?.readyState === "open");
      await until(isOpen);
      document.querySelector("button").click();
      observer.mesh.broadcast("<b>hi</b>");
      await until(() => shown("pre"));
      return [await heard, shown("pre")];
    """
    assert run(browser, script, page) == ["hello", "<b>hi</b>"]
