/**
 * The demo: a call of all peers of a topic, and a chart of its signaling messages.
 *
 * Whatever peers send is shown as text, never as markup.
 */

import {
  addressed,
  attribute,
  DEFAULT_TOPIC,
  isToken,
  jsonBytes,
  noticeText,
  oneLine,
  readable,
  refusalText,
  renamingText,
  said,
  SHORT,
  summary,
} from "./demo-text.js";
import { join, Mesh } from "./signaling.js";

const LONGEST_TOPIC_BYTES = 256;
const LONGEST_NAME = 40;
const LONGEST_OWN_NAME = 64;
const MOST_CHAT_LINES = 200;
const MOST_RECORDS = 500;
const MOST_RECORDED_BYTES = 8_000_000;
const MOST_LANES = 40;
const UNANSWERED_SECONDS = 5;
const GAP_SECONDS = 1;
// After which the call is shown, although the signaling is not open yet.
const PATIENCE_MS = 1500;

// -- Words and elements --

const byId = (id) => document.getElementById(id);
const bytes = (text) => new TextEncoder().encode(text).length;
const size = (count) => (count < 1000 ? `${count} B` : `${(count / 1000).toFixed(1)} kB`);

function duration(seconds) {
  const ms = seconds * 1000;
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
}

/** An element; strings among the children become text. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function draw(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function icon(name) {
  return draw("svg", { class: "icon", "aria-hidden": "true" }, draw("use", { href: `#icon-${name}` }));
}

/** Writes a text if it differs, so that a screen reader does not repeat it. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Announces something to screen readers. */
function announce(text) {
  write(byId("announcer"), text);
}

function notify(element, text) {
  element.hidden = !text;
  write(element, text);
}

/** Hides an element; if the focus is in it, that goes on to another one. */
function hide(element, next) {
  const wasFocused = element.contains(document.activeElement);
  element.hidden = true;
  if (wasFocused) next.focus();
}

/** The names of all peers that are or were in the topic. */
class Names {
  #known = new Map(); // id -> name
  #present = new Map(); // name -> ids of the peers in the topic now

  learn(id, { name }) {
    this.leave(id);
    const shown = (typeof name === "string" && oneLine(name, LONGEST_NAME)) || "Guest";
    this.#known.set(id, shown);
    if (!this.#present.has(shown)) this.#present.set(shown, new Set());
    this.#present.get(shown).add(id);
  }

  leave(id) {
    const name = this.#known.get(id);
    const namesakes = this.#present.get(name);
    if (namesakes?.delete(id) && !namesakes.size) this.#present.delete(name);
  }

  forget(id) {
    this.leave(id);
    this.#known.delete(id);
  }

  /** The name of a peer; peers with the same name get the end of their ids. */
  of(id) {
    const name = this.#known.get(id) ?? "Guest";
    const namesakes = this.#present.get(name);
    return namesakes?.has(id) && namesakes.size > 1 ? `${name} ·${id.slice(-4)}` : name;
  }
}

// -- The media to send: a test picture, or the camera --

/** A moving picture with a name and the time, and a faint tone. */
class TestMedia {
  #context;
  #canvas = make("canvas", { width: 480, height: 270 });
  #timer;

  constructor(name) {
    this.name = name || "Guest";
    this.hue = ([...this.name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 100_003, 0) * 47) % 360;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#draw(still);
    this.#timer = setInterval(() => this.#draw(still), still ? 500 : 66);
    this.stream = this.#canvas.captureStream(15);
    this.#hum();
  }

  stop() {
    clearInterval(this.#timer);
    for (const track of this.stream.getTracks()) track.stop();
    this.#context.close();
  }

  #hum() {
    this.#context = new AudioContext();
    const tone = new OscillatorNode(this.#context, { frequency: 160 + this.hue / 2 });
    const volume = new GainNode(this.#context, { gain: 0.003 });
    const out = this.#context.createMediaStreamDestination();
    tone.connect(volume).connect(out);
    tone.start();
    this.stream.addTrack(out.stream.getAudioTracks()[0]);
  }

  #draw(still) {
    const pen = this.#canvas.getContext("2d");
    const { width, height } = this.#canvas;
    const now = new Date();
    const turn = still ? 0.6 : (now.getTime() / 9000) * 2 * Math.PI;
    pen.fillStyle = `hsl(${this.hue} 38% 26%)`;
    pen.fillRect(0, 0, width, height);
    for (const [index, radius] of [130, 92, 58].entries()) {
      const angle = turn * (index % 2 ? -1 : 1) + index * 2;
      pen.fillStyle = `hsl(${(this.hue + 24 * index) % 360} 55% 52% / 0.4)`;
      pen.beginPath();
      pen.arc(width / 2 + Math.cos(angle) * 110, height / 2 + Math.sin(angle) * 46, radius, 0, 2 * Math.PI);
      pen.fill();
    }
    pen.fillStyle = "#fff";
    pen.textAlign = "center";
    pen.font = "600 40px system-ui, sans-serif";
    pen.fillText(this.name, width / 2, 138, width - 40);
    pen.font = "24px ui-monospace, monospace";
    pen.fillText(now.toTimeString().slice(0, 8), width / 2, 180);
  }
}

class CameraMedia {
  constructor(stream) {
    this.stream = stream;
  }

  stop() {
    for (const track of this.stream.getTracks()) track.stop();
  }
}

const REFUSALS = {
  NotAllowedError:
    "The browser was not allowed to use the camera and microphone. Allow it beside the address, or send the test picture.",
  NotFoundError: "There is no camera and no microphone here. Send the test picture instead.",
  NotReadableError: "Another program uses the camera or the microphone. Close it, or send the test picture.",
};

/**
 * Opens the media to send; `null` means none.
 *
 * @throws {Error} with a text for a person, if the camera is refused or absent.
 */
async function openMedia(kind, name) {
  if (kind === "test") return new TestMedia(name);
  if (kind !== "camera") return null;
  if (!navigator.mediaDevices) {
    throw new Error(
      "Browsers give the camera to pages over HTTPS or from localhost only. Send the test picture instead.",
    );
  }
  const video = { width: { ideal: 640 }, height: { ideal: 360 } };
  let failure;
  // A machine with only a camera or only a microphone sends that.
  for (const wanted of [{ video, audio: true }, { video }, { audio: true }]) {
    try {
      return new CameraMedia(await navigator.mediaDevices.getUserMedia(wanted));
    } catch (error) {
      failure = error;
      if (error.name !== "NotFoundError") break;
    }
  }
  throw new Error(REFUSALS[failure.name] ?? `The camera cannot be used: ${failure.message}`);
}

// -- Tiles --

/** The picture of one person. */
class Tile {
  /** The name and the state of its media. */
  flags = { microphone: true, camera: true };
  #stream = null;
  #expected; // the callback that waits for a frame
  #hasFrame = false;
  #words = "";

