// When the client connects again, for each way in which a connection can end: with sockets, a `fetch` and a clock of the
// test's own. Chance takes a quarter off each pause, and half of the spread after a restart.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { join } from "../../signaling/browser/client/signaling.js";
import { checks, fakeFetch, list, sockets, useFakePage, welcome } from "./fakes.mjs";

const letPass = useFakePage();
beforeEach(() => mock.method(Math, "random", () => 0.5));

/** Lets promises go on: those of a body need a few turns. */
async function settle() {
  for (let turn = 0; turn < 5; turn++) await new Promise((done) => setImmediate(done));
}

const page = (type, extra) => globalThis.dispatchEvent(Object.assign(new Event(type), extra));

/**
 * Joins, and goes through a history, in which a pause passes before the next step that needs a connection.
 *
 * @param steps - `open`; `NUMBER ms`, which pass; `close CODE`; `refuse STATUS [SECONDS]`, as the check says; `unreachable`;
 *   `update`, of the metadata; or an event of the page.
 * @returns what followed each step that was no `open`, `update` or time.
 */
async function history(steps, options) {
  const signaling = join("wss://example.com/ws/room", options);
  let latest = {};
  signaling.addEventListener("statechange", ({ detail }) => (latest = detail));
  const outcomes = [];
  await settle();
  for (const step of steps) {
    const [what, ...numbers] = step.split(" ");
    const needsConnection = ["open", "close", "refuse", "unreachable"].includes(what);
    if (needsConnection && signaling.state === "waiting") letPass(latest.retryInMs);
    await settle();
    const before = sockets.length;
    const socket = sockets.at(-1);
    const [number, seconds] = numbers.map(Number);
    if (what === "open") {
      socket.accept();
      socket.receive(welcome("me", { features: ["metadata-updates"] }), list());
    } else if (step.endsWith(" ms")) letPass(Number(what));
    else if (what === "update") signaling.updateMetadata({ name: "x".repeat(9_000) });
    else if (what === "close") socket.lose(number);
    else if (what === "refuse" || what === "unreachable") {
      globalThis.fetch = fakeFetch(() => number && { status: number, reason: `reason ${number}`, retryAfter: seconds });
      socket.lose();
    } else page(what, { persisted: true });
    await settle();
    if (what === "open" || what === "update" || step.endsWith(" ms")) continue;
    if (sockets.length > before) outcomes.push("at once");
    else outcomes.push(signaling.state === "waiting" ? latest.retryInMs : signaling.state);
  }
  signaling.leave();
  return outcomes;
}

let tokens = 0;
const withFunction = { token: () => `t${++tokens}` };
const withString = { token: "t" };
const withoutReconnecting = { reconnect: false };

