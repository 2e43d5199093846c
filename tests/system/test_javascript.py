"""The JavaScript client in Chromium: meshes whose signaling is cut, killed and late."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from websockets.sync.client import connect

from tests import issuer
from tests.harness.fault_proxy import fault_proxy
from tests.harness.server import Server, running
from tests.programs import free_port
from tests.system.browser import chromium, run, wait_until
from tests.system.pages import add_client, serve
from tests.system.refusing_turn import refusing_turn

# For how long a mesh lives on tokens of ten seconds; two minutes are a good trial.
TOKEN_TRIAL_SECONDS = int(os.environ.get("TOKEN_TRIAL_SECONDS", "11"))
# How many pairs offer at the same moment; 200 are a good trial.
GLARE_PAIRS = int(os.environ.get("GLARE_PAIRS", "40"))


DOCUMENT = Path(__file__).parents[2] / "docs" / "clients-javascript.md"

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the client and an empty page."""
    folder = tmp_path_factory.mktemp("pages")
    add_client(folder)
    return folder


@pytest.fixture(scope="module")
def pages(folder: Path) -> Iterator[str]:
    """Serve that folder, whatever becomes of the signaling server; returns its address."""
    with serve(folder) as address:
        yield address


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a server for all tests that leave it as it is."""
    with running() as started:
        yield started


_rooms = itertools.count(1)


@pytest.fixture
def room(server: Server) -> str:
    """Return the URL of a topic of that server that no other test has."""
    return f"{server.url}room-{next(_rooms)}-"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile"), "--js-flags=--expose-gc") as driver:
        yield driver


@pytest.fixture
def page(browser: webdriver.Chrome, pages: str) -> webdriver.Chrome:
    """Open an empty page, in which ``p`` is peers.js."""
    browser.get(pages)
    run(browser, "globalThis.p = await import('/peers.js')")
    return browser


def test_each_sees_the_others_metadata_and_hears_their_messages(page: webdriver.Chrome, room: str) -> None:
    script = """
      const [first, second] = ["Ada", "Grace"].map((name) => p.peer(given[0], { metadata: { name } }));
      await p.allLinked([first, second]);
      first.mesh.broadcast("hello");
      await p.until(() => second.got.length, "a message");
      const { from, data } = second.got[0];
      const ids = [from.id === first.signaling.selfId, first.signaling.peers.has(second.signaling.selfId)];
      return [from.metadata.name, first.added[0].metadata.name, data, ...ids];
    """
    assert run(page, script, room) == ["Ada", "Grace", "hello", True, True]


def test_the_server_hands_out_the_client(browser: webdriver.Chrome) -> None:
    script = """
      const { join } = await import("/signaling.js");
      const signaling = join("/ws/a%2Fb?x=1", { metadata: { name: "Zoë & co" } });
      await signaling.ready;
      return signaling.state;
    """
    with running(["--port=0", "--serve-client"]) as server:
        browser.get(f"http://127.0.0.1:{server.port}/healthz")
        assert run(browser, script) == "open"


def test_pairs_that_offer_at_the_same_moment_need_no_third_attempt(page: webdriver.Chrome, room: str) -> None:
    script = """
      // Nobody waits for the other's offer, and no offer leaves before both are made.
      const later = setTimeout;
      globalThis.setTimeout = (run, ms, ...rest) => later(run, ms === 2_000 ? 0 : ms, ...rest);
      const hold = (one, held) => {
        const send = one.signaling.send.bind(one.signaling);
        let number = 0;
        one.signaling.send = (type, ...rest) => {
          if (type !== "offer" || held.released) return send(type, ...rest);
          held.push(() => send(type, ...rest));
          if (held.length === 2) { held.released = true; later(() => held.forEach((release) => release())); }
          return `held ${++number}`;
        };
      };
      const attempts = [];
      while (attempts.length < given[1]) {
        const pairs = [];
        while (pairs.length < 50 && attempts.length + pairs.length < given[1]) {
          const held = [];
          const pair = [1, 2].map(() => p.peer(`${given[0]}glare-${attempts.length + pairs.length}`));
          for (const one of pair) hold(one, held);
          pairs.push(pair);
          // Chromium delays WebSocket connections by seconds if many are opened at once.
          if (pairs.length % 5 === 0) await Promise.all(pairs.flat().map(({ signaling }) => signaling.ready));
        }
        await p.until(() => pairs.flat().every((one) => p.linked(one, 1)), "all pairs are linked");
        for (const pair of pairs) attempts.push(pair.map(({ sent }) => sent.filter((type) => type === "offer").length));
        for (const { signaling } of pairs.flat()) signaling.leave();
        // Chromium counts a closed connection against its limit, until it is collected.
        p.made.length = 0;
        gc();
      }
      return attempts;
    """
    attempts = run(page, script, room, GLARE_PAIRS)
    print("offers of each side:", {tuple(pair): attempts.count(pair) for pair in attempts})
    assert len(attempts) == GLARE_PAIRS
    assert all(1 <= offers <= 2 for pair in attempts for offers in pair), attempts


def test_a_call_goes_on_while_the_server_is_killed_and_comes_back(page: webdriver.Chrome) -> None:
    begin = """
      globalThis.trio = [1, 2, 3].map(() => p.peer(given[0], { backoff: undefined }));
      const canvas = document.createElement("canvas").getContext("2d");
      let number = 0;
      setInterval(() => {
        canvas.fillRect(number % 300, 0, 9, 9);
        for (const { mesh } of trio) mesh.broadcast(String(number));
        number++;
      }, 25);
      trio[0].mesh.addTrack(canvas.canvas.captureStream(20).getVideoTracks()[0]);
      await p.allLinked(trio);
      globalThis.connectionsBefore = trio.flatMap(p.connections);
      globalThis.frames = async () => {
        const [connection] = p.connections(trio[1]);
        const stats = [...(await connection.getStats()).values()];
        return stats.find(({ framesDecoded }) => framesDecoded)?.framesDecoded ?? 0;
      };
      while (!(await frames())) await p.pause(20);
    """
    # Only the data channels and the video show that time passes.
    gap = """
      await p.until(() => trio.every(({ signaling }) => signaling.state === "waiting"), "all have noticed");
      const [messages, decoded] = [trio.map(({ got }) => got.length), await frames()];
      await p.until(() => trio.every(({ got }, index) => got.length >= messages[index] + 40), "messages in the gap");
      while ((await frames()) < decoded + 5) await p.pause(20);
    """
    after = """
      const fourth = p.peer(given[0]);
      await fourth.signaling.ready;
      await p.allLinked([...trio, fourth]);
      const gaps = trio.flatMap(({ got }) => {
        const next = new Map();
        return got.filter(({ from, data }) => {
          const expected = next.get(from) ?? data;
          next.set(from, String(Number(data) + 1));
          return data !== expected;
        });
      });
      const kept = trio.flatMap(p.connections).filter((connection) => connectionsBefore.includes(connection));
      const ids = trio.map(({ signaling }) => signaling.selfId);
      const known = trio.map(({ mesh }) => [...mesh.peers].every(([id, peer]) => id === peer.id));
      return {
        gaps: gaps.length, kept: kept.length, removed: trio.flatMap(({ removed }) => removed).length,
        added: trio.map(({ added }) => added.length), known, ids: new Set(ids).size,
        states: new Set(connectionsBefore.map(({ connectionState }) => connectionState)).size,
      };
    """
    port = free_port()
    with running([f"--port={port}"]) as server:
        run(page, begin, server.url + "room")
        server.process.kill()
        server.end()
        run(page, gap)
    with running([f"--port={port}"]) as server:
        result = run(page, after, server.url + "room")
    print(result)
    assert result == {
        "gaps": 0,
        "kept": 6,
        "removed": 0,
        "added": [3, 3, 3],
        "known": [True, True, True],
        "ids": 3,
        "states": 1,
    }


CUTS = 8
SEND_MANY = """
  const options = [{ backoff: { first: 20, most: 100 } }, { channel: false }];
  const [sender, receiver] = [1, 2].map(() => p.peer(given[0], ...options));
  globalThis.pair = [sender, receiver];
  await Promise.all(pair.map(({ signaling }) => signaling.ready));
  // Whether the last message was refused is known once a message to oneself came back.
  globalThis.sending = (async () => {
    const { signaling } = sender;
    const refused = new Set();
    signaling.addEventListener("error", ({ detail }) => refused.add(detail.msgId));
    for (let number = 0; number < 400; ) {
      const msgId = signaling.send("ice-candidate", receiver.signaling.selfId, { number });
      const passed = new Promise((done) => signaling.addEventListener("ice-candidate", done, { once: true }));
      signaling.send("ice-candidate", signaling.selfId, "a fence");
      await passed;
      if (!refused.has(msgId)) number++;
    }
  })();
