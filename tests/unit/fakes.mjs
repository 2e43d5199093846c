// A server's sockets and a browser's connections, for tests of the JavaScript client in Node.

import { appendFileSync } from "node:fs";
import { afterEach, beforeEach, mock } from "node:test";

export const sockets = []; // all that were made, the newest last
export const connections = []; // the same of the connections

// All that the client sent, for a test of its own, which compares it with the schemas of the wire.
const texts = [];
const { SENT_TEXTS } = process.env;
if (SENT_TEXTS) process.on("exit", () => appendFileSync(SENT_TEXTS, texts.map((text) => `${text}\n`).join("")));

export const welcome = (selfId, extra) => ({ type: "welcome", selfId, ...extra });
export const list = (...ids) => ({ type: "peer-list", peers: ids.map((id) => ({ id })) });

export class FakeSocket extends EventTarget {
  static CONNECTING = 0;
  readyState = FakeSocket.CONNECTING;
  sent = [];
  closed;

  constructor(url, protocols = []) {
    super();
    this.url = new URL(url);
    this.protocols = protocols;
    sockets.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
    texts.push(text);
  }

  close(code = "without a code") {
    this.closed = code;
  }

  /** Its handshake succeeded. */
  accept() {
    this.readyState = 1;
    this.dispatchEvent(new Event("open"));
  }

  receive(...messages) {
    this.readyState = 1;
    for (const message of messages) this.receiveText(JSON.stringify(message));
  }

  receiveText(data) {
    this.dispatchEvent(Object.assign(new Event("message"), { data }));
  }

  /** Returns the latest fence, as the server does once it has all before it. */
  echo() {
    const { type, to, msgId } = this.sent.findLast(({ msgId }) => msgId.startsWith("fence"));
    this.receive({ type, from: to, msgId });
  }

  lose(code = 1006, reason = "") {
    this.dispatchEvent(Object.assign(new Event("close"), { code, reason }));
  }

  /** The tokens that were sent on the open connection. */
  get tokens() {
    return this.sent.filter(({ type }) => type === "token");
  }

  get texts() {
    return this.sent.filter(({ msgId, type }) => type !== "token" && !msgId.startsWith("fence")).map(({ payload }) => payload);
  }
}

export const checks = []; // {url, token} of all requests by `fakeFetch`, the newest last

/**
 * Makes a `fetch` that answers each check.
 *
 * @param answer - returns {status, reason, retryAfter}, a whole `Response`, or undefined for no answer.
 */
export const fakeFetch = (answer = () => undefined) => async (url, { headers, signal }) => {
  checks.push({ url: new URL(url), token: headers.Authorization });
  const answered = await answer();
  signal.throwIfAborted();
  if (!answered) throw new TypeError("Failed to fetch");
  return answered instanceof Response ? answered : Response.json(answered, { status: answered.status });
};

/**
 * Gives each test of a file a page of its own: sockets, a `fetch` that gets no answer, events, no chance, and a clock.
 *
 * @returns a function by which time passes.
 */
export function useFakePage() {
  let now;
  beforeEach(() => {
    sockets.length = connections.length = checks.length = 0;
    now = 0;
    globalThis.WebSocket = FakeSocket;
    globalThis.fetch = fakeFetch();
    const page = new EventTarget();
    globalThis.addEventListener = page.addEventListener.bind(page);
    globalThis.dispatchEvent = page.dispatchEvent.bind(page);
    mock.timers.enable({ apis: ["setTimeout"] });
    mock.method(Math, "random", () => 0);
    mock.method(performance, "now", () => now);
  });
  afterEach(() => {
    mock.timers.reset();
    mock.restoreAll();
  });
  return (ms) => {
    now += ms;
    mock.timers.tick(ms);
  };
}

/** As many as a page of Chromium can make before it collects those that were closed. */
export const MOST_CONNECTIONS = 500;

/** A connection that takes each description but those that say `rejected`, and that never reaches the other side. */
export class FakeConnection extends EventTarget {
  signalingState = "stable";
  connectionState = "new";
  remoteDescription = null;
  candidates = 0;
  channel;

  constructor(configuration) {
    super();
    if (connections.length >= MOST_CONNECTIONS) throw new Error("Cannot create so many PeerConnections");
    this.setConfiguration(configuration);
    connections.push(this);
  }

  setConfiguration({ iceServers = [] }) {
    for (const { urls } of iceServers) if (!/^(stun|turn):/.test(urls)) throw new SyntaxError("no URL of an ICE server");
  }

  createDataChannel() {
    this.channel = Object.assign(new EventTarget(), { readyState: "connecting", sent: [] });
    this.channel.send = (data) => this.channel.sent.push(data);
    queueMicrotask(() => this.dispatchEvent(new Event("negotiationneeded")));
    return this.channel;
  }

  async setLocalDescription() {
    const type = this.signalingState === "have-remote-offer" ? "answer" : "offer";
    this.signalingState = type === "offer" ? "have-local-offer" : "stable";
    this.localDescription = { type, sdp: `a=fingerprint:own ${connections.indexOf(this)}` };
  }

  async setRemoteDescription(description) {
    if (description.sdp.includes("rejected")) throw new DOMException("rejected", "OperationError");
    this.signalingState = description.type === "offer" ? "have-remote-offer" : "stable";
    this.remoteDescription = description;
  }

  async addIceCandidate(candidate) {
    if (typeof candidate !== "object") throw new TypeError("no candidate");
    this.candidates++;
  }

  /** Connects, with an open channel, unless it is closed. */
  connect() {
    if (this.connectionState === "closed") return;
    this.connectionState = "connected";
    this.channel.readyState = "open";
    this.dispatchEvent(new Event("connectionstatechange"));
    this.channel.dispatchEvent(new Event("open"));
  }

  getSenders() {
    return [];
  }

  addTrack() {}

  restartIce() {}

  close() {
    this.connectionState = "closed";
    this.signalingState = "closed";
  }
}