/** name -> [steps, what follows, options]; a number is a pause in milliseconds. */
const HISTORIES = {
  "an unreachable server: the pauses double": [["unreachable", "unreachable", "unreachable"], [375, 750, 1_500]],
  "a connection that lasted 5 s: the pauses start again": [
    ["unreachable", "unreachable", "open", "5000 ms", "close 1006", "unreachable"], [375, 750, 375, 750],
  ],
  "a connection that did not last: the pauses go on": [
    ["unreachable", "unreachable", "open", "4999 ms", "close 1006"], [375, 750, 1_500],
  ],
  "ten failures before the first connection": [
    Array(10).fill("unreachable"), [375, 750, 1_500, 3_000, 6_000, 12_000, 22_500, 22_500, 22_500, "closed"],
  ],
  "ten failures after a connection: it goes on": [
    ["open", ...Array(10).fill("unreachable")], [375, 750, 1_500, 3_000, 6_000, 12_000, ...Array(4).fill(22_500)],
  ],
  "1001: at a random time": [["open", "close 1001"], [1_000]],
  "1012: at a random time": [["open", "close 1012"], [1_000]],
  "1008: much later": [["open", "close 1008"], [22_500]],
  "1009: as after any loss": [["open", "close 1009"], [375]],
  "1013: later": [["close 1013"], [5_625]],
  "1000 of the server: as after any loss": [["open", "close 1000"], [375]],
  "4403: the end": [["open", "close 4403"], ["closed"]],
  "4404: the end, before the peer list as well": [["close 4404"], ["closed"], withFunction],
  "4401 with a function: at once, and once more after a connection that lasted": [
    ["open", "1000 ms", "close 4401", "open", "5000 ms", "close 4401"], ["at once", "at once"], withFunction,
  ],
  "4401 again, before a connection lasted: a loss": [
    ["open", "1000 ms", "close 4401", "open", "4999 ms", "close 4401"], ["at once", 375], withFunction,
  ],
  "4401 within a second: a loss": [["open", "999 ms", "close 4401"], [375], withFunction],
  "4401 with a string: the end": [["open", "5000 ms", "close 4401"], ["closed"], withString],
  "4401 without reconnecting: the end": [["open", "5000 ms", "close 4401"], ["closed"], { ...withFunction, ...withoutReconnecting }],
  "401 with a function: at once, then the end": [["refuse 401", "refuse 401"], ["at once", "closed"], withFunction],
  "403 with a function: at once, then the end": [["refuse 403", "refuse 403"], ["at once", "closed"], withFunction],
  "401, a connection, 401: at once each time": [
    ["refuse 401", "open", "close 1006", "refuse 401"], ["at once", 750, "at once"], withFunction,
  ],
  "401 after 4401: the end": [["open", "5000 ms", "close 4401", "refuse 401"], ["at once", "closed"], withFunction],
  "401 with a string: the end": [["refuse 401"], ["closed"], withString],
  "403 without a token: the end": [["refuse 403"], ["closed"]],
  "400: the end": [["refuse 400"], ["closed"]],
  "404: the end": [["open", "close 1012", "refuse 404"], [1_000, "closed"]],
  "421: the end": [["refuse 421"], ["closed"], withFunction],
  "408: as after any loss": [["refuse 408"], [375]],
  "431 after an update: at once, with the former metadata, then the end": [
    ["open", "close 1006", "update", "refuse 431", "refuse 431"], [375, "at once", "closed"],
  ],
  "429 without a time: as after any loss": [["refuse 429"], [375]],
  "429 with a time: that time, and a random one": [["refuse 429 10"], [10_187.5]],
  "503 with a time: for as long as the row lasts": [["refuse 503 10", "unreachable"], [10_187.5, 10_375]],
  "503, then a connection: the time is over": [["refuse 503 10", "open", "close 1006"], [10_187.5, 750]],
  "503 with a very long time: an hour": [["refuse 503 100000"], [3_600_187.5]],
  "503 twenty times before the first connection: it goes on": [
    Array(20).fill("refuse 503 60"), [60_187.5, 60_375, 60_750, 61_500, 63_000, 66_000, ...Array(14).fill(71_250)],
  ],
  "online in a pause: at once, and the pauses start again": [
    ["unreachable", "unreachable", "unreachable", "online", "unreachable"], [375, 750, 1_500, "at once", 375],
  ],
  "online before a Retry-After is over: not yet": [["refuse 503 10", "online", "10000 ms", "online"], [10_187.5, 10_187.5, "at once"]],
  "offline: nothing": [["unreachable", "offline", "unreachable"], [375, 375, 750]],
  "online on a connection: nothing": [["open", "online"], ["open"]],
  "pagehide, pageshow: it leaves, and joins at once": [["open", "pagehide", "pageshow"], [375, "at once"]],
  "pagehide in a pause: nothing": [["unreachable", "pagehide", "pageshow"], [375, 375, "at once"]],
  "a loss without reconnecting: the end": [["open", "close 1006"], ["closed"], withoutReconnecting],
  "503 without reconnecting: the end": [["refuse 503 1"], ["closed"], withoutReconnecting],
  "a first and a longest pause of the page": [
    ["unreachable", "unreachable", "unreachable", "close 1008"], [75, 150, 225, 225], { backoff: { first: 100, most: 300 } },
  ],
};

for (const [name, [steps, outcomes, options]] of Object.entries(HISTORIES)) {
  test(name, async () => assert.deepEqual(await history(steps, options), outcomes));
}

test("a function that fails is a failed attempt", async () => {
  const options = { token: () => Promise.reject(new Error("offline")) };
  assert.deepEqual(await history(["online", "online"], options), [375, 375]);
});

const opens = (socket) => socket.receive(welcome("me"), list());

/** name -> [how every connection ends, attempts in ten minutes, checks, options]. */
const STORMS = {
  "a server that accepts and closes": [(socket) => (opens(socket), socket.lose()), 32, 0],
  "a server that accepts and restarts": [(socket) => (opens(socket), socket.lose(1012)), 45, 0],
  "a server whose tokens expire at once": [(socket) => (opens(socket), socket.lose(4401)), 31, 0, withFunction],
  "a server that went away": [(socket) => (sockets.length === 1 && opens(socket), socket.lose()), 32, 2],
};

for (const [name, [end, attempts, asked, options]] of Object.entries(STORMS)) {
  test(`no storm: ${name}`, async () => {
    const signaling = join("wss://example.com/ws/room", options);
    const ended = new Set();
    for (let second = 0; second < 600; second++) {
      await settle();
      const socket = sockets.at(-1);
      if (!ended.has(socket)) end(socket);
      ended.add(socket);
      await settle();
      letPass(1_000);
    }
    signaling.leave();
    assert.deepEqual([sockets.length, checks.length], [attempts, asked]);
  });
}
