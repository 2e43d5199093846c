"""The demo page in a real Chromium: calls of fake pictures, its chart, its keyboard, and peers who mean no good."""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from websockets.sync.client import ClientConnection, connect

from tests import issuer
from tests.harness.operator import operated
from tests.harness.server import Server, running
from tests.programs import free_port, need
from tests.system.browser import chromium, run, wait_until

MOST_STOPS = 60
AXE = "axe-core@4.11.0"
DESKTOP = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

# When every tile of a call of `given[0]` has a picture that moves, in milliseconds since 1970.
MOVING = """
  const [count] = given, first = new Map();
  const moves = (video) => {
    if (!video.videoWidth) return false;
    if (!first.has(video)) first.set(video, video.currentTime);
    return video.currentTime > first.get(video);
  };
  for (;;) {
    const videos = [...document.querySelectorAll(".tile video")];
    if (videos.length === count && videos.filter(moves).length === count) return Date.now();
    await new Promise((later) => setTimeout(later, 10));
  }
"""
# The controls that a pointer or finger does not reach, or that stick out.
UNREACHABLE = """
  return [...document.querySelectorAll("button, input, select, [tabindex='0']")]
    .filter((control) => control.checkVisibility() && !control.disabled)
    .filter((control) => {
      control.scrollIntoView({ block: "center" });
      const { left, right, top, bottom } = control.getBoundingClientRect();
      const there = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
      const inside = left >= 0 && right <= document.documentElement.clientWidth;
      return !inside || !(control.contains(there) || there?.contains(control));
    })
    .map((control) => control.outerHTML);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(["--port=0", "--demo"]) as started:
        yield started


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile"), "--use-fake-device-for-media-stream") as driver:
        yield driver


@pytest.fixture
def driver(browser: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """The browser, with one empty window and nothing in its log."""
    yield browser
    for handle in browser.window_handles[1:]:
        browser.switch_to.window(handle)
        browser.close()
    browser.switch_to.window(browser.window_handles[0])
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get("about:blank")
    browser.get_log("browser")


def address(server: Server, topic: str) -> str:
    # A query of its own makes the browser load the page again if only the fragment differs.
    return f"http://127.0.0.1:{server.port}/?{urlencode({'for': topic})}#{quote(topic, safe='')}"


def fill_in(driver: webdriver.Chrome, server: Server, topic: str, name: str) -> None:
    driver.get(address(server, topic))
    wait_until(driver, "document.body.dataset.view === 'lobby'")
    enter(driver, "name", name)


def click(driver: webdriver.Chrome, element: str) -> None:
    # What chromedriver takes for visible may be under the bar.
    driver.execute_script("document.getElementById(arguments[0]).scrollIntoView({ block: 'center' })", element)
    driver.find_element("id", element).click()


def enter(driver: webdriver.Chrome, field: str, text: str) -> None:
    """Write a text into a field, in place of what is there."""
    driver.find_element("id", field).clear()
    driver.find_element("id", field).send_keys(text)


def join(driver: webdriver.Chrome, server: Server, topic: str, name: str) -> None:
    fill_in(driver, server, topic, name)
    click(driver, "join")
    wait_until(driver, "document.getElementById('state').dataset.state === 'open'")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, which finds violations of the accessibility guidelines."""
    folder = tmp_path_factory.mktemp("axe")
    command = [need("npm"), "pack", "--silent", "--prefer-offline", AXE]
    packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=True)
    with tarfile.open(folder / packed.stdout.strip()) as package:
        script = package.extractfile("package/axe.min.js")
        assert script
        return script.read().decode()


def assert_accessible(driver: webdriver.Chrome, axe: str) -> None:
    """Assert that axe-core finds no violation in the page, in light colours and in dark ones."""
    driver.execute_script(axe)
    check = """
      const { violations } = await axe.run({ ...given[0], resultTypes: ["violations"] });
      const said = ({ html, any }) => [html, ...any.map(({ message }) => message)];
      return violations.map(({ id, nodes }) => [id, ...nodes.map(said)]);
    """
    for theme, options in (("dark", [{"runOnly": ["color-contrast"]}]), ("light", [])):
        # Otherwise it may see a colour between two.
        media = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert run(driver, check, *options) == [], theme


def texts(driver: webdriver.Chrome, selector: str) -> list[str]:
    """What the elements of a selector say, shown or not."""
    script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent.trim())"
    return driver.execute_script(script, selector)


def wait_for_text(driver: webdriver.Chrome, selector: str, text: str) -> None:
    found = f"[...document.querySelectorAll({json.dumps(selector)})].some((one) => one.textContent.includes("
    wait_until(driver, f"{found}{json.dumps(text)}))")