  constructor(name, { own = false } = {}) {
    this.own = own;
    this.video = make("video", { playsinline: "" });
    this.video.muted = own;
    this.initial = make("span", { class: "initial", "aria-hidden": "true" });
    this.status = make("span", { class: "tile-status" });
    this.name = make("bdi");
    this.muted = make("span", { class: "muted", title: "Muted" }, icon("microphone-off"), make("span", { class: "visually-hidden" }, "muted"));
    this.element = make(
      "li",
      { class: "tile", ...(own && { "data-own": "" }) },
      this.video,
      make("div", { class: "cover" }, this.initial, this.status),
      make("p", { class: "plate" }, this.name, ...(own ? [make("span", { class: "you" }, "you")] : []), this.muted),
    );
    this.rename(name);
    this.refresh();
  }

  rename(name) {
    write(this.name, name);
    write(this.initial, [...name][0].toUpperCase());
    this.video.setAttribute("aria-label", `Picture of ${name}`);
  }

  /** Shows a stream. Returns whether the browser plays its sound. */
  async show(stream) {
    if (stream !== this.#stream) {
      this.#stream = stream;
      this.video.srcObject = stream;
      for (const type of ["addtrack", "removetrack"]) stream?.addEventListener(type, () => this.watch());
    }
    this.watch();
    if (!stream) return true;
    try {
      await this.video.play();
    } catch (error) {
      if (error.name !== "NotAllowedError") return true;
      this.video.muted = true;
      this.video.play().catch(() => {});
      return false;
    }
    return true;
  }

  watch() {
    for (const track of this.#stream?.getVideoTracks() ?? []) {
      track.onmute = () => this.#expectFrame(false);
      for (const type of ["unmute", "ended"]) track[`on${type}`] = () => this.refresh();
    }
    this.#expectFrame();
  }

  /** A frame is a picture too: after both sides offered at once, Chromium may call a track muted whose pictures come. */
  #expectFrame(isExpected = true) {
    this.#hasFrame = false;
    this.video.cancelVideoFrameCallback?.(this.#expected);
    if (isExpected) {
      this.#expected = this.video.requestVideoFrameCallback?.(() => {
        this.#hasFrame = true;
        this.refresh();
      });
    }
    this.refresh();
  }

  /** Why there is no picture; empty if there is one. */
  explain(words) {
    this.#words = words;
    this.refresh();
  }