"""


def test_resumed_sessions_lose_nothing_in_many_cuts(page: webdriver.Chrome) -> None:
    with running(["--port=0", "--resume-window=60"]) as server, fault_proxy(server.port) as proxy:
        run(page, SEND_MANY, f"ws://127.0.0.1:{proxy.port}/ws/room")
        for cut in range(CUTS):
            open_again = "pair.every(({ signaling }) => signaling.state === 'open')"
            wait_until(page, f"pair[1].relayed.length > {cut * 48 + 5} && {open_again}")
            proxy.cut(refuse=True)
            wait_until(page, "pair.every(({ signaling }) => signaling.state === 'waiting')")
            proxy.accept()
        result = run(
            page,
            """
              await sending;
              const open = () => pair.every(({ signaling }) => signaling.state === "open");
              await p.until(() => pair[1].relayed.length >= 400 && open(), "all have come");
              return {
                numbers: pair[1].relayed.map(({ payload }) => payload.number),
                left: pair.flatMap(({ left }) => left),
                joined: pair.map(({ joined }) => joined.length),
                welcomes: pair.map(({ received }) => received.filter((type) => type === "welcome").length),
              };
            """,
        )
    print("welcomes:", result["welcomes"])
    assert result["numbers"] == list(range(400))
    assert result["left"] == []
    assert result["joined"] == [1, 0]
    assert all(count > CUTS for count in result["welcomes"])


# Each page knows the other one by its id of now.
MUTUAL = "pair.every(({ signaling }, at) => signaling.peers.has(pair[1 - at].signaling.selfId))"


def test_connections_outlive_many_cuts_without_resuming(page: webdriver.Chrome) -> None:
    begin = """
      globalThis.pair = [1, 2].map(() => p.peer(given[0], { backoff: { first: 20, most: 100 } }));
      await p.allLinked(pair);
      let number = 0;
      const timer = setInterval(() => {
        pair[0].mesh.broadcast(String(number++));
        if (number === 400) clearInterval(timer);
      }, 4);
    """
    end = """
      await p.until(() => pair[1].got.length === 400 && pair.every(({ signaling }) => signaling.peers.size === 1));
      return {
        numbers: pair[1].got.map(({ data }) => Number(data)),
        left: pair.map(({ left }) => left.length),
        added: pair.map(({ added }) => added.length),
        removed: pair.map(({ removed }) => removed.length),
        offers: pair.flatMap(({ sent }) => sent).filter((type) => type === "offer").length,
      };
    """
    with running() as server, fault_proxy(server.port) as proxy:
        run(page, begin, f"ws://127.0.0.1:{proxy.port}/ws/room")
        for _ in range(CUTS):
            # Otherwise one of them may know no other one, or its former id, and sees nobody leave.
            wait_until(page, f"pair.every(({{ signaling }}) => signaling.state === 'open') && {MUTUAL}")
            proxy.cut(refuse=True)
            wait_until(page, "pair.every(({ signaling }) => signaling.state === 'waiting')")
            proxy.accept()
        result = run(page, end)
    assert result.pop("numbers") == list(range(400))
    assert all(count >= CUTS for count in result.pop("left"))
    assert result == {"added": [1, 1], "removed": [0, 0], "offers": 1}


@pytest.mark.parametrize(("window", "left", "ids"), [(60, 0, 1), (0, 1, 2)])
def test_a_connection_that_died_silently_is_replaced(page: webdriver.Chrome, window: int, left: int, ids: int) -> None:
    begin = """
      const later = setTimeout;
      globalThis.setTimeout = (run, ms, ...rest) => later(run, ms === 10_000 ? 2_000 : ms, ...rest);
      globalThis.pair = [given[0], given[1]].map((url) => p.peer(url));
      await p.allLinked(pair);
      globalThis.ids = new Set();
      pair[1].signaling.addEventListener("welcome", ({ detail }) => ids.add(detail.selfId));
      ids.add(pair[1].signaling.selfId);
    """
    end = """
      dispatchEvent(new Event("online"));
      await p.until(() => pair[1].states.filter((state) => state === "open").length === 2, "it is back");
      pair[1].signaling.send("ice-candidate", pair[0].signaling.selfId, "the last");
      await p.until(() => pair[0].relayed.at(-1).payload === "the last", "it is received");
      pair[1].mesh.broadcast("still there");
      await p.until(() => pair[0].got.length, "the connection goes on");
      const peers = pair.map(({ mesh }) => mesh.peers.size);
      return [pair[0].left.length, ids.size, pair.flatMap(({ removed }) => removed).length, peers];
    """
    with running(["--port=0", f"--resume-window={window}", "--ping-interval=1", "--ping-timeout=4"]) as server:
        with fault_proxy(server.port) as proxy:
            run(page, begin, server.url + "room", f"ws://127.0.0.1:{proxy.port}/ws/room")
            proxy.freeze()
            result = run(page, end)
            if left:
                run(page, "await p.until(() => pair[0].left.length, 'the server has noticed')")
                result[0] = run(page, "return pair[0].left.length")
                assert run(page, "return pair.map(({ mesh }) => mesh.peers.size)") == [1, 1]
    assert result == [left, ids, 0, [1, 1]]


def test_a_mesh_made_anew_or_late_is_connected_soon(page: webdriver.Chrome, room: str) -> None:
    script = """
      const { join, Mesh } = await import("/signaling.js");
      const [first, second] = [1, 2].map(() => p.peer(given[0]));
      await p.allLinked([first, second]);
      const started = performance.now();
      for (const one of [first, second]) {
        one.mesh.close();
        one.mesh = new Mesh(one.signaling);
        await p.allLinked([first, second]);
      }
      const anew = performance.now() - started;
      const signaling = join(given[0]);
      let unanswered = 0;
      signaling.addEventListener("offer", () => unanswered++);
      await p.until(() => unanswered === 2, "both have offered, and no mesh received it");
      const offered = performance.now();
      const third = { signaling, mesh: new Mesh(signaling) };
      await p.allLinked([first, second, third]);
      return [anew, performance.now() - offered];
    """
    anew, late = run(page, script, room)
    print("anew after ms:", anew, "late after ms:", late)


def test_candidates_that_come_before_their_description_are_used(page: webdriver.Chrome, room: str) -> None:
    script = """
      const used = [];
      const add = RTCPeerConnection.prototype.addIceCandidate;
      RTCPeerConnection.prototype.addIceCandidate = function (candidate) {
        used.push(candidate.candidate);
        return add.call(this, candidate);
      };
      const first = p.peer(given[0]);
      await first.signaling.ready;
      const second = p.peer(given[0]);
      const send = second.signaling.send.bind(second.signaling);
      const gathered = new Promise((done) => second.mesh.addEventListener("peer-added", ({ detail }) => {
        detail.connection.addEventListener("icecandidate", ({ candidate }) => candidate ?? done());
      }));
      second.signaling.send = (type, ...rest) => {
        if (type !== "offer") return send(type, ...rest);
        gathered.then(() => send(type, ...rest));
        return "later";
      };
      await p.allLinked([first, second]);
      const early = first.relayed.map(({ payload }) => payload.candidate);
      const signals = first.received.filter((type) => ["offer", "ice-candidate"].includes(type));
      return [signals[0], signals.at(-1), early.length > 0 && early.every((candidate) => used.includes(candidate))];
    """
    assert run(page, script, room) == ["ice-candidate", "offer", True]


def test_what_is_dropped_is_sent_again_in_order(page: webdriver.Chrome) -> None:
    begin = """
      globalThis.away = p.peer(given[0]);
      await away.signaling.ready;
    """
    call = """
      globalThis.caller = p.peer(given[0]);
      globalThis.sent = [];
      caller.signaling.addEventListener("sent", ({ detail }) => sent.push(detail.payload));
      await p.until(() => caller.errors.length > 1, "something is dropped");
    """
    end = """
      const received = [];
      for (const type of ["offer", "ice-candidate"]) {
        away.signaling.addEventListener(type, ({ detail }) => received.push(JSON.stringify(detail.payload)));
      }
      dispatchEvent(new Event("online"));
      await p.until(() => [caller, away].every((one) => p.linked(one, 1)), "what was dropped is sent again");
      const made = new Set(sent.map((payload) => JSON.stringify(payload)));
      const order = [...made].filter((text) => received.includes(text));
      return [caller.errors.every((code) => code === "dropped"), received, order, away.sent.includes("offer")];
    """
    options = ["--port=0", "--resume-window=60", "--high-water-mark=1"]
    with running(options) as server, fault_proxy(server.port) as proxy:
        run(page, begin, f"ws://127.0.0.1:{proxy.port}/ws/room")
        proxy.cut(refuse=True)
        run(page, call, server.url + "room")
        proxy.accept()
        dropped, received, order, offered_itself = run(page, end)
    assert dropped
    assert received == order != []
    assert not offered_itself


def test_an_aborted_signal_leaves(page: webdriver.Chrome, room: str) -> None:
    script = """
      const aborter = new AbortController();
      const [stays, leaves] = [p.peer(given[0]), p.peer(given[0], { signal: aborter.signal })];
      await p.allLinked([stays, leaves]);
      const { selfId } = leaves.signaling;
      aborter.abort();
      await p.until(() => stays.removed.length && stays.left.length, "it is gone");
      const early = p.peer(given[0], { signal: AbortSignal.abort(new Error("too early")) });
      const why = await early.signaling.ready.catch((error) => error.message);
      return [stays.left[0] === selfId, leaves.signaling.state, leaves.removed.length, early.signaling.state, why];
    """
    assert run(page, script, room) == [True, "closed", 1, "closed", "too early"]


def test_a_page_that_is_closed_is_gone_at_once(page: webdriver.Chrome, room: str, pages: str) -> None:
    run(page, "globalThis.stays = p.peer(given[0]); await stays.signaling.ready", room)
    first = page.current_window_handle
    page.switch_to.new_window("window")
    page.get(pages)
    run(page, "globalThis.p = await import('/peers.js'); p.peer(given[0])", room)
    wait_until(page, "p.linked(p.made[0], 1)")
    page.close()
    page.switch_to.window(first)
    run(page, "await p.until(() => stays.removed.length === 1, 'it is gone')")


def test_connects_again_at_once_when_the_browser_is_online_again(page: webdriver.Chrome) -> None:
    with running() as server, fault_proxy(server.port) as proxy:
        begin = "globalThis.one = p.peer(given[0], { backoff: { first: 600_000 } }); await one.signaling.ready"
        run(page, begin, f"ws://127.0.0.1:{proxy.port}/ws/room")
        proxy.cut(refuse=True)
        wait_until(page, "one.signaling.state === 'waiting'")
        proxy.accept()
        run(page, "dispatchEvent(new Event('online')); await p.until(() => one.signaling.state === 'open')")
        assert run(page, "return one.states") == ["open", "waiting", "connecting", "open"]


def test_tracks_reach_those_who_are_there_and_those_who_come(page: webdriver.Chrome, room: str) -> None:
    script = """
      const track = document.createElement("canvas").captureStream().getVideoTracks()[0];
      const received = (one) => new Promise((done) => one.mesh.addEventListener("track", ({ detail }) => done(detail)));
      const [first, second] = [p.peer(given[0]), p.peer(given[0])];
      await p.allLinked([first, second]);
      const there = received(second);
      first.mesh.addTrack(track, new MediaStream());
      const third = p.peer(given[0]);
      const details = await Promise.all([there, received(third)]);
      const removed = ({ streams }) => new Promise((done) => streams[0].addEventListener("removetrack", done));
      const gone = details.map(removed);
      first.mesh.removeTrack(track);
      await Promise.all(gone);
      const { selfId } = first.signaling;
      return details.map(({ peer, track, streams }) => [peer.id === selfId, track.kind, streams.length]);
    """
    assert run(page, script, room) == [[True, "video", 1], [True, "video", 1]]


def test_refused_turn_credentials_are_replaced_by_newer_ones(page: webdriver.Chrome) -> None:
    script = """
      const pair = [1, 2].map(() => p.peer(given[0], {}, { configuration: { iceTransportPolicy: "relay" } }));
      const credentials = new Set();
      const ufrags = new Set();
      for (const { signaling } of pair) {
        signaling.addEventListener("sent", ({ detail }) => {
          ufrags.add(/a=ice-ufrag:(.*)/.exec(detail.payload?.sdp)?.[1]);
        });
      }
      await p.until(() => {
        for (const connection of pair.flatMap(p.connections)) {
          credentials.add(connection.getConfiguration().iceServers[0].username);
        }
        return credentials.size >= 4 && ufrags.size >= 5; // One stands for messages without.
      }, "each side has newer credentials and gathers anew");
      return pair.map(({ received }) => received.includes("ice-servers"));
    """
    with refusing_turn() as port:
        options = ["--port=0", f"--turn-uri=turn:127.0.0.1:{port}?transport=udp", "--turn-ttl=4"]
        with running(options, env={"TURN_SECRET": "not a secret"}) as server:
            assert run(page, script, server.url + "room") == [True, True]


def test_the_documented_page_does_what_it_says(browser: webdriver.Chrome, pages: str, folder: Path) -> None:
    [text] = re.findall(r"```html\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    written = "document.querySelector('pre').textContent"
    with running(["--port=0", "--serve-client"]) as server:
        (folder / "documented.html").write_text(text.replace("localhost:8081", f"localhost:{server.port}"))
        browser.get(f"{pages}/documented.html")
        first = browser.current_window_handle
        browser.switch_to.new_window("window")
        browser.get(f"{pages}/documented.html")
        wait_until(browser, f"/^Ada \\d+ is here$/m.test({written})")
        browser.find_element("css selector", "input").send_keys("over the wire\n")
        browser.close()
        browser.switch_to.window(first)
        wait_until(browser, f"/: over the wire\\nAda \\d+ is gone/.test({written})")


def test_closing_is_a_goodbye(page: webdriver.Chrome, room: str) -> None:
    script = """
      const received = [];
      const goodbyes = {
        mesh: ({ mesh }) => mesh.close(),
        signaling: ({ signaling }) => signaling.leave(),
        channel: ({ mesh }) => [...mesh.peers.values()][0].channel.close(),
      };
      for (const [what, channel] of [["mesh", false], ["signaling", true], ["channel", true]]) {
        const [stays, leaves] = [1, 2].map(() => p.peer(given[0] + what, {}, { channel }));
        leaves.mesh.addTrack(document.createElement("canvas").captureStream().getVideoTracks()[0]);
        const connected = (one) => p.connections(one)[0]?.connectionState === "connected";
        const open = (one) => !channel || [...one.mesh.peers.values()][0]?.channel?.readyState === "open";
        await p.until(() => [stays, leaves].every((one) => connected(one) && open(one)), "they are connected");
        goodbyes[what](leaves);
        await p.until(() => stays.removed.length, `a goodbye by the ${what}`);
      }
    """
    run(page, script, room)


def test_a_peer_that_began_anew_without_a_goodbye_gets_a_new_connection(page: webdriver.Chrome, room: str) -> None:
    script = """
      const { Mesh } = await import("/signaling.js");
      const unanswered = (prototype, goodbye) => {
        prototype.addEventListener = function (type, ...rest) {
          if (type !== goodbye) EventTarget.prototype.addEventListener.call(this, type, ...rest);
        };
      };
      unanswered(RTCDataChannel.prototype, "close");
      unanswered(RTCDtlsTransport.prototype, "statechange");
      const [stays, leaves] = [1, 2].map(() => p.peer(given[0]));
      await p.allLinked([stays, leaves]);
      const [connection] = p.connections(stays);
      leaves.mesh.close();
      leaves.mesh = new Mesh(leaves.signaling);
      const begun = () => stays.added.length === 2 && p.linked(stays, 1) && p.linked(leaves, 1);
      await p.until(begun, "there is a new connection");
      return [stays.removed.length, connection.connectionState];
    """
    assert run(page, script, room) == [1, "closed"]


FAIL = """
  // What a dead path looks like; the browser's own state shows again once it has changed.
  globalThis.fail = (connection, state) => {
    Object.defineProperty(connection, "connectionState", { value: state, configurable: true });
    connection.dispatchEvent(new Event("connectionstatechange"));
  };
  globalThis.pair = [1, 2].map(() => p.peer(given[0]));
  await p.allLinked(pair);
  globalThis.ufrag = (one) => /a=ice-ufrag:(.*)/.exec(p.connections(one)[0].localDescription.sdp)[1];