def rows(driver: webdriver.Chrome) -> list[str]:
    """The chart's rows without their times and sizes."""
    script = """
      return [...document.querySelectorAll(".row")].map((row) => {
        const copy = row.querySelector(".message").cloneNode(true);
        copy.querySelectorAll(".time, .size, svg").forEach((part) => part.remove());
        return copy.textContent.replace(/\\s+/g, " ").trim();
      });
    """
    return driver.execute_script(script)


@contextmanager
def peer(server: Server, topic: str, metadata: Any = None, path: str = "/ws/") -> Iterator[ClientConnection]:
    """A peer that does no WebRTC; its ``welcome`` is read."""
    query = "" if metadata is None else "?" + urlencode({"metadata": json.dumps(metadata)})
    # What it does not read must not keep it from leaving.
    url = f"ws://127.0.0.1:{server.port}{path}{quote(topic, safe='')}{query}"
    with connect(url, max_queue=None) as socket:
        assert json.loads(socket.recv(60))["type"] == "welcome"
        yield socket


def receive(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """Read until a message of this type; returns it."""
    while True:
        message = json.loads(socket.recv(60))
        if message["type"] == kind:
            return message


def send(socket: ClientConnection, kind: str, to: str, payload: Any) -> None:
    socket.send(json.dumps({"type": kind, "to": to, "payload": payload}))


def test_two_tabs_make_a_call_without_typing(driver: webdriver.Chrome, server: Server, axe: str) -> None:
    url = f"http://127.0.0.1:{server.port}/"
    driver.get(url)
    assert_accessible(driver, axe)
    press(driver, Keys.ENTER)
    wait_until(driver, "document.getElementById('state').dataset.state === 'open'")
    assert_accessible(driver, axe)
    # The other tab is a press away too. What opened it has no hold over it.
    click(driver, "invite-link")
    driver.switch_to.window(driver.window_handles[1])
    wait_until(driver, "document.body.dataset.view === 'lobby'")
    assert driver.execute_script("return [location.href, opener]") == [f"{url}#demo", None]
    press(driver, Keys.ENTER)
    run(driver, MOVING, 2)
    wait_until(driver, "document.querySelectorAll('.badge[data-level=ok]').length === 1")
    driver.execute_script("document.querySelector('.row[data-type=offer] .message').click()")
    assert_accessible(driver, axe)
    copied = "navigator.clipboard.writeText = async (text) => void (globalThis.copied = text)"
    driver.execute_script(copied)
    click(driver, "copy-link")
    wait_for_text(driver, "#copy-link-text", "Copied")
    assert driver.execute_script("return copied") == f"{url}#demo"
    click(driver, "leave")
    assert_accessible(driver, axe)


def test_a_private_room_has_a_name_that_nobody_guesses(driver: webdriver.Chrome, server: Server) -> None:
    driver.get(f"http://127.0.0.1:{server.port}/?for=private")
    assert texts(driver, "#topic-hint") == ["Everybody who opens this address is in this room."]
    made = set()
    for _ in range(3):
        click(driver, "private-room")
        made.add(driver.execute_script("return document.getElementById('topic').value"))
    assert texts(driver, "#topic-hint") == ["Everybody who knows this name can join."]
    assert len(made) == 3
    assert all(len(name.rpartition("-")[2]) == 12 for name in made)


def test_access_tokens(driver: webdriver.Chrome, tmp_path: Path, axe: str) -> None:
    with running(["--port=0", "--demo", "--auth", f"jwt:{issuer.key_file(tmp_path)}"]) as guarded:
        url = f"http://127.0.0.1:{guarded.port}/"
        driver.get(url)
        press(driver, Keys.ENTER)
        wait_for_text(driver, "#token-error", "This server needs an access token")
        assert_asks_for(driver, "token")
        assert driver.execute_script("return document.activeElement.type") == "password"
        assert_accessible(driver, axe)
        for wrong, why in (("not a token", "This is not a token"), ("wrong", "does not accept this access token")):
            enter(driver, "token", wrong + Keys.ENTER)
            wait_for_text(driver, "#token-error", why)
            assert_asks_for(driver, "token")

        # The right token, in a link.
        token = issuer.token({"topics": ["demo"]}, exp=int(time.time()) + 15)
        driver.get(f"{url}?for=other#other&token={token}")
        assert driver.current_url == f"{url}?for=other#other"
        press(driver, Keys.ENTER)
        wait_for_text(driver, "#topic-error", "Your access token does not open the room “other”")
        assert_asks_for(driver, "topic")
        enter(driver, "topic", "demo" + Keys.ENTER)
        wait_until(driver, "document.getElementById('state').dataset.state === 'open'")
        assert driver.get_log("browser")[-1]["level"] == "SEVERE"  # of the handshakes that were refused
        wait_for_text(driver, "#trouble-text", "This access token has expired")
        assert driver.find_element("id", "trouble").is_displayed()
        assert texts(driver, "#state-text") == ["Signaling: closed"]
        assert texts(driver, "#people-count") == ["You are not in the room"]
        assert not driver.find_element("id", "invite").is_displayed()
        assert_accessible(driver, axe)
        driver.execute_script("for (const message of document.querySelectorAll('.message')) message.click()")
        shown = "return [document.documentElement.outerHTML, location.href, document.title, document.body.innerText]"
        assert not [text for text in driver.execute_script(shown) if token.rpartition(".")[2] in text]
        click(driver, "trouble-action")
        assert_asks_for(driver, "token")


def assert_asks_for(driver: webdriver.Chrome, field: str) -> None:
    """Assert that the form is shown, and that the person is at this field."""
    script = "return [document.body.dataset.view !== 'call', document.activeElement.id]"
    assert driver.execute_script(script) == [True, field]


def test_what_an_operator_does_is_shown_and_the_way_back_takes_a_click(
    driver: webdriver.Chrome, tmp_path: Path, axe: str
) -> None:
    with operated(tmp_path, "--demo") as (operated_server, operator), peer(operated_server, "room") as grace:
        join(driver, operated_server, "room", "Ada")
        ada = receive(grace, "peer-joined")["peerId"]
        operator.notify("room", {"text": "<b>Ten minutes</b>\nleft"})
        wait_for_text(driver, "#operator-notice", "From the operator of the server: <b>Ten minutes</b> left")
        assert driver.find_element("id", "operator-notice").is_displayed()
        assert_accessible(driver, axe)
        operator.remove("room", ada, "Enough <b>")
        wait_for_text(driver, "#trouble-text", "An operator removed you from this room: Enough <b>.")
        assert_ended(driver, "Removed")
        assert_accessible(driver, axe)
        receive(grace, "peer-left")
        # Nothing but the person brings the page back.
        driver.execute_script("for (const type of ['online', 'pageshow']) dispatchEvent(new Event(type))")
        assert_ended(driver, "Removed")
        click(driver, "trouble-action")
        assert_asks_for(driver, "topic")
        press(driver, Keys.ENTER)
        wait_until(driver, "document.getElementById('state').dataset.state === 'open'")
        receive(grace, "peer-joined")
        assert not driver.find_element("id", "operator-notice").is_displayed()
        operator.close("room")
        wait_for_text(driver, "#trouble-text", "An operator closed this room.")
        assert_ended(driver, "Room closed")
        assert operator.topics() == {}
    # A browser that is about to learn of the end complains of what the page sends meanwhile.
    assert [said for said in driver.get_log("browser") if "in CLOSING or CLOSED state" not in said["message"]] == []


def assert_ended(driver: webdriver.Chrome, state: str) -> None:
    """Assert that the page is in no room, sends no picture, and offers a way back."""
    assert texts(driver, "#state-text") == [state]
    assert texts(driver, "#people-count") == ["You are not in the room"]
    assert driver.find_element("id", "trouble-action").text == "Join again"
    script = "return [document.getElementById('source').value, document.querySelectorAll('.tile').length]"
    assert driver.execute_script(script) == ["none", 1]


def test_a_full_room_says_so_beside_its_name_and_below_a_path_too(driver: webdriver.Chrome, axe: str) -> None:
    with running(["--port=0", "--demo", "--max-peers-per-topic=1", "--path-prefix=/rooms"]) as small:
        with peer(small, "small", path="/rooms/ws/"):
            driver.get(f"http://127.0.0.1:{small.port}/rooms?name=Ada#small")
            wait_until(driver, "document.body.dataset.view === 'lobby'")
            assert driver.execute_script("return location.pathname") == "/rooms/"
            click(driver, "join")
            wait_for_text(driver, "#trouble-text", "This room is full.")
            wait_until(driver, "document.getElementById('trouble').checkVisibility()")
            assert texts(driver, "#people-count") == ["You are not in the room"]
            assert_accessible(driver, axe)
        # Otherwise the next attempt would be in some seconds.
        driver.execute_script("dispatchEvent(new Event('online'))")
        wait_until(driver, "document.getElementById('state').dataset.state === 'open'")
        assert not driver.find_element("id", "trouble").is_displayed()


def test_the_focus_stays_where_it_was_whatever_is_drawn(driver: webdriver.Chrome, server: Server) -> None:
    join(driver, server, "focus", "Ada")
    driver.execute_script("document.getElementById('invite-link').focus()")
    with peer(server, "focus", {"name": "Grace"}) as grace:
        # What had the focus is gone.
        wait_until(driver, "document.activeElement.id === 'copy-link'")
        receive(grace, "offer")
        driver.execute_script("document.querySelector('.row[data-type=offer] .message').click()")
        for number, selector in enumerate((".detail pre", ".message", "#chart-filter", "#chat-text")):
            driver.execute_script(
                "globalThis.kept = document.querySelector(arguments[0]); kept.focus(); kept.scrollTop = 20;"
                "globalThis.scrolled = kept.scrollTop",
                selector,
            )
            name = f"Joan {number}"
            with peer(server, "focus", {"name": name}):
                wait_for_text(driver, "#chart-filter option", name)
                wait_for_text(driver, "#chart-lanes span:not(.gone)", name)
            wait_for_text(driver, "#chart-lanes .gone", name)
            assert driver.execute_script("return document.activeElement === kept && kept.scrollTop === scrolled")


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_what_matters_is_seen_without_scrolling(driver: webdriver.Chrome, server: Server, screen: dict) -> None:
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.get(address(server, "screen"))
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    assert driver.execute_script(bottom, "#join") < screen["height"]
    press(driver, Keys.ENTER)
    wait_until(driver, "document.getElementById('state').dataset.state === 'open'")
    assert driver.execute_script(bottom, ".controls") < screen["height"]
    # Chat comes before diagnostics, and the state stays.
    order = "return [...document.querySelectorAll('#call h2, #chart h2')].map((title) => title.id)"
    assert driver.execute_script(order) == ["people-title", "chat-title", "connections-title", "chart-title"]
    driver.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
    seen = """
      const { left, right, top, bottom } = document.getElementById("state").getBoundingClientRect();
      return document.elementFromPoint((left + right) / 2, (top + bottom) / 2).closest(".bar") !== null && top >= 0;
    """
    assert driver.execute_script(seen)


def test_three_see_hear_of_and_write_to_each_other(driver: webdriver.Chrome, server: Server) -> None:
    names = ["Ada", "Grace", "Joan"]
    watch = f"const given = [3]; window.moving = (async () => {{ {MOVING} }})();"
    for name in names[:2]:
        if name != names[0]:
            driver.switch_to.new_window("window")
        join(driver, server, "mesh", name)
        driver.execute_script(watch)
    driver.switch_to.new_window("window")
    fill_in(driver, server, "mesh", names[2])
    clicked = run(driver, "document.getElementById('join').click(); return Date.now();")
    driver.execute_script(watch)
    took = []
    for handle in driver.window_handles:
        driver.switch_to.window(handle)
        took.append((run(driver, "return await window.moving;") - clicked) / 1000)
        wait_until(driver, "document.querySelectorAll('.tile[data-picture=yes]').length === 3")
        assert sorted(texts(driver, ".tile bdi")) == names
        wait_until(driver, "document.querySelectorAll('.badge[data-level=ok]').length === 2")
        wait_for_text(driver, "#connections dd", "Direct: host to host, udp")
    print("seconds from the last join until all pictures move, by page:", took)

    # The third speaks, mutes itself and leaves.
    driver.find_element("id", "chat-text").send_keys("hello <b>all</b>\n")
    click(driver, "mute")
    assert driver.find_element("id", "mute").text == "Unmute"
    for handle in driver.window_handles[:2]:
        driver.switch_to.window(handle)
        wait_for_text(driver, "#chat-lines li", "Joan hello <b>all</b>")
        wait_until(driver, "document.querySelectorAll('.tile .muted:not([hidden])').length === 1")
    driver.switch_to.window(driver.window_handles[2])
    click(driver, "leave")
    wait_until(driver, "document.body.dataset.view === 'left'")
    for handle in driver.window_handles[:2]:
        driver.switch_to.window(handle)
        wait_until(driver, "document.querySelectorAll('.tile').length === 2")
        assert "Joan" not in texts(driver, ".tile bdi")
        wait_for_text(driver, "#announcer", "Joan left")
    assert_another_picture_and_none_reach(driver, *driver.window_handles[:2])
    assert_kept_to_itself(driver, server)


def test_a_picture_is_shown_although_the_browser_calls_its_track_muted(
    driver: webdriver.Chrome, server: Server
) -> None:
    """Chromium may do so for ever, if both sides offered at once and the first offer was rolled back."""
    muted = "Object.defineProperty(MediaStreamTrack.prototype, 'muted', { get: () => true })"
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": muted})
    try:
        join(driver, server, "muted", "Ada")
        wait_until(driver, "document.querySelectorAll('.tile[data-picture=yes]').length === 1")
        driver.find_element("css selector", "#source [value=none]").click()
        wait_until(driver, "document.querySelectorAll('.tile[data-picture=no]').length === 1")
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def assert_kept_to_itself(driver: webdriver.Chrome, server: Server) -> None:
    """Assert that no page complained, or asked another server for anything."""
    for handle in driver.window_handles:
        driver.switch_to.window(handle)
        origins = (
            "return [...new Set(performance.getEntriesByType('resource').map(({ name }) => new URL(name).origin))]"
        )
        assert driver.execute_script(origins) == [f"http://127.0.0.1:{server.port}"]
    assert driver.get_log("browser") == []
    # The policy is in force, and a breach would have been in that log.
    driver.execute_script("document.body.setAttribute('style', 'color: red')")
    assert "Content Security Policy" in driver.get_log("browser")[0]["message"]


def assert_another_picture_and_none_reach(driver: webdriver.Chrome, first: str, second: str) -> None:
    """Assert that what the second window's page sends, of two, is what the first window's page shows."""
    driver.switch_to.window(second)
    click(driver, "camera")
    driver.switch_to.window(first)
    wait_for_text(driver, ".tile:not([data-own]) .tile-status", "Camera off")
    wait_until(driver, "document.querySelectorAll('.tile[data-picture=no]').length === 1")
    driver.switch_to.window(second)
    click(driver, "camera")
    driver.find_element("css selector", "#source [value=none]").click()
    driver.switch_to.window(first)
    wait_for_text(driver, ".tile:not([data-own]) .tile-status", "No picture")
    wait_until(driver, "document.querySelectorAll('.tile[data-picture=no]').length === 1")
    driver.switch_to.window(second)
    driver.find_element("css selector", "#source [value=test]").click()
    driver.switch_to.window(first)
    wait_until(driver, "document.querySelectorAll('.tile[data-picture=yes]').length === 2")
    run(driver, MOVING, 2)


@pytest.mark.parametrize(("setting", "view"), [("denied", "lobby"), ("granted", "call")])
def test_camera(driver: webdriver.Chrome, server: Server, setting: str, view: str) -> None:
    for name in ("camera", "microphone"):
        permission = {"permission": {"name": name}, "setting": setting}
        driver.execute_cdp_cmd("Browser.setPermission", permission)
    fill_in(driver, server, "camera", "Ada")
    driver.find_element("css selector", "[name=media][value=camera]").click()
    click(driver, "join")
    joining = "document.getElementById('join').ariaDisabled === 'true'"
    wait_until(driver, f"document.body.dataset.view === '{view}' && !({joining})")
    if view == "call":
        run(driver, MOVING, 1)
        assert driver.get_log("browser") == []
    else:
        wait_for_text(driver, "#media-error", "The browser was not allowed to use the camera")


def test_chart_shows_glare_and_how_each_candidate_was_found(driver: webdriver.Chrome, server: Server) -> None:
    with peer(server, "chart", {"name": "Grace"}) as grace:
        join(driver, server, "chart", "Ada")
        offer = receive(grace, "offer")
        send(grace, "offer", offer["from"], offer["payload"])
        for candidate in (
            "candidate:1 1 udp 1 203.0.113.5 4444 typ relay raddr 198.51.100.1 rport 9",
            "candidate:2 1 tcp 1 01234567-89ab.local 9 typ host tcptype active",
        ):
            send(grace, "ice-candidate", offer["from"], {"candidate": candidate})
        send(grace, "ice-candidate", offer["from"], None)
        send(grace, "ice-candidate", offer["from"], {"candidate": "<b>"})
        wait_for_text(driver, ".row", "not understood")
    wait_for_text(driver, ".row", "peer-left")
    shown = [row for row in rows(driver) if not row.startswith(("to Grace: candidate", "about"))]
    # An answer to the other offer, and errors for what was under way when she left, may be there as well.
    shown = [row for row in shown if "answer" not in row and "error" not in row]
    me = offer["from"][-4:]
    assert shown == [
        f"from the server: welcome you are …{me}",
        "from the server: peer-list 1 other",
        "to Grace: offer audio, video, data glare: this offer gives way",
        "from Grace: offer audio, video, data glare: this offer stands",
        "from Grace: candidate relay udp",
        "from Grace: candidate host tcp mDNS",
        "from Grace: candidate end of candidates",
        "from Grace: candidate not understood",
        "from the server: peer-left Grace",
    ]
    # What a candidate says in full is shown on demand only.
    assert "203.0.113.5" not in driver.execute_script("return document.body.innerText")
    driver.execute_script(
        "[...document.querySelectorAll('.message')].find((one) => /relay/.test(one.textContent)).click()"
    )
    assert "203.0.113.5 4444 typ relay" in driver.find_element("css selector", ".detail pre").text

    # Fewer rows, without candidates and of the server only.
    click(driver, "chart-candidates")
    wait_until(driver, "![...document.querySelectorAll('.row')].some((row) => /candidate/.test(row.textContent))")
    driver.find_element("css selector", "#chart-filter [value=server]").click()
    wait_until(driver, "document.querySelectorAll('.row:is([data-type=offer], [data-type=answer])').length === 0")
    assert "from the server: peer-left Grace" in rows(driver)
    click(driver, "chart-clear")
    wait_until(driver, "document.querySelectorAll('.row').length === 0")


def test_chart_shows_what_was_refused(driver: webdriver.Chrome) -> None:
    with running(["--port=0", "--demo", "--max-message-rate=1", "--message-burst=2"]) as strict:
        with peer(strict, "strict", {"name": "Grace"}) as grace:
            join(driver, strict, "strict", "Ada")
            receive(grace, "offer")
            wait_for_text(driver, ".row[data-type=error]", "error rate_limited")
            wait_for_text(driver, ".row[data-type=ice-candidate][data-level=error] .mark", "refused: rate_limited")


def test_chart_is_bounded_and_waits_while_paused(driver: webdriver.Chrome, server: Server) -> None:
    with peer(server, "flood", {"name": "Grace"}) as grace:
        join(driver, server, "flood", "Ada")
        me = receive(grace, "peer-joined")["peerId"]
        click(driver, "chart-pause")
        wait_until(driver, "document.getElementById('chart-pause').textContent.startsWith('Go on')")
        before = rows(driver)
        for number in range(600):
            send(grace, "ice-candidate", me, {"candidate": f"{number}"})
        wait_until(driver, "/\\((59|6\\d)\\d new\\)/.test(document.getElementById('chart-pause').textContent)")
        assert rows(driver) == before
        click(driver, "chart-pause")
        wait_until(driver, "document.querySelectorAll('.row').length === 500")
        # A row with the focus that is dropped passes it on.
        driver.execute_script("document.querySelector('.message').focus()")
        for number in range(30):
            send(grace, "ice-candidate", me, {"candidate": f"last {number}"})
        wait_until(driver, "/ 6[3-9]\\d|[1-9]\\d\\d older/.test(document.getElementById('chart-count').textContent)")
        wait_until(driver, "document.activeElement.matches('.message')")
        driver.execute_script("document.getElementById('chart-scroll').scrollTop = 1e6")
        wait_for_text(driver, "#chart-count", "older ones dropped")
        scrolled = "const { scrollTop, clientHeight, scrollHeight } = document.getElementById('chart-scroll');"
        assert driver.execute_script(f"{scrolled} return scrollHeight - scrollTop - clientHeight") < 2


def test_call_outlives_the_server(driver: webdriver.Chrome) -> None:
    port = free_port()
    with running([f"--port={port}", "--demo", "--metadata-updates"]) as lost:
        for name in ("Ada", "Grace"):
            if name == "Grace":
                driver.switch_to.new_window("window")
            join(driver, lost, "loss", name)
        run(driver, MOVING, 2)
        driver.switch_to.new_window("window")
        fill_in(driver, lost, "loss", "Joan")
        *callers, late = driver.window_handles
        lost.end()
        shown = "/^Signaling lost: retry in \\d+ s$/.test(document.getElementById('state-text').textContent)"
        press(driver, Keys.ENTER)
        for handle in callers:
            driver.switch_to.window(handle)
            wait_until(driver, shown)
            wait_for_text(driver, ".row[data-level=error]", "signaling lost")
            assert texts(driver, "#trouble-text") == [
                "The server cannot be reached. Your call goes on; people who join now see you when it is back."
            ]
            run(driver, MOVING, 2)
        driver.switch_to.window(late)
        wait_until(driver, "document.body.dataset.view === 'call'")
        wait_for_text(driver, "#trouble-text", "There is no connection to the server.")
        click(driver, "leave")
        assert_asks_for(driver, "join")
        driver.close()
        driver.switch_to.window(callers[0])
        click(driver, "rename")
        enter(driver, "new-name", f"Mary{Keys.ENTER}")
        wait_for_text(driver, "#call-notice", "when you are connected again")
    with running([f"--port={port}", "--demo", "--metadata-updates"]):
        for handle in driver.window_handles:
            driver.switch_to.window(handle)
            wait_until(driver, "document.getElementById('state-text').textContent === 'Signaling: open'")
        for handle in driver.window_handles:
            driver.switch_to.window(handle)
            wait_until(driver, "document.querySelectorAll('.lanes-head span:not(.gone)').length === 3")
            assert sorted(texts(driver, ".tile bdi")) == ["Grace", "Mary"]
            assert texts(driver, "#call-notice") == [""]
            run(driver, MOVING, 2)


def press(driver: webdriver.Chrome, *keys: str) -> None:
    ActionChains(driver, duration=0).send_keys(*keys).perform()


def walk_to(driver: webdriver.Chrome, selector: str, key: str = Keys.TAB) -> None:
    """Press a key until the element is focused; every stop on the way shows that it is."""
    focus = """
      const focused = document.activeElement;
      const shown = focused.closest(".choice") ?? focused;
      return [focused.matches(arguments[0]), getComputedStyle(shown).outlineStyle, focused.outerHTML];
    """
    for _ in range(MOST_STOPS):
        press(driver, key)
        there, outline, element = driver.execute_script(focus, selector)
        assert outline == "solid" or element.startswith("<body"), element
        if there:
            return
    raise AssertionError(f"{selector} is not reached")


def test_a_name_is_changed_in_a_call(driver: webdriver.Chrome, axe: str) -> None:
    # One change, and no other for a long time.
    rate = ["--metadata-rate=0.001", "--metadata-burst=1"]
    with running(["--port=0", "--demo", "--metadata-updates", *rate]) as renaming:
        for name in ("Ada", "Grace"):
            if name == "Grace":
                driver.switch_to.new_window("window")
            join(driver, renaming, "names", name)
        first, second = driver.window_handles
        wait_until(driver, "document.querySelectorAll('.badge[data-level=ok]').length === 1")
        click(driver, "rename")
        assert driver.execute_script("return [document.activeElement.id, getSelection().toString()]") == [
            "new-name",
            "Grace",
        ]
        assert_accessible(driver, axe)
        press(driver, Keys.ESCAPE)
        assert driver.execute_script("return document.activeElement.id") == "rename"
        press(driver, Keys.ENTER, "Joan <b>\u202e", Keys.ENTER)
        wait_for_text(driver, ".tile[data-own] bdi", "Joan <b>")
        wait_for_text(driver, "#announcer", "You are Joan <b> now")
        assert driver.execute_script("return document.activeElement.id") == "rename"
        assert "to the server: metadata Joan <b>" in rows(driver)
        driver.switch_to.window(first)
        wait_for_text(driver, ".tile bdi", "Joan <b>")
        wait_for_text(driver, "#connections bdi", "Joan <b>")
        wait_for_text(driver, "#chart-lanes span", "Joan <b>")
        wait_for_text(driver, "#announcer", "Grace is Joan <b> now")
        assert "from the server: peer-updated Joan <b>" in rows(driver)
        assert len(texts(driver, ".tile")) == 2
        # The connection stayed: the tile is that of the call which began under the other name.
        assert "Grace" not in texts(driver, ".tile bdi")
        run(driver, MOVING, 2)
        # Too often: the server's word is shown, and the name stays.
        driver.switch_to.window(second)
        click(driver, "rename")
        enter(driver, "new-name", f"Mary{Keys.ENTER}")
        wait_for_text(driver, "#call-notice", "too often")
        assert texts(driver, ".tile[data-own] bdi") == ["Joan <b>"]
        assert_narrow(driver)
        for handle in (first, second):
            driver.switch_to.window(handle)
            assert driver.get_log("browser") == []


def test_names_stay_where_the_server_does_not_change_them(driver: webdriver.Chrome, server: Server) -> None:
    join(driver, server, "fixed", "Ada")
    assert not driver.find_element("id", "rename").is_displayed()
    assert not driver.find_element("id", "rename-form").is_displayed()


def test_all_of_it_by_keyboard(driver: webdriver.Chrome, server: Server) -> None:
    with peer(server, "keys", {"name": "Grace"}) as grace:
        driver.get(f"http://127.0.0.1:{server.port}/?for=keys")
        # The name that the page suggests is selected.
        wait_until(driver, "document.activeElement.id === 'name'")
        press(driver, "Ada")
        walk_to(driver, "#topic")
        press(driver, "keys")
        walk_to(driver, "[name=media]")
        press(driver, Keys.ARROW_UP)
        walk_to(driver, "#join")
        press(driver, Keys.ENTER)
        receive(grace, "offer")
        wait_until(driver, "document.body.dataset.view === 'call'")
        assert texts(driver, ".tile[data-own] bdi") == ["Ada"]
        assert driver.execute_script("return document.getElementById('source').value") == "none"
        walk_to(driver, "#chat-text")
        press(driver, "hello", Keys.ENTER)
        wait_for_text(driver, "#chat-lines li", "You hello")
        walk_to(driver, ".message")
        press(driver, Keys.HOME, Keys.ARROW_DOWN, Keys.ENTER)
        assert driver.execute_script("return document.activeElement.ariaExpanded") == "true"
        wait_for_text(driver, ".detail pre", "Grace")
        walk_to(driver, "#leave", Keys.SHIFT + Keys.TAB)
        press(driver, Keys.ENTER)
        wait_until(driver, "document.body.dataset.view === 'left' && document.activeElement.id === 'join'")
        receive(grace, "peer-left")


HOSTILE = {
    "<img src=x onerror=document.title='taken'>": "<img src=x onerror=document.title='take…",
    "\u202e\u2066evil\u200f": "evil",
    "אב\u05d2 right to left": "אב\u05d2 right to left",
    "x" * 4000: "x" * 39 + "…",
    "W" * 20 + "\n\t\x00" + "W" * 10: "W" * 20 + " " + "W" * 10,
    " \u200b ": "Guest",
}


def test_names_of_any_kind_are_text(driver: webdriver.Chrome, server: Server) -> None:
    topic = "<b>any</b> topic/ü?#" + "y" * 150
    join(driver, server, topic, "Ada <script>")
    for name, shown in HOSTILE.items():
        with peer(server, topic, {"name": name}):
            wait_until(driver, "document.querySelectorAll('.tile').length === 2")
            wait_for_text(driver, "#connections bdi", shown)
            assert texts(driver, ".tile bdi") == ["Ada <script>", shown]
            assert_narrow(driver)
        wait_until(driver, "document.querySelectorAll('.tile').length === 1")
    for metadata in ({"name": {"toString": 1}}, {"name": None, "instance": []}, None):
        with peer(server, topic, metadata):
            wait_for_text(driver, "#connections bdi", "Guest")
        wait_until(driver, "document.querySelectorAll('.tile').length === 1")
    assert driver.find_element("id", "call-topic").text == topic
    assert driver.execute_script("return document.querySelectorAll('main img, main script, main h1 b').length") == 0
    assert driver.title.endswith("Signaling demo")
    assert driver.get_log("browser") == []


def test_messages_of_any_kind_are_shown_and_cost_no_error(driver: webdriver.Chrome, server: Server) -> None:
    payloads = [
        {"type": {"toString": 1}, "sdp": "v=0\nm=audio 9"},
        {"type": "offer", "sdp": "m=a 0\n" * 8000},
        {"type": "offer", "sdp": "a=fingerprint:" + " " * 60_000 + "x"},
        json.loads("[" * 60 + "]" * 60),
        {"__proto__": {"sdp": 5}, "sdp": {}, "candidate": {}},
        None,
        5,
        "last",
    ]
    with peer(server, "odd", {"name": "Grace"}) as grace:
        join(driver, server, "odd", "Ada")
        me = receive(grace, "peer-joined")["peerId"]
        for payload in payloads:
            for kind in ("offer", "answer", "ice-candidate"):
                send(grace, kind, me, payload)
        wait_until(driver, "document.querySelectorAll('.row[data-type=answer]').length >= 8")
        driver.execute_script("for (const message of document.querySelectorAll('.message')) message.click()")
        wait_for_text(driver, ".detail pre", "last")
        wait_for_text(driver, ".detail pre", "(nested too deeply to show)")
    assert driver.get_log("browser") == []


def test_a_page_without_webrtc_says_so(driver: webdriver.Chrome, server: Server) -> None:
    script = {"source": "delete globalThis.RTCPeerConnection"}
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        driver.get(address(server, "nothing"))
        wait_for_text(driver, "#lobby-notice", "This browser has no WebRTC")
        assert driver.find_element("id", "lobby-notice").is_displayed()
        assert not driver.find_element("id", "join").is_enabled()
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert driver.get_log("browser") == []


def assert_narrow(driver: webdriver.Chrome) -> None:
    # A phone's innerWidth grows with the page, and would hide what sticks out.
    script = "const { scrollWidth, clientWidth } = document.documentElement; return [scrollWidth, clientWidth]"
    scroll_width, client_width = driver.execute_script(script)
    assert scroll_width <= client_width


def test_everything_is_reached_at_360_pixels(driver: webdriver.Chrome, server: Server) -> None:
    phone = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    topic = "a-topic-without-any-space-that-is-far-too-long-for-a-line"
    fill_in(driver, server, topic, "A" * 64)
    assert_narrow(driver)
    assert driver.execute_script(UNREACHABLE) == []
    click(driver, "join")
    run(driver, MOVING, 1)
    assert_narrow(driver)
    assert driver.execute_script(UNREACHABLE) == []
    with peer(server, topic, {"name": "W" * 4000}), peer(server, topic, {"name": "W" * 4000}):
        wait_until(driver, "document.querySelectorAll('.tile').length === 3")
        assert_narrow(driver)
        assert driver.execute_script(UNREACHABLE) == []