  refresh() {
    const tracks = this.#stream?.getVideoTracks() ?? [];
    const moving = tracks.some((track) => track.readyState === "live" && (this.#hasFrame || !track.muted));
    const seen = moving && this.flags.camera && !this.#words;
    this.element.dataset.picture = seen ? "yes" : "no";
    write(this.status, this.#words || (this.flags.camera ? "No picture" : "Camera off"));
    this.muted.hidden = this.flags.microphone;
  }
}

// -- The chart --

const SERVER = "server";
/** The position of a lifeline: this side is the first, the server the second, the peers follow. */
function at(index, lanes) {
  return `${(index / (lanes.length + 1)) * 100}%`;
}

function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return minutes ? `${minutes}:${(seconds % 60).toFixed(3).padStart(6, "0")}` : seconds.toFixed(3);
}

/** The messages between this peer, the server and the others, the newest last; only the last are kept. */
class Chart {
  #names = new Names();
  #records = [];
  #bytes = 0;
  #serial = 0;
  #began = 0;
  #dropped = 0;
  #selfId = "";
  #lanes = new Map(); // peer id -> {from, until}: the serials between which it is in the topic
  #offers = new Map(); // peer id -> the record of this side's offer that waits for its answer
  #fragments = new Map(); // `sent id` or `received id` -> ice-ufrag of the last description

  #frozen = null; // the records while paused
  #elements = new Map(); // serial -> the elements of its row
  #layout = "";
  #following = true;
  #current = 0; // the serial of the row that Tab reaches
  #scheduled = false;

  constructor() {
    this.rows = byId("chart-rows");
    this.scroll = byId("chart-scroll");
    this.rows.addEventListener("click", ({ target }) => this.#toggle(target.closest(".message")));
    this.rows.addEventListener("keydown", (event) => this.#move(event));
    this.rows.addEventListener("focusin", ({ target }) => this.#reach(target.closest(".message")));
    this.scroll.addEventListener("scroll", () => this.#scrolled());
    byId("chart-newest").addEventListener("click", () => this.#follow());
    byId("chart-filter").addEventListener("change", () => this.#redraw());
    byId("chart-candidates").addEventListener("change", () => this.#redraw());
    byId("chart-pause").addEventListener("click", () => this.#pause());
    byId("chart-clear").addEventListener("click", () => this.clear());
    byId("chart-copy").addEventListener("click", ({ target }) => copy(this.text(), target));
  }

  /** Starts again, with times from now on. */
  start(topic, names) {
    this.topic = topic;
    this.#names = names;
    this.#began = performance.now();
    this.#lanes.clear();
    this.#offers.clear();
    this.#fragments.clear();
    this.#frozen = null;
    this.#selfId = "";
    this.clear();
  }

  show() {
    byId("chart").hidden = false;
    this.#redraw();
  }

  hide() {
    byId("chart").hidden = true;
  }

  clear() {
    this.#records = [];
    this.#bytes = this.#dropped = 0;
    this.#forget(Infinity);
    if (this.#frozen) this.#frozen = [];
    this.#redraw();
  }

  sent(message) {
    const record = this.#add({ direction: "out", type: message.type, peer: message.to ?? SERVER, message });
    const waiting = this.#offers.get(message.to);
    if (message.type === "offer") {
      if (waiting) record.marks.push("made again: no answer yet");
      this.#offers.set(message.to, record);
    } else if (message.type === "answer") this.#offers.delete(message.to);
  }

  received(message) {
    const { type } = message;
    const peer = message.from ?? SERVER;
    const record = this.#add({ direction: "in", type, peer, message, about: message.peerId });
    if (type === "welcome") this.#selfId = message.selfId;
    if (type === "peer-list") this.#list(message.peers, record.serial);
    if (type === "peer-joined" && !this.#lanes.has(message.peerId)) this.#enter(message.peerId, record.serial);
    if (type === "peer-left") this.#exit(message.peerId, record.serial);
    if (type === "offer") this.#meet(record);
    if (type === "answer") this.#offers.delete(peer);
    if (type === "error") this.#refuse(record);
  }

  /** Another event of the connection to a peer or to the server. */
  note(text, { peer = SERVER, level = "" } = {}) {
    this.#add({ direction: "", type: "note", peer, text, level });
  }

  /** Marks offers that have waited long. */
  tick() {
    for (const record of this.#offers.values()) {
      if (record.late || this.#seconds() - record.time < UNANSWERED_SECONDS) continue;
      record.late = true;
      record.marks.push(`no answer for ${UNANSWERED_SECONDS} s`);
      this.#changed(record);
    }
  }

  /** The chart as text, without payloads. */
  text() {
    const head = `Signaling in topic "${oneLine(this.topic, 80)}", times in seconds since joining`;
    return [head, ...this.#shown().map((record) => this.#line(record)), ""].join("\n");
  }

  #line(record) {
    const { direction, peer, type, time } = record;
    const arrow = { out: "->", in: "<-", "": "--" }[direction];
    const other = peer === SERVER ? "server" : this.#names.of(peer);
    const marks = record.marks.map((mark) => `[${mark}]`);
    const words = type === "note" ? [record.text] : [SHORT[type] ?? type, record.what, size(record.size)];
    return [`+${clock(time)}`.padStart(9), "you", arrow, other, ...words, ...marks].filter(Boolean).join("  ");
  }

  // -- Recording --

  #seconds() {
    return (performance.now() - this.#began) / 1000;
  }

  #add({ direction, type, peer, message, about, text, level = "" }) {
    const record = {
      serial: ++this.#serial,
      time: this.#seconds(),
      at: new Date(),
      size: message ? jsonBytes(message) : 0,
      what: message ? summary(message, this.#names) : "",
      marks: [],
      open: false,
      ...{ direction, type, peer, message, about, text, level },
    };
    if (typeof message?.payload?.sdp === "string") this.#restarts(record);
    this.#records.push(record);
    this.#bytes += record.size;
    while (this.#records.length > MOST_RECORDS || this.#bytes > MOST_RECORDED_BYTES) this.#drop();
    this.#schedule();
    return record;
  }

  #drop() {
    const { size: its } = this.#records.shift();
    this.#bytes -= its;
    this.#dropped++;
    this.#forget(this.#records[0]?.serial ?? Infinity);
  }

  /** Forgets peers that left before a serial. */
  #forget(first) {
    for (const [id, { until }] of this.#lanes) {
      if (until >= first) continue;
      this.#lanes.delete(id);
      this.#names.forget(id);
      for (const key of [`in ${id}`, `out ${id}`]) this.#fragments.delete(key);
    }
  }

  #restarts(record) {
    const fragment = attribute(record.message.payload.sdp, "ice-ufrag");
    if (!this.#lanes.has(record.peer)) return;
    const key = `${record.direction} ${record.peer}`;
    const before = this.#fragments.get(key);
    if (before && fragment && before !== fragment) record.marks.push("ICE restart");
    this.#fragments.set(key, fragment);
  }

  #list(peers, serial) {
    const there = new Set(peers.map(({ id }) => id));
    for (const [id, { until }] of this.#lanes) if (until === Infinity && !there.has(id)) this.#exit(id, serial);
    for (const id of there) if (!this.#lanes.has(id)) this.#enter(id, serial);
  }

  #enter(id, from) {
    this.#lanes.set(id, { from, until: Infinity });
  }

  #exit(id, serial) {
    const lane = this.#lanes.get(id);
    if (lane && lane.until === Infinity) lane.until = serial;
    this.#names.leave(id);
    this.#offers.delete(id);
  }

  /** Glare: both sides made an offer. */
  #meet(record) {
    const own = this.#offers.get(record.peer);
    if (!own) return;
    const polite = this.#selfId > record.peer;
    own.marks.push(polite ? "glare: this offer gives way" : "glare: this offer stands");
    record.marks.push(polite ? "glare: this offer stands" : "glare: this offer is ignored");
    this.#changed(own);
  }

  /** The server's error for a message that was not delivered. */
  #refuse(record) {
    const { msgId, code, message } = record.message;
    record.level = "error";
    if (message && message !== code) record.what = oneLine(`${code}: ${message}`, 80);
    const refused = msgId && this.#records.findLast((one) => one.direction === "out" && one.message.msgId === msgId);
    if (!refused) return;
    record.about = refused.peer;
    refused.refused = true;
    refused.marks.push(`refused: ${code}`);
    if (this.#offers.get(refused.peer) === refused) this.#offers.delete(refused.peer);
    this.#changed(refused);
  }

  // -- Drawing --

  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  /** Draws one row again. */
  #changed({ serial }) {
    const elements = this.#elements.get(serial);
    if (elements) elements.stale = true;
    this.#schedule();
  }

  #redraw() {
    this.#layout = "";
    this.#schedule();
  }

  #shown() {
    const filter = byId("chart-filter").value;
    const candidates = byId("chart-candidates").checked;
    return (this.#frozen ?? this.#records).filter(
      ({ type, peer, about }) =>
        (candidates || type !== "ice-candidate") && (!filter || peer === filter || about === filter),
    );
  }

  #draw() {
    const shown = this.#shown();
    const lanes = this.#shownLanes();
    const names = lanes.map((id) => this.#names.of(id));
    const layout = JSON.stringify([names, lanes, lanes.map((id) => this.#lanes.get(id))]);
    const focused = document.activeElement?.closest?.(".row");
    const focusedSerial = Number(focused?.querySelector(".message").dataset.serial);
    if (layout !== this.#layout) this.#lay(layout, lanes, names);
    this.#prune(new Set(shown.map(({ serial }) => serial)));
    shown.forEach((record, index) => this.#place(record, shown[index - 1], lanes));
    // The row with the focus may be one of those that were dropped.
    if (focused && !focused.isConnected) this.#current = shown.find(({ serial }) => serial > focusedSerial)?.serial;
    if (!this.#elements.has(this.#current)) this.#current = shown.at(-1)?.serial ?? 0;
    for (const [serial, { message }] of this.#elements) message.tabIndex = serial === this.#current ? 0 : -1;
    if (focused && !focused.isConnected) this.#elements.get(this.#current)?.message.focus({ preventScroll: true });
    byId("chart-empty").hidden = shown.length > 0;
    write(byId("chart-empty"), this.#records.length ? "Nothing that you asked to see." : "No messages yet.");
    write(byId("chart-count"), this.#count(shown.length));
    if (this.#following) this.scroll.scrollTop = this.scroll.scrollHeight;
    this.#offerNewest(shown.at(-1)?.serial);
    this.#labelPause();
  }

  /** The lanes to draw; if there are too many, first the peers in the topic, in joining order. */
  #shownLanes() {
    const all = [...this.#lanes.keys()];
    if (all.length <= MOST_LANES) return all;
    return all.filter((id) => this.#lanes.get(id).until === Infinity).slice(0, MOST_LANES);
  }

  #count(shown) {
    const all = this.#records.length;
    const part = shown < all && !this.#frozen ? `${shown} of ${all}` : `${shown}`;
    return this.#dropped ? `${part}, ${this.#dropped} older ones dropped` : part;
  }

  #lay(layout, lanes, names) {
    this.#layout = layout;
    for (const elements of this.#elements.values()) elements.stale = true;
    byId("chart-sheet").style.setProperty("--lanes", String(lanes.length + 2));
    const heads = ["You", "Server", ...names].map((name, index) => {
      const gone = this.#lanes.get(lanes[index - 2])?.until < Infinity;
      const head = make("span", gone ? { class: "gone" } : {}, make("bdi", {}, name));
      head.style.left = at(index, lanes);
      return head;
    });
    byId("chart-lanes").replaceChildren(...heads);
    this.#listPeers(lanes, names);
  }

  #listPeers(lanes, names) {
    const filter = byId("chart-filter");
    const chosen = filter.value;
    const known = new Map([...filter.options].map((option) => [option.value, option]));
    const wanted = [["", "Everyone"], [SERVER, "Server"], ...lanes.map((id, index) => [id, names[index]])];
    const options = wanted.map(([value, text]) => {
      const option = known.get(value) ?? make("option", { value });
      write(option, text);
      return option;
    });
    // The list may be open: what stays is left alone.
    for (const option of known.values()) if (!options.includes(option)) option.remove();
    options.forEach((option, index) => {
      if (filter.options[index] !== option) filter.insertBefore(option, filter.options[index] ?? null);
    });
    if (filter.value !== chosen) filter.value = chosen;
    if (filter.selectedIndex < 0) filter.value = "";
  }

  #prune(serials) {
    for (const [serial, elements] of this.#elements) {
      if (serials.has(serial)) continue;
      elements.gap?.remove();
      elements.row.remove();
      this.#elements.delete(serial);
    }
  }

  /** Draws a record behind the one before it. Elements that stay keep their focus and scroll position. */
  #place(record, before, lanes) {
    let elements = this.#elements.get(record.serial);
    if (!elements) {
      elements = this.#row(record);
      this.#elements.set(record.serial, elements);
      const last = this.#elements.get(before?.serial)?.row;
      if (last) last.after(elements.row);
      else this.rows.prepend(elements.row);
    }
    if (!elements.stale) return;
    elements.stale = false;
    this.#fill(elements, record, lanes);
    const pause = before ? record.time - before.time : 0;
    elements.gap?.remove();
    elements.gap = pause >= GAP_SECONDS ? this.#gap(pause, record, lanes) : undefined;
    if (elements.gap) elements.row.before(elements.gap);
  }

  #gap(pause, record, lanes) {
    const lines = this.#lines({ ...record, serial: record.serial - 0.5 }, lanes);
    const text = make("span", {}, `${duration(pause)} later`);
    return make("li", { class: "gap", "aria-hidden": "true" }, lines, text);
  }

  /** A new row, without what `#fill` puts into it. */
  #row(record) {
    const parts = {
      lines: draw("svg"),
      arrow: draw("svg"),
      way: make("span", { class: "visually-hidden" }),
      label: make("span", { class: "label" }),
    };
    const message = make(
      "button",
      { type: "button", class: "message", "data-serial": record.serial, "aria-expanded": record.open },
      make("span", { class: "time" }, clock(record.time)),
      parts.way,
      parts.arrow,
      parts.label,
    );
    const row = make("li", { class: "row", "data-type": record.type }, parts.lines, message);
    if (record.open) row.append(this.#detail(record));
    return { row, message, parts, stale: true };
  }

  /** What changes in a row when others join or leave, or when its message is answered. */
  #fill({ row, parts }, record, lanes) {
    const { type, level, marks, direction, peer } = record;
    const other = peer === SERVER ? "the server" : this.#names.of(peer);
    write(parts.way, ` ${{ out: `to ${other}`, in: `from ${other}`, "": `about ${other}` }[direction]}: `);
    const words =
      type === "note"
        ? [make("span", { class: "what" }, record.text)]
        : [
            make("b", {}, SHORT[type] ?? type),
            " ",
            make("span", { class: "what" }, make("bdi", {}, record.what)),
            " ",
            make("span", { class: "size" }, size(record.size)),
          ];
    parts.label.replaceChildren(...words, ...marks.flatMap((mark) => [" ", make("span", { class: "mark" }, mark)]));
    row.dataset.level = record.refused ? "error" : level;
    for (const [part, drawn] of [["lines", this.#lines(record, lanes)], ["arrow", this.#arrow(record, lanes)]]) {
      parts[part].replaceWith(drawn);
      parts[part] = drawn;
    }
  }

  /** The lifelines of the peers in the topic at this moment. */
  #lines({ serial }, lanes) {
    const lines = draw("svg", { class: "lines", "aria-hidden": "true" });
    ["you", SERVER, ...lanes].forEach((id, index) => {
      const { from, until } = this.#lanes.get(id) ?? { from: 0, until: Infinity };
      if (serial < from || serial > until) return;
      const x = at(index, lanes);
      lines.append(draw("line", { x1: x, x2: x, y1: serial === from ? 25 : 0, y2: serial === until ? 25 : "100%" }));
      const end = () => draw("svg", { x, y: 25, overflow: "visible" }, draw("path", { d: "M-5 0h10" }));
      if (serial === until) lines.append(end());
    });
    return lines;
  }

  #arrow({ direction, peer, refused, type, about }, lanes) {
    const put = (index, shape) => draw("svg", { x: at(index, lanes), y: 25, overflow: "visible" }, shape);
    const arrow = draw("svg", { class: "arrow", "aria-hidden": "true" });
    const lane = peer === SERVER ? 1 : Math.max(lanes.indexOf(peer) + 2, 1);
    if (type === "note") {
      arrow.append(put(lane, draw("path", { class: "fill", d: "M0-5 5 0 0 5-5 0z" })));
      return arrow;
    }
    const end = refused ? 1 : lane;
    arrow.append(draw("line", { x1: at(0, lanes), x2: at(end, lanes), y1: 25, y2: 25 }));
    if (end > 1) arrow.append(put(1, draw("circle", { class: "relay", r: 3 })));
    if (direction === "in") arrow.append(put(0, draw("path", { class: "fill", d: "M0 0 9-4.5v9z" })));
    else if (refused) arrow.append(put(1, draw("path", { class: "cross", d: "m-5-5 10 10M5-5-5 5" })));
    else arrow.append(put(end, draw("path", { class: "fill", d: "M0 0-9-4.5v9z" })));
    const subject = lanes.indexOf(about) + 2;
    if (type === "peer-joined" && subject > 1) arrow.append(put(subject, draw("circle", { class: "fill", r: 4 })));
    return arrow;
  }

  #detail(record) {
    const { message, at, peer } = record;
    const before = this.#records.findLast(({ serial }) => serial < record.serial);
    const since = before ? `, ${duration(record.time - before.time)} after the one before` : "";
    const facts = [
      ["Time", `${at.toTimeString().slice(0, 8)}.${String(at.getMilliseconds()).padStart(3, "0")}${since}`],
      ["Peer", peer === SERVER ? "" : `${this.#names.of(peer)}, ${peer}`],
      ["Message id", message?.msgId ? oneLine(message.msgId, 80) : ""],
    ].filter(([, value]) => value);
    const list = make(
      "dl",
      {},
      ...facts.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, make("bdi", {}, value)))),
    );
    const text =
      message && make("pre", { role: "region", tabindex: "0", "aria-label": "Payload" }, readable(message) ?? "(no payload)");
    return make("div", { class: "detail" }, list, ...(text ? [text] : []));
  }

  // -- Input --

  #recordOf(message) {
    const serial = Number(message?.dataset.serial);
    return (this.#frozen ?? this.#records).find((record) => record.serial === serial);
  }

  #toggle(message) {
    const record = this.#recordOf(message);
    if (!record) return;
    record.open = !record.open;
    if (record.open) this.#following = false;
    message.setAttribute("aria-expanded", record.open);
    const row = message.parentElement;
    if (record.open) row.append(this.#detail(record));
    else row.querySelector(".detail").remove();
    row.scrollIntoView({ block: "nearest" });
  }

  #move(event) {
    const messages = [...this.rows.querySelectorAll(".message")];
    const index = messages.indexOf(event.target);
    const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: messages.length - 1 }[event.key];
    if (index < 0 || next === undefined) return;
    event.preventDefault();
    messages[Math.min(Math.max(next, 0), messages.length - 1)].focus();
  }

  #reach(message) {
    if (!message) return;
    this.#current = Number(message.dataset.serial);
    for (const [serial, elements] of this.#elements) elements.message.tabIndex = serial === this.#current ? 0 : -1;
  }

  #scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroll;
    this.#following = scrollTop + clientHeight >= scrollHeight - 12;
    if (this.#following) byId("chart-newest").hidden = true;
  }

  #offerNewest(serial) {
    if (this.#following) this.last = serial;
    byId("chart-newest").hidden = this.#following || serial === this.last;
  }

  #follow() {
    this.#following = true;
    this.#draw();
    this.#elements.get(this.#current)?.message.focus({ preventScroll: true });
  }

  #pause() {
    this.#frozen = this.#frozen ? null : [...this.#records];
    this.#redraw();
  }

  #labelPause() {
    const later = this.#frozen ? this.#serial - (this.#frozen.at(-1)?.serial ?? 0) : 0;
    const text = this.#frozen ? `Go on${later ? ` (${later} new)` : ""}` : "Pause";
    write(byId("chart-pause"), text);
  }
}

// -- The connections --

const STATES = {
  new: ["", "Not started"],
  connecting: ["warn", "Connecting"],
  connected: ["ok", "Connected"],
  disconnected: ["warn", "Interrupted"],
  failed: ["error", "Failed"],
  closed: ["", "Closed"],
};

const COVERS = {
  new: "Connecting…",
  connecting: "Connecting…",
  disconnected: "Interrupted",
  failed: "Connection failed, trying again",
};

/** The pair of candidates that a connection uses. */
async function chosenPair(connection) {
  const stats = await connection.getStats();
  const all = [...stats.values()];
  const transport = all.find(({ type, selectedCandidatePairId }) => type === "transport" && selectedCandidatePairId);
  // Firefox does not name the pair in the transport, but marks the pair itself.
  const pair =
    stats.get(transport?.selectedCandidatePairId) ??
    all.find(({ type, selected }) => type === "candidate-pair" && selected);
  if (!pair) return null;
  return { pair, local: stats.get(pair.localCandidateId), remote: stats.get(pair.remoteCandidateId) };
}

function address(end) {
  if (!end?.address) return "address hidden by the browser";
  return `${end.address.includes(":") ? `[${end.address}]` : end.address}:${end.port}`;
}

function path({ local, remote }) {
  const types = [local?.candidateType, remote?.candidateType];
  const kind = types.includes("relay")
    ? "Relayed"
    : types.every((type) => type === "host")
      ? "Direct"
      : "Direct through NAT";
  const transport = local?.relayProtocol ? `${local.protocol}, to TURN by ${local.relayProtocol}` : local?.protocol;
  return `${kind}: ${types[0] ?? "?"} to ${types[1] ?? "?"}, ${transport ?? "?"}`;
}

/** The state of one connection, as text. */
class ConnectionView {
  #began = performance.now();
  #connected;
  #pictured;
  #values = {};

  constructor(peer) {
    this.peer = peer;
    this.name = make("bdi");
    this.state = make("span", { class: "badge" });
    this.facts = make("dl");
    this.element = make("li", {}, make("p", { class: "who" }, this.name, this.state), this.facts);
    for (const term of ["Path", "Addresses", "Round trip", "Setup", "Negotiation"]) {
      this.#values[term] = make("dd", {}, "not known yet");
      this.facts.append(make("div", {}, make("dt", {}, term), this.#values[term]));
    }
  }

  /** The first picture arrived. */
  pictured() {
    this.#pictured ??= performance.now() - this.#began;
  }

  async refresh(name) {
    const { connection, polite } = this.peer;
    const [level, words] = STATES[connection.connectionState];
    if (connection.connectionState === "connected") this.#connected ??= performance.now() - this.#began;
    write(this.name, name);
    write(this.state, words);
    this.state.dataset.level = level;
    write(this.#values.Negotiation, `${connection.signalingState}, ${polite ? "polite" : "impolite"} side`);
    write(this.#values.Setup, this.#took());
    const chosen = await chosenPair(connection);
    if (!chosen) return;
    const { pair, local, remote } = chosen;
    write(this.#values.Path, path(chosen));
    write(this.#values.Addresses, `${address(local)} to ${address(remote)}`);
    const seconds = pair.currentRoundTripTime;
    const measured = seconds < 0.001 ? "under 1 ms" : duration(seconds);
    write(this.#values["Round trip"], seconds === undefined ? "not measured yet" : measured);
  }

  #took() {
    const parts = [];
    if (this.#connected !== undefined) parts.push(`${duration(this.#connected / 1000)} to connect`);
    if (this.#pictured !== undefined) parts.push(`${duration(this.#pictured / 1000)} to the first picture`);
    return parts.join(", ") || "not known yet";
  }
}

// -- Chat --

const chat = {
  log: byId("chat-log"),
  lines: byId("chat-lines"),

  clear() {
    this.lines.replaceChildren();
    byId("chat-empty").hidden = false;
  },

  add(name, text, kind = "") {
    byId("chat-empty").hidden = true;
    this.lines.append(
      make("li", { class: kind }, make("b", {}, make("bdi", {}, name)), " ", make("span", { dir: "auto" }, text)),
    );
    while (this.lines.children.length > MOST_CHAT_LINES) this.lines.firstChild.remove();
    this.log.scrollTop = this.log.scrollHeight;
  },
};

// -- The call --

/** One stay in a topic. */
class Call {
  #signaling;
  #mesh;
  #media;
  #kind;
  #own;
  #peers = new Map(); // MeshPeer -> {tile, view}: a peer that comes back has another id
  #local = new MediaStream();
  #flags = { microphone: true, camera: true };
  #ticking;
  #retryAt = 0;
  #latest; // message received
  #refreshing = false;
  #wasOpen = false;
  #unconfirmed = {}; // {name, why}: the latest new name that the server has not confirmed
  #refused; // {field, text}: why this attempt, or the one before it, failed
  #token;
  #patience;
  #ended = new AbortController();

  /**
   * @param shown called once, when the call should take the place of the form: the signaling is open, or takes long.
   */
  constructor({ topic, name, kind, token, opened, shown }) {
    this.topic = topic;
    this.name = name;
    this.shown = shown;
    this.#token = token;
    this.names = new Names();
    this.#own = new Tile(name || "Guest", { own: true });
    byId("tiles").prepend(this.#own.element);
    chart.start(topic, this.names);
    this.#signaling = join(new URL(`ws/${encodeURIComponent(topic)}`, location.href), {
      metadata: { name: name || "Guest" },
      ...(token && { token }),
    });
    this.#patience = setTimeout(() => this.#show(), PATIENCE_MS);
    this.#listen();
    this.#mesh = new Mesh(this.#signaling);
    this.#listenToMesh();
    this.#use(kind, opened);
    this.#showState({ state: this.#signaling.state });
    this.#ticking = setInterval(() => this.#tick(), 1000);
    this.#refreshPeople();
  }

  /** Whether a message of the server was ever received. */
  get wasHeard() {
    return this.#latest !== undefined;
  }

  leave() {
    clearInterval(this.#ticking);
    clearTimeout(this.#patience);
    this.#ended.abort();
    this.#signaling.leave();
    this.#mesh.close();
    for (const peer of [...this.#peers.keys()]) this.#remove(peer);
    this.#own.show(null);
    this.#own.element.remove();
    this.#media?.stop();
    this.#showState({ state: "left" });
  }

  // -- Signaling --

  #listen() {
    const on = (type, react) =>
      this.#signaling.addEventListener(type, ({ detail }) => react(detail), { signal: this.#ended.signal });
    on("received", (message) => this.#received(message));
    on("sent", (message) => chart.sent(message));
    on("error", (message) => this.#failed(message));
    on("refused", (refusal) => this.#refusedBy(refusal));
    on("statechange", (detail) => this.#stateChanged(detail));
    on("peer-updated", (message) => this.#renamed(message));
    on("notice", ({ data }) => write(byId("operator-notice"), `From the operator of the server: ${noticeText(data)}`));
    for (const type of ["peer-list", "peer-joined", "peer-left"]) on(type, () => this.#refreshSoon());
  }

  #received(message) {
    this.#latest = message;
    if (message.type === "peer-list") for (const { id, metadata } of message.peers) this.names.learn(id, metadata);
    if (message.type === "peer-joined") {
      this.names.learn(message.peerId, message.metadata);
      announce(`${this.names.of(message.peerId)} joined`);
    }
    if (message.type === "peer-left") announce(`${this.names.of(message.peerId)} left`);
    chart.received(message);
  }

  #failed(message) {
    announce(`Error of the signaling: ${message.code}`);
    if (message.code === "topic_full") {
      this.#refused = { field: "topic", text: "This room is full. You get in as soon as somebody leaves." };
    }
    // The client reports this one itself, for a message that it could not send.
    if (message !== this.#latest) chart.note(`${message.code}: ${message.message}`, { level: "error" });
  }

  #refusedBy(refusal) {
    this.#refused = refusalText(refusal, { topic: this.topic, hasToken: Boolean(this.#token) });
    chart.note(`refused: HTTP ${refusal.status}, ${oneLine(refusal.reason ?? "", 80)}`, { level: "error" });
  }

  #stateChanged({ state, reason, retryInMs }) {
    this.#retryAt = performance.now() + (retryInMs ?? 0);
    const wait = retryInMs === undefined ? "" : `, next attempt in ${(retryInMs / 1000).toFixed(1)} s`;
    const why = reason ? `: ${oneLine(reason, 120)}` : "";
    if (state === "waiting" && this.#refused) this.#show();
    if (state === "waiting") chart.note(`signaling lost${why}${wait}`, { level: "error" });
    else if (state !== "open") chart.note(`signaling ${state}${why}`);
    if (state === "open") {
      this.#wasOpen = true;
      this.#refused = undefined;
      this.#showOwnName();
      this.#show();
    }
    if (state === "closed" && this.#refused?.state) this.#use("none", null); // The camera as well.
    if (state === "closed" && !this.#wasOpen) {
      turnAway(this.#refused ?? { field: "topic", text: `The server cannot be reached${why}.` });
      return;
    }
    this.#showState({ state, reason });
    this.#refreshPeople();
    announce(state === "waiting" ? `Signaling lost${wait}` : `Signaling ${state}`);
  }

  #show() {
    clearTimeout(this.#patience);
    this.shown?.();
    this.shown = undefined;
  }

  #showState({ state, reason }) {
    this.reason = reason;
    const element = byId("state");
    element.dataset.state = state;
    const seconds = Math.max(0, Math.ceil((this.#retryAt - performance.now()) / 1000));
    const texts = {
      connecting: "Signaling: connecting",
      open: "Signaling: open",
      waiting: `${this.#wasOpen ? "Signaling lost" : "No signaling"}: retry in ${seconds} s`,
      closed: this.#refused?.state ?? "Signaling: closed",
      left: "Not joined",
    };
    write(byId("state-text"), texts[state]);
    element.title = reason ?? "";
    this.#offerRenaming(state);
    this.#explain(state, seconds);
  }

  /** Says beside the name of the room why the server cannot be used. */
  #explain(state, seconds) {
    const trouble = byId("trouble");
    // While it tries again, the reason of the last failure still counts.
    if (state === "connecting" && !trouble.hidden) {
      write(byId("trouble-when"), "Trying again…");
      return;
    }
    if (state !== "waiting" && state !== "closed") {
      hide(trouble, byId("call-title"));
      write(byId("trouble-text"), "");
      return;
    }
    trouble.hidden = false;
    trouble.dataset.level = state === "closed" || !this.#wasOpen ? "error" : "warn";
    write(byId("trouble-text"), this.#troubleText(state));
    write(byId("trouble-when"), state === "waiting" ? `Next attempt in ${seconds} s` : "");
    const action = byId("trouble-action");
    action.hidden = state === "waiting" && (this.#wasOpen || !this.#refused?.field);
    action.dataset.field = this.#refused?.field || "topic";
    write(action, { token: "Enter a new token", topic: state === "closed" ? "Join again" : "Choose another room" }[action.dataset.field]);
  }

  #troubleText(state) {
    const text = this.#refused?.text;
    const ifCalling = (words) => (this.#peers.size ? ` Your call goes on${words}.` : "");
    // So long a mesh keeps a connection with a peer that has left the room.
    if (state === "closed") return (text ?? `Disconnected: ${this.reason}.`) + ifCalling(" for a minute");
    if (text) return text + ifCalling(" meanwhile");
    if (!navigator.onLine) return `You are offline.${ifCalling(" if the others are on your network")}`;
    if (this.#wasOpen) return `The server cannot be reached.${ifCalling("; people who join now see you when it is back")}`;
    return "There is no connection to the server. Is it running?";
  }

  // -- Names --

  #renamed({ peerId, metadata }) {
    if (peerId === this.#signaling.selfId) {
      this.#showOwnName();
      announce(`You are ${this.name} now`);
      return;
    }
    const before = this.names.of(peerId);
    this.names.learn(peerId, metadata);
    const after = this.names.of(peerId);
    if (after !== before) announce(`${before} is ${after} now`);
    this.#refreshSoon();
  }

  #showOwnName() {
    const { name } = this.#signaling.metadata;
    this.name = (typeof name === "string" && oneLine(name, LONGEST_OWN_NAME)) || "Guest";
    this.#own.rename(this.name);
    if (this.#media instanceof TestMedia) this.#media.name = this.name;
    const { name: awaited, why } = this.#unconfirmed;
    if (awaited === this.name && byId("call-notice").textContent === why) notify(byId("call-notice"), "");
  }

  /** Shows the control if this server lets people change their names. */
  #offerRenaming(state) {
    if (state !== "left" && state !== "closed" && this.#signaling.features.has("metadata-updates")) {
      byId("rename").hidden = false;
      return;
    }
    showRenaming(false);
    hide(byId("rename"), byId("call-title"));
  }

  async rename(text) {
    const { signal } = this.#ended;
    const name = oneLine(text, LONGEST_OWN_NAME) || "Guest";
    try {
      await this.#signaling.updateMetadata({ name });
      if (!signal.aborted) notify(byId("call-notice"), "");
    } catch (error) {
      const why = renamingText(error);
      if (!why || signal.aborted) return;
      notify(byId("call-notice"), why);
      if (error.code === "unconfirmed") this.#unconfirmed = { name, why };
    }
  }

  // -- The other peers --

  #listenToMesh() {
    const on = (type, react) =>
      this.#mesh.addEventListener(type, ({ detail }) => react(detail), { signal: this.#ended.signal });
    on("peer-added", (peer) => this.#add(peer));
    on("peer-removed", (peer) => this.#remove(peer));
    on("track", ({ peer, track, streams }) => this.#showStream(peer, streams[0] ?? new MediaStream([track])));
    on("connectionstatechange", (peer) => this.#connectionChanged(peer));
    on("data", ({ peer, data }) => this.#receiveData(peer, data));
    on("error", ({ peerId, error }) => chart.note(oneLine(error.message, 120), { peer: peerId, level: "error" }));
  }

  #add(peer) {
    const tile = new Tile(this.names.of(peer.id));
    const view = new ConnectionView(peer);
    tile.explain(COVERS.new);
    tile.video.addEventListener("loadeddata", () => view.pictured(), { once: true });
    this.#peers.set(peer, { tile, view });
    byId("tiles").append(tile.element);
    byId("connections").append(view.element);
    peer.channel.addEventListener("open", () => peer.channel.send(JSON.stringify({ flags: this.#flags })));
    this.#refreshPeople();
  }

  #remove(peer) {
    const { tile, view } = this.#peers.get(peer);
    tile.show(null);
    tile.element.remove();
    view.element.remove();
    this.#peers.delete(peer);
    this.#refreshPeople();
  }

  async #showStream(peer, stream) {
    const audible = await this.#peers.get(peer).tile.show(stream);
    if (!audible) byId("sound").hidden = false;
  }

  #connectionChanged(peer) {
    const { connectionState } = peer.connection;
    const [level, words] = STATES[connectionState];
    const name = this.names.of(peer.id);
    const quiet = connectionState === "connecting";
    chart.note(`connection to ${name}: ${words.toLowerCase()}`, { peer: peer.id, level: quiet ? "" : level });
    if (!quiet) announce(`Connection to ${name}: ${words}`);
    this.#peers.get(peer)?.tile.explain(COVERS[connectionState] ?? "");
    this.#refreshPeople();
  }

  /** Once for many peers that join or leave together. */
  #refreshSoon() {
    if (this.#refreshing) return;
    this.#refreshing = true;
    requestAnimationFrame(() => {
      this.#refreshing = false;
      if (!this.#ended.signal.aborted) this.#refreshPeople();
    });
  }

  #refreshPeople() {
    for (const [peer, { tile, view }] of this.#peers) {
      const name = this.names.of(peer.id);
      if (tile.name.textContent !== name) tile.rename(name);
      view.refresh(name).catch(() => {}); // A closed connection has no stats.
    }
    const others = this.#peers.size;
    const isIn = this.#wasOpen && this.#signaling.state !== "closed";
    const alone = isIn ? "You are here" : "You are not in the room";
    write(byId("people-count"), others ? `${others + 1} people here` : alone);
    byId("tiles").dataset.count = others + 1;
    byId("connections-empty").hidden = others > 0;
    if (others || !isIn) hide(byId("invite"), byId("copy-link"));
    else byId("invite").hidden = false;
  }

  #tick() {
    chart.tick();
    this.#refreshPeople();
    const { state } = this.#signaling;
    if (state === "waiting" || state === "closed") this.#showState({ state, reason: this.reason });
  }

  // -- Chat, and the state of each peer's media --

  say(text) {
    const heard = [...this.#mesh.peers.values()].filter(({ channel }) => channel.readyState === "open").length;
    this.#mesh.broadcast(JSON.stringify({ text }));
    chat.add("You", text, "own");
    if (!heard) chat.add("", "Nobody else is here: nobody has read this.", "hint");
  }

  #receiveData(peer, data) {
    const name = this.names.of(peer.id);
    const { text, flags } = said(data);
    if (typeof text === "string") chat.add(name, text.slice(0, 4000));
    if (typeof flags !== "object" || flags === null) return;
    const { tile } = this.#peers.get(peer);
    tile.flags = { microphone: flags.microphone !== false, camera: flags.camera !== false };
    tile.refresh();
  }

  // -- The media of this side --

  /** Sends another picture; if that fails, the old one stays. */
  async send(kind) {
    const opened = await openMedia(kind, this.name);
    if (this.#ended.signal.aborted) opened?.stop();
    else this.#use(kind, opened);
  }

  get kind() {
    return this.#kind;
  }

  #use(kind, opened) {
    for (const track of this.#local.getTracks()) {
      this.#mesh.removeTrack(track);
      this.#local.removeTrack(track);
    }
    this.#media?.stop();
    this.#media = opened;
    this.#kind = kind;
    for (const track of opened?.stream.getTracks() ?? []) {
      this.#local.addTrack(track);
      this.#mesh.addTrack(track, this.#local);
    }
    this.#own.element.dataset.mirrored = kind === "camera";
    this.#own.show(new MediaStream(this.#local.getVideoTracks()));
    this.#flag();
  }

  toggle(which) {
    this.#flags[which] = !this.#flags[which];
    this.#flag();
  }

  #flag() {
    for (const track of this.#local.getAudioTracks()) track.enabled = this.#flags.microphone;
    for (const track of this.#local.getVideoTracks()) track.enabled = this.#flags.camera;
    this.#mesh.broadcast(JSON.stringify({ flags: this.#flags }));
    this.#own.flags = { ...this.#flags };
    this.#own.refresh();
    this.#controls();
  }

  #controls() {
    label("mute", this.#flags.microphone ? "Mute" : "Unmute", this.#flags.microphone ? "microphone" : "microphone-off");
    label("camera", this.#flags.camera ? "Camera off" : "Camera on", this.#flags.camera ? "camera" : "camera-off");
    byId("mute").disabled = !this.#local.getAudioTracks().length;
    byId("camera").disabled = !this.#local.getVideoTracks().length;
    byId("source").value = this.#kind;
  }
}

function label(id, text, icon) {
  const button = byId(id);
  write(button.querySelector("span"), text);
  button.querySelector("use").setAttribute("href", `#icon-${icon}`);
}

/** Copies a text, and says so on the button. */
async function copy(text, button) {
  const words = button.textContent;
  const copied = await putOnClipboard(text);
  const said = copied ? "Copied" : "Not copied";
  write(button, said);
  announce(said);
  setTimeout(() => button.textContent === said && write(button, words), 1500);
}

async function putOnClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages without HTTPS have no other clipboard.
    const area = make("textarea", { class: "visually-hidden", "aria-hidden": "true" });
    const focused = document.activeElement;
    document.body.append(area);
    area.value = text;
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}

/** Shows the form for another name, or hides it. The focus goes on to it, and back. */
function showRenaming(isShown) {
  byId("rename").setAttribute("aria-expanded", isShown);
  if (!isShown) {
    hide(byId("rename-form"), byId("rename"));
    return;
  }
  byId("rename-form").hidden = false;
  byId("new-name").value = call.name;
  byId("new-name").focus();
  byId("new-name").select();
}

// -- Joining and leaving --

const CALM =
  "amber autumn blue calm clear early gentle golden green light misty quiet silver sunny warm winter".split(" ");
const THINGS =
  "badger brook cedar finch harbor heron island lantern maple meadow otter pebble river sparrow valley willow".split(" ");

const chart = new Chart();
let call = null;

function pick(list) {
  return list[crypto.getRandomValues(new Uint32Array(1))[0] % list.length];
}

function suggestedName() {
  return [pick(CALM), pick(THINGS)].map((word) => word[0].toUpperCase() + word.slice(1)).join(" ");
}

/** A name that nobody guesses: 60 random bits. */
function privateTopic() {
  const letters = [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => "0123456789abcdefghjkmnpqrstvwxyz"[byte % 32]);
  return `${pick(CALM)}-${pick(THINGS)}-${letters.join("")}`;
}

/** The address of a room: without the token. */
function inviteLink(topic) {
  return `${location.origin}${location.pathname}#${encodeURIComponent(topic)}`;
}

/** What is wrong with a topic; empty if nothing is. */
function objection(topic) {
  if (!topic) return "Enter a name for the room.";
  if (bytes(topic) > LONGEST_TOPIC_BYTES) return `This name is too long: at most ${LONGEST_TOPIC_BYTES} bytes.`;
  // A browser treats them as steps of a path.
  if (topic === "." || topic === "..") return "A room cannot be called one or two dots.";
  return "";
}

/** Takes the topic and the token from the address; the token does not stay there. */
function fillIn() {
  const { topic, token } = addressed(location);
  byId("topic").value = topic;
  if (token) {
    history.replaceState(null, "", `${location.pathname}${location.search}#${encodeURIComponent(topic)}`);
    byId("token").value = token;
    byId("token-details").open = true;
  }
  const name = oneLine(new URLSearchParams(location.search).get("name") ?? "", LONGEST_OWN_NAME);
  byId("name").value ||= name || suggestedName();
  describeTopic();
}

function describeTopic() {
  const isOpen = byId("topic").value.trim() === DEFAULT_TOPIC;
  write(
    byId("topic-hint"),
    isOpen ? "Everybody who opens this address is in this room." : "Everybody who knows this name can join.",
  );
}

/** Shows the form to join, the call, or the form beside the chart of the last call. */
function show(view) {
  byId("lobby").hidden = view === "call";
  byId("call").hidden = view !== "call";
  document.body.dataset.view = view;
}

const FIELDS = ["topic", "token"];

/** Shows what is wrong beside the field, or above the form if it is none of them. Focuses the field. */
function complain(field, text) {
  for (const id of FIELDS) {
    byId(id).setAttribute("aria-invalid", id === field);
    notify(byId(`${id}-error`), id === field ? text : "");
  }
  notify(byId("media-error"), field === "media" ? text : "");
  notify(byId("lobby-notice"), field ? "" : text);
  if (field === "token") byId("token-details").open = true;
  if (FIELDS.includes(field)) byId(field).focus();
}

/** Shows whether the page is about to join. The button keeps the focus, so it is not disabled. */
function setJoining(isJoining) {
  byId("join").setAttribute("aria-disabled", isJoining);
  write(byId("join"), isJoining ? "Joining…" : "Join");
}

async function enter(event) {
  event.preventDefault();
  if (byId("join").getAttribute("aria-disabled") === "true") return;
  const topic = byId("topic").value.trim().toWellFormed();
  const token = byId("token").value.trim();
  complain("", "");
  if (objection(topic)) {
    complain("topic", objection(topic));
    return;
  }
  if (token && !isToken(token)) {
    complain("token", "This is not a token: it has only letters, digits and - . _ ~ +");
    return;
  }
  const name = oneLine(byId("name").value, LONGEST_OWN_NAME);
  const kind = new FormData(event.target).get("media");
  setJoining(true);
  try {
    const opened = await openMedia(kind, name);
    begin({ topic, token, name, kind, opened });
  } catch (error) {
    setJoining(false);
    complain("media", error.message);
  }
}

function begin(given) {
  const { topic } = given;
  history.replaceState(null, "", `${location.pathname}#${encodeURIComponent(topic)}`);
  write(byId("call-topic"), topic);
  write(byId("call-over"), topic === DEFAULT_TOPIC && !given.token ? "Room, open to everybody" : "Room");
  byId("invite-link").href = inviteLink(topic);
  chat.clear();
  byId("sound").hidden = byId("trouble").hidden = true;
  notify(byId("call-notice"), "");
  write(byId("operator-notice"), "");
  call = new Call({ ...given, shown: () => showCall(topic) });
}

function showCall(topic) {
  setJoining(false);
  document.title = `${oneLine(topic, 60)} · Signaling demo`;
  chart.show();
  show("call");
  byId("call-title").focus({ preventScroll: true });
  scrollTo(0, 0);
}

function end() {
  const { topic, wasHeard } = call;
  call.leave();
  call = null;
  setJoining(false);
  document.title = "Signaling demo";
  if (!wasHeard) chart.hide();
  if (wasHeard) write(byId("lobby-title"), `You left ${oneLine(topic, 60)}`);
  show(wasHeard ? "left" : "lobby");
}

/** The server refused this page for good, before it was ever in the room. */
function turnAway({ field, text }) {
  end();
  complain(field, text);
  if (!field) byId("join").focus();
}

function leave() {
  if (!call) return;
  end();
  announce("You left");
  byId("join").focus();
}

byId("join-form").addEventListener("submit", enter);
byId("topic").addEventListener("input", describeTopic);
byId("private-room").addEventListener("click", () => {
  byId("topic").value = privateTopic();
  describeTopic();
  announce(`The room is now ${byId("topic").value}`);
});
byId("leave").addEventListener("click", leave);
byId("trouble-action").addEventListener("click", ({ target }) => {
  const { field } = target.dataset;
  leave();
  if (field === "token") byId("token-details").open = true;
  byId(field).focus();
  byId(field).select();
});
byId("rename").addEventListener("click", () => showRenaming(byId("rename-form").hidden));
byId("rename-cancel").addEventListener("click", () => showRenaming(false));
byId("rename-form").addEventListener("keydown", ({ key }) => key === "Escape" && showRenaming(false));
byId("rename-form").addEventListener("submit", (event) => {
  event.preventDefault();
  call.rename(byId("new-name").value);
  showRenaming(false);
});
byId("mute").addEventListener("click", () => call.toggle("microphone"));
byId("camera").addEventListener("click", () => call.toggle("camera"));
byId("source").addEventListener("change", async ({ target }) => {
  const asked = call;
  try {
    await asked.send(target.value);
    notify(byId("call-notice"), "");
  } catch (error) {
    notify(byId("call-notice"), error.message);
    target.value = asked.kind;
  }
});
byId("sound").addEventListener("click", ({ target }) => {
  for (const video of document.querySelectorAll(".tile:not([data-own]) video")) video.muted = false;
  hide(target, byId("source"));
});
byId("copy-link").addEventListener("click", () => copy(inviteLink(call.topic), byId("copy-link-text")));
byId("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("chat-text").value.trim();
  if (text) call.say(text);
  byId("chat-text").value = "";
});
// Another link in the same tab.
addEventListener("hashchange", () => {
  leave();
  fillIn();
});

fillIn();
show("lobby");
if (!globalThis.RTCPeerConnection) {
  complain("", "This browser has no WebRTC, which calls need. Open the page in another one.");
  byId("join").disabled = true;
}
byId("name").focus({ preventScroll: true });
byId("name").select();