"""


def test_one_side_restarts_ice_on_a_dead_path(page: webdriver.Chrome, room: str) -> None:
    script = """
      const before = pair.map(ufrag);
      for (const connection of pair.flatMap(p.connections)) fail(connection, given[0]);
      await p.until(() => pair.every((one, index) => ufrag(one) !== before[index]), "ICE has been restarted");
      for (const connection of pair.flatMap(p.connections)) delete connection.connectionState;
      await p.until(() => pair.flatMap(p.connections).every(({ connectionState }) => connectionState === "connected"));
      const offers = pair.map(({ sent }) => sent.filter((type) => type === "offer").length);
      return [offers, pair.flatMap(({ removed }) => removed).length];
    """
    run(page, FAIL, room)
    assert run(page, script, "failed") == [[0, 2], 0]
    assert run(page, script, "disconnected") == [[0, 3], 0]


def test_a_peer_that_left_is_removed_once_its_connection_is_dead(page: webdriver.Chrome, room: str) -> None:
    script = """
      // As after a crash: no close frame, no message.
      const [stays, leaves] = pair;
      leaves.mesh.close = () => {};
      leaves.signaling.leave();
      await p.until(() => stays.left.length, "it has left");
      const kept = stays.mesh.peers.size;
      fail(p.connections(stays)[0], "disconnected");
      return [kept, stays.removed.length];
    """
    run(page, FAIL, room)
    assert run(page, script) == [1, 1]


def test_a_hostile_peer_costs_a_page_nothing(page: webdriver.Chrome, room: str) -> None:
    script = """
      const { join } = await import("/signaling.js");
      const uncaught = [];
      addEventListener("error", ({ message }) => uncaught.push(message));
      addEventListener("unhandledrejection", ({ reason }) => uncaught.push(String(reason)));
      let made = 0;
      globalThis.RTCPeerConnection = class extends RTCPeerConnection {
        constructor(...given) {
          super(...given);
          made++;
        }
      };
      const [victim, other] = [1, 2].map(() => p.peer(given[0]));
      await p.allLinked([victim, other]);
      const { id } = other.added[0];
      const kept = victim.mesh.peers.get(other.signaling.selfId);

      const hostile = join(given[0], { metadata: { instance: kept.metadata.instance } });
      await hostile.ready;
      const receives = async (type, payload) => {
        hostile.send(type, id, payload);
        const passed = new Promise((done) => hostile.addEventListener("ice-candidate", done, { once: true }));
        hostile.send("ice-candidate", hostile.selfId, "a fence");
        await passed;
      };
      const source = new RTCPeerConnection();
      source.createDataChannel("hostile");
      const { sdp } = await source.createOffer();
      for (let number = 0; number < 300; number++) {
        const certificate = number.toString(16).padStart(64, "0").replace(/(..)(?=.)/g, "$1:").toUpperCase();
        await receives("offer", { type: "offer", sdp: sdp.replace(/(a=fingerprint:sha-256 ).*/, `$1${certificate}`) });
      }
      for (const text of ["a=fingerprint:" + " ".repeat(60_000) + "x", "x", "", "m=audio 0\\n".repeat(6_000)]) {
        for (const type of ["offer", "answer"]) await receives(type, { type, sdp: text });
      }
      for (const odd of [null, 5, [], {}, "x", { toString: 1 }, { candidate: "x" }, { candidate: {} }, { sdp: {} }]) {
        for (const type of ["offer", "answer", "ice-candidate"]) await receives(type, odd);
      }
      for (let number = 0; number < 300; number++) {
        await receives("ice-candidate", { candidate: `candidate:1 1 udp 1 127.0.0.1 ${number} typ host`, sdpMid: "0" });
      }
      const third = p.peer(given[0]);
      const open = (one, { signaling }) => one.mesh.peers.get(signaling.selfId)?.channel.readyState === "open";
      const friends = [victim, other, third];
      const all = () => friends.every((one) => friends.every((friend) => friend === one || open(one, friend)));
      await p.until(all, "the new peer is linked with both");
      const goesOn = victim.mesh.peers.get(other.signaling.selfId) === kept;
      return { made, uncaught, goesOn };
    """
    result = run(page, script, room)
    print(result)
    assert result["made"] < 20
    assert result["uncaught"] == []
    assert result["goesOn"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of tokens, for ``--auth``."""
    return issuer.key_file(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def guarded(keys: Path) -> Iterator[Server]:
    """Run a server that controls access."""
    with running(["--port=0", f"--auth=jwt:{keys}", "--resume-window=60"]) as started:
        yield started


LOGIN = """
  globalThis.login = (seconds, sub) => async () => (await fetch(`/token?seconds=${seconds}&sub=${sub}`)).text();
"""


@pytest.mark.timeout(TOKEN_TRIAL_SECONDS + 300)
def test_a_mesh_lives_on_tokens_that_last_ten_seconds(page: webdriver.Chrome, keys: Path) -> None:
    begin = """
      // A token is renewed after a fifth of its time, not four: the rest is for a slow machine.
      const later = setTimeout;
      globalThis.setTimeout = (run, ms, ...rest) => later(run, ms > 5_000 && ms < 8_000 ? ms / 4 : ms, ...rest);
      globalThis.renewals = [];
      globalThis.trio = ["ada", "grace", "mary"].map((name, index) => {
        const ask = login(10, name);
        renewals[index] = 0;
        return p.peer(given[0], { token: () => { renewals[index]++; return ask(); } });
      });
      await p.allLinked(trio);
      let number = 0;
      setInterval(() => {
        for (const { mesh } of trio) mesh.broadcast(String(number));
        number++;
      }, 50);
    """
    end = """
      return {
        states: trio.map(({ states }) => states), left: trio.flatMap(({ left }) => left),
        removed: trio.flatMap(({ removed }) => removed).length, linked: trio.every((one) => p.linked(one, 2)),
        errors: trio.flatMap(({ errors }) => errors), renewals,
        gaps: trio.flatMap(({ got }) => {
          const next = new Map();
          return got.filter(({ from, data }) => {
            const expected = next.get(from) ?? Number(data);
            next.set(from, Number(data) + 1);
            return Number(data) !== expected;
          });
        }).length,
      };
    """
    options = ["--port=0", f"--auth=jwt:{keys}", "--resume-window=60", "--log-level=debug"]
    with running(options) as server, fault_proxy(server.port) as proxy:
        run(page, LOGIN + begin, f"ws://127.0.0.1:{proxy.port}/ws/room")
        for _ in range(TOKEN_TRIAL_SECONDS):
            run(page, "await p.pause(1000)")
        result = run(page, end)
        print(result, proxy.accepted)
        assert proxy.accepted == 3, "no further connection, and no check"
        assert all(count > TOKEN_TRIAL_SECONDS / 10 for count in result.pop("renewals"))
        assert " 401 " not in server.log
    assert result == {
        "states": [["open"]] * 3,
        "left": [],
        "removed": 0,
        "linked": True,
        "errors": [],
        "gaps": 0,
    }


def test_a_token_that_is_not_renewed_ends_in_one_refusal(page: webdriver.Chrome, guarded: Server) -> None:
    script = """
      const one = p.peer(given[0], { token: await login(6, "ada")(), backoff: { first: 10, most: 20 } });
      const refused = [];
      one.signaling.addEventListener("refused", ({ detail }) => refused.push(detail));
      await p.until(() => one.states.includes("closed"), "it has ended");
      dispatchEvent(new Event("online"));
      await p.pause(200); // Ten times the backoff.
      return [refused, one.states];
    """
    with fault_proxy(guarded.port) as proxy:
        refused, states = run(page, LOGIN + script, f"ws://127.0.0.1:{proxy.port}/ws/room-of-one")
        assert proxy.accepted == 1
    assert refused == [{"status": 401, "reason": "the token has expired"}]
    assert states == ["open", "closed"]


def test_nobody_notices_an_expired_token_if_sessions_can_be_resumed(page: webdriver.Chrome, guarded: Server) -> None:
    script = """
      const stays = p.peer(given[0], { token: login(600, "ada") });
      await stays.signaling.ready;
      const ask = login(6, "grace");
      // It fails while a connection is open, so that nothing is renewed.
      const token = () => expires?.signaling.state === "open" ? Promise.reject(new Error("no login")) : ask();
      let expires;
      expires = p.peer(given[0], { token });
      await p.allLinked([stays, expires]);
      const { selfId } = expires.signaling;
      await p.until(() => expires.states.filter((state) => state === "open").length === 2, "it is back");
      stays.signaling.send("ice-candidate", selfId, "after");
      await p.until(() => expires.relayed.at(-1)?.payload === "after", "it is the same peer");
      const { left, joined, added } = stays;
      return [left, joined.length, added.length, expires.states];
    """
    assert run(page, LOGIN + script, guarded.url + "room-of-two") == [[], 1, 1, ["open", "connecting", "open"]]


def test_a_page_that_the_user_leaves_is_no_peer_until_the_user_is_back(
    page: webdriver.Chrome, pages: str, room: str
) -> None:
    stays = page.current_window_handle
    run(page, "globalThis.stays = p.peer(given[0])", room)
    page.switch_to.new_window("tab")
    goes = page.current_window_handle
    try:
        page.get(pages)
        run(page, "globalThis.p = await import('/peers.js'); globalThis.goes = p.peer(given[0])", room)
        run(page, "await p.until(() => p.linked(goes, 1), 'both are linked')")
        page.get(pages + "/peers.js")
        page.switch_to.window(stays)
        run(page, "await p.until(() => stays.left.length === 1, 'it has left')")
        page.switch_to.window(goes)
        page.back()
        # The browser has kept the page, and not loaded it again.
        run(page, "await p.until(() => p.linked(goes, 1), 'it is back'); goes.mesh.broadcast('back')")
        page.switch_to.window(stays)
        assert run(page, "await p.until(() => stays.got.length); return stays.got.map(({ data }) => data)") == ["back"]
    finally:
        page.switch_to.window(goes)
        page.close()
        page.switch_to.window(stays)


ASK_WHY = """
  const { join } = await import("/signaling.js");
  const signaling = join(given[0], { token: given[1] ?? undefined });
  const refused = new Promise((done) => signaling.addEventListener("refused", ({ detail }) => done(detail)));
  const ready = signaling.ready.then(() => "ready", ({ message, status }) => [status, message]);
  const detail = await refused;
  await p.pause(0);
  if (signaling.state === "waiting") signaling.leave();
  else detail.ready = await ready;
  return detail;
"""


def test_a_page_learns_why_it_is_refused(page: webdriver.Chrome, guarded: Server) -> None:
    def why(url: str, token: str | None = None) -> Any:
        return run(page, ASK_WHY, url, token)

    for name, token, status, reason in (
        ("room", None, 401, "token"),
        ("room", issuer.token(number=1), 401, "signature"),
        ("room", issuer.token(exp=time.time() - 60), 401, "expired"),
        ("other", issuer.token(), 403, "topic"),
        ("a/b", issuer.token(), 404, "topic"),
    ):
        detail = why(guarded.url + name, token)
        assert detail["status"] == status
        assert reason in detail["reason"]
        assert detail["ready"] == [status, detail["reason"]]
    with running(["--port=0", "--allow-origin=https://example.com"]) as server:
        detail = why(server.url + "room")
        assert (detail["status"], detail["ready"][0]) == (403, 403)
        assert "origin" in detail["reason"].lower()
    with running(["--port=0", "--max-connections-per-address=1"]) as server, connect(server.url + "room"):
        detail = why(server.url + "room")
        assert (detail["status"], detail["retryAfter"] > 0, "ready" in detail) == (429, True, False)
    with running(["--port=0", "--max-connections=1"]) as server, connect(server.url + "room"):
        detail = why(server.url + "room")
        assert (detail["status"], detail["retryAfter"] > 0, "ready" in detail) == (503, True, False)
