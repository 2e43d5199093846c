/**
 * The client of a twisted-signaling server: `join` a topic, and keep a `Mesh` of connections to the others there.
 *
 * The types, and what everything means, stand in signaling.d.ts; docs/clients.md tells what happens at each kind of loss.
 */

const RELAYED = ["offer", "answer", "ice-candidate"];

// The metadata key under which a peer is known again when it comes back with another id.
const INSTANCE = "instance";

// Messages that wait for a connection; the next one is `dropped`, as the server does with its own queues.
const MAX_KEPT = 256;

// Bytes of one message, unless the options say otherwise: the server's own default.
const MAX_MESSAGE_BYTES = 65_536;

// Attempts that may fail in a row before the server is heard for the first time: more than a minute, after which a wrong
// address is likelier than a server that is being restarted.
const MAX_FIRST_ATTEMPTS = 10;

// Ids that this peer had before: the server may take a minute to notice that one is gone.
const MAX_FORMER_IDS = 16;

// Connections that seem dead and are not closed yet: a session that the oldest of more could end has ended by itself.
const MAX_ABANDONED = 3;

const TOKEN_EXPIRED = 4401; // a close code

// Of the statuses 4xx, these alone speak of the moment and not of the request.
const MOMENTARY = [408, 425, 429];

// Candidates of one remote description: a browser finds a few dozen.
const MAX_CANDIDATES = 256;

// Descriptions of one peer that are worked on at once.
const MAX_DESCRIPTIONS = 8;

// Connections that a mesh keeps, unless the options say otherwise.
const MAX_CONNECTIONS = 64;

// Connections that a mesh begins at once for one peer; a browser counts those that were closed for a while.
const MAX_BEGUN = 5;

const MS = {
  opening: 15_000, // from a connection's start to its peer list
  idle: 30_000, // without a message before this side asks whether the server is still there
  echo: 10_000, // from such a question to any message
  stable: 5_000, // a connection that lasted as long was a good one: the next loss starts the backoff anew
  firstOffer: 2_000, // for which the one who was there waits for the newcomer's offer
  answer: 10_000, // to an offer, before it is made again; doubled each time up to `mostAnswer`
  mostAnswer: 120_000,
  ignored: 2_500, // the same, where the other side offered as well
  gathering: 1_000, // before the first candidate is not waited for any more
  disconnected: 3_000, // which often mends itself
  otherSide: 4_000, // for which one side lets the other mend the path
  repair: 8_000, // for the path to mend, before the next attempt; doubled each time up to `mostRepair`
  mostRepair: 60_000,
  resend: 100, // after the first `dropped`; doubled each time up to `mostResend`
  mostResend: 5_000,
  grace: 60_000, // for a peer to come back whose connection works while its signaling does not
  beginAgain: 10_000, // from one connection to the next with the same peer, once `MAX_BEGUN` were made
  underWay: 2_000, // for what was sent before a connection ended to arrive; less than `ignored`
  begin: 1_000, // from one connection to the next, once twice as many were made as the mesh may have
};

/** What was sent, in order, until the server is known to have it. */
class Outbox {
  #entries = []; // of {number, message, text, told}
  #written = 0; // as many of them went to the present connection
  #last = 0;

  get size() {
    return this.#entries.length;
  }

  /** The number of the last message that was written and not confirmed; 0 without one. */
  get unconfirmed() {
    return this.#written ? this.#entries[this.#written - 1].number : 0;
  }

  add(message, text) {
    this.#entries.push({ number: ++this.#last, message, text, told: false });
  }

  /** Writes what was not written to the present connection. */
  write(write) {
    while (this.#written < this.#entries.length) write(this.#entries[this.#written++]);
  }

  /** The server has this message, and all before it. */
  confirm(number) {
    const first = this.#entries.findIndex((entry) => entry.number > number);
    const confirmed = first < 0 ? this.#entries.length : first;
    this.#entries.splice(0, confirmed);
    this.#written = Math.max(0, this.#written - confirmed);
  }

  /** The connection is gone, and with it the knowledge of what arrived. */
  rewind() {
    this.#written = 0;
  }

  /** Whether something went to a former connection, and nobody knows whether it arrived. */
  get doubtful() {
    return this.#entries.some(({ told }, index) => told && index >= this.#written);
  }

  /** The server answered a message: it will not be sent again. */
  answered(msgId) {
    const index = this.#entries.findIndex(({ message, told }) => told && message.msgId === msgId);
    if (index < 0) return;
    this.#entries.splice(index, 1);
    if (index < this.#written) this.#written--;
  }

  /** Takes out those messages for which `test` holds. */
  remove(test) {
    const [kept, removed] = [[], []];
    for (const entry of this.#entries) (test(entry.message) ? removed : kept).push(entry);
    this.#entries = kept;
    return removed.map(({ message }) => message);
  }
}

/** As many actions as `most` at once, and one more after every `ms`. */
class Allowance {
  #most;
  #ms;
  #left;
  #at = performance.now();

  constructor(most, ms) {
    this.#most = this.#left = most;
    this.#ms = ms;
  }

  /** Whether one more is allowed. */
  get any() {
    const now = performance.now();
    this.#left = Math.min(this.#most, this.#left + (now - this.#at) / this.#ms);
    this.#at = now;
    return this.#left >= 1;
  }

  take() {
    this.#left--;
  }
}

function emit(target, type, detail) {
  target.dispatchEvent(new CustomEvent(type, { detail }));
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isText = (value) => typeof value === "string";
const objects = (value) => (Array.isArray(value) ? value.filter(isObject) : []);
const metadataOf = ({ metadata }) => (isObject(metadata) ? metadata : {});

/**
 * Reads a message of the server: every key that this client or a page relies on is there and has its type.
 *
 * @returns undefined if it is no message that protocol.md knows.
 */
function read(data) {
  let message;
  try {
    message = JSON.parse(data);
  } catch {
    return undefined;
  }
  if (!isObject(message)) return undefined;
  const { type, msgId, ...rest } = message;
  const made = { type, ...rest, ...(isText(msgId) && { msgId }) };
  switch (type) {
    case "welcome":
      return isText(rest.selfId) ? readWelcome(made) : undefined;
    case "peer-list": {
      const peers = objects(rest.peers).filter(({ id }) => isText(id));
      return { ...made, peers: peers.map((peer) => ({ ...peer, metadata: metadataOf(peer) })) };
    }
    case "peer-joined":
      return isText(rest.peerId) ? { ...made, metadata: metadataOf(rest) } : undefined;
    case "peer-left":
      return isText(rest.peerId) ? made : undefined;
    case "ice-servers":
      return { ...made, iceServers: objects(rest.iceServers) };
    case "error":
      return isText(rest.code) ? { ...made, message: isText(rest.message) ? rest.message : "" } : undefined;
    default:
      return RELAYED.includes(type) && isText(rest.from) ? made : undefined;
  }
}

function readWelcome({ iceServers, resume, resumed, ...rest }) {
  return {
    ...rest,
    ...(iceServers !== undefined && { iceServers: objects(iceServers) }),
    // It goes into an address.
    ...(isText(resume?.token) && /^[ -~]{1,1000}$/.test(resume.token) && { resume }),
    ...(resumed === true && { resumed }),
  };
}

/** The status of a refused handshake; undefined in browsers, which tell no page: the package `ws` names it in its error. */
function statusOf(failure) {
  const [, status] = /^Unexpected server response: (\d{3})$/.exec(failure) ?? [];
  return status && Number(status);
}

/** When a JWT ends, in milliseconds since 1970; undefined if it is none. */
function expiryOf(token) {
  try {
    const claims = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(claims)).exp * 1000;
  } catch {
    return undefined;
  }
}

export function join(url, options) {
  return new Signaling(url, options);
}

export class Signaling extends EventTarget {
  #url;
  #maxMessageBytes;
  #reconnect;
  #backoff;
  #state = "connecting";
  #selfId = "";
  #formerIds = new Set();
  #peers = new Map();
  #iceServers = [];
  #ready;
  #settle; // {resolve, reject} of `ready`
  #listening = new AbortController();

  #socket; // whose messages count
  #abandoned = new Set(); // those that seem dead
  #timer; // of the present state
  #openedAt;
  #attempts = 0;

  #token;
  #seen = 0;
  #outbox = new Outbox();
  #messages = 0;
  #fences = 0;
  #fenced = 0; // the number of the message to this peer itself that is under way; 0 without one
  #catchingUp = false; // whether what was missed, and tells what arrived, may still come
  #expecting = false; // whether the server has to be heard soon
  #heard = new Map(); // peer id -> the number of its last message

  constructor(
    url,
    { metadata, signal, reconnect = true, backoff = {}, maxMessageBytes = MAX_MESSAGE_BYTES } = {},
  ) {
    super();
    this.#url = address(url, metadata);
    this.#maxMessageBytes = maxMessageBytes;
    this.#reconnect = reconnect;
    this.#backoff = { first: 500, most: 30_000, ...backoff };
    this.#ready = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.#ready.catch(() => {}); // Who does not wait for it does not want to hear of it.
    if (signal?.aborted) {
      this.#end(undefined, signal.reason);
      return;
    }
    const listening = { signal: this.#listening.signal };
    signal?.addEventListener("abort", () => this.#leave(signal.reason), listening);
    for (const type of ["online", "pageshow"]) globalThis.addEventListener?.(type, () => this.#wake(), listening);
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.#wake(), listening);
    this.#connect();
  }

  get selfId() {
    return this.#selfId;
  }

  get state() {
    return this.#state;
  }

  get peers() {
    return this.#peers;
  }

  get iceServers() {
    return this.#iceServers;
  }

  get ready() {
    return this.#ready;
  }

  send(type, to, payload, msgId = `~${++this.#messages}`) {
    const message = { type, to, payload, msgId };
    const text = JSON.stringify(message);
    const open = this.#state === "open";
    const isTooLarge = new TextEncoder().encode(text).length > this.#maxMessageBytes;
    if (isTooLarge || this.#state === "closed" || (!open && this.#outbox.size >= MAX_KEPT)) {
      queueMicrotask(() => this.#refuse(isTooLarge ? "too_large" : "dropped", [message]));
      return msgId;
    }
    this.#outbox.add(message, text);
    if (open) this.#flush();
    return msgId;
  }

  leave() {
    this.#leave(new DOMException("left the topic", "AbortError"));
  }

  // -- The connection --

  #connect() {
    clearTimeout(this.#timer);
    this.#change("connecting");
    if (this.#state !== "connecting") return; // A listener left.
    const url = new URL(this.#url);
    if (this.#token) url.search += `&resume=${encodeURIComponent(this.#token)}&seen=${this.#seen}`;
    const socket = new WebSocket(url.href);
    this.#socket = socket;
    const ifCurrent = (react) => (event) => this.#socket === socket && react(event);
    socket.addEventListener("message", ifCurrent(({ data }) => this.#receive(data)));
    let failure;
    // Without a listener, an error ends a program that runs in Node with the package `ws`.
    socket.addEventListener("error", ({ message }) => (failure = message));
    socket.addEventListener("close", ifCurrent(({ code, reason }) => this.#lose(code, reason, failure)));
    socket.addEventListener("close", () => this.#abandoned.delete(socket));
    this.#timer = setTimeout(() => this.#abandon("the server did not answer"), MS.opening);
  }

  /** Leaves a connection that seems dead to itself. */
  #abandon(reason) {
    // A close frame would end the session that the next connection resumes, should it arrive after all.
    if (this.#socket.readyState === WebSocket.CONNECTING) this.#socket.close();
    else this.#abandoned.add(this.#socket);
    const [oldest] = this.#abandoned;
    if (this.#abandoned.size > MAX_ABANDONED) {
      this.#abandoned.delete(oldest);
      oldest.close();
    }
    this.#lose(1006, reason);
  }

  #forget() {
    for (const socket of this.#abandoned) socket.close();
    this.#abandoned.clear();
  }

  #lose(code, reason, failure) {
    this.#socket = undefined;
    clearTimeout(this.#timer);
    this.#outbox.rewind();
    this.#expecting = this.#catchingUp = false;
    this.#fenced = 0;
    if (this.#state === "open" && performance.now() - this.#openedAt >= MS.stable) this.#attempts = 0;
    const lost = this.#state === "open" ? `the connection was lost (${code})` : `no connection (${code})`;
    this.#attempts++;
    const refused = this.#refusal(code, statusOf(failure));
    const why = refused ?? (reason || failure || lost);
    if (refused || !this.#reconnect) {
      this.#end(why, new Error(why), code);
      return;
    }
    const retryInMs = this.#delay(code);
    this.#timer = setTimeout(() => this.#connect(), retryInMs);
    this.#change("waiting", { reason: why, code, retryInMs });
  }

  /** Why another attempt would be refused as well; undefined if it may succeed. */
  #refusal(code, status) {
    if (code === TOKEN_EXPIRED) return "the token has expired";
    if (status >= 400 && status < 500 && !MOMENTARY.includes(status)) return `the server refuses (HTTP ${status})`;
    if (this.#state !== "connecting" || code !== 1006) return undefined;
    if (expiryOf(new URL(this.#url).searchParams.get("token")) < Date.now()) return "the token has expired";
    // Who was heard once knows that address, origin and token are right.
    if (this.#seen > 0 || this.#attempts < MAX_FIRST_ATTEMPTS) return undefined;
    return `no connection in ${MAX_FIRST_ATTEMPTS} attempts: is the server there, and does it accept the address, origin and token?`;
  }

  #delay(code) {
    const { first, most } = this.#backoff;
    const span = Math.min(most, first * 2 ** (this.#attempts - 1));
    // A server that stops closes everybody at once; who comes back spreads over a while.
    if (code === 1001 || code === 1012) return Math.random() * Math.min(most, Math.max(span, first * 4));
    if (code === 1008) return less(most);
    return less(code === 1013 ? Math.max(span, most / 4) : span);
  }

  /** There may be a network again, or a connection may have died unnoticed. */
  #wake() {
    this.#attempts = 0;
    if (this.#state === "waiting") this.#connect();
    else if (this.#state === "open") this.#fence();
  }

  #leave(reason) {
    if (this.#state === "closed") return;
    this.#socket?.close(1000);
    this.#end(undefined, reason);
  }

  #end(why, rejection, code) {
    this.#socket = undefined;
    this.#forget();
    clearTimeout(this.#timer);
    this.#listening.abort();
    this.#settle.reject(rejection);
    this.#change("closed", { reason: why, code });
    this.#refuse("dropped", this.#outbox.remove(() => true));
  }

  #change(state, detail) {
    if (state === this.#state && state !== "connecting") return;
    this.#state = state;
    emit(this, "statechange", { state, ...detail });
  }

  // -- What is sent --

  #flush() {
    if (this.#catchingUp) return;
    this.#outbox.write((entry) => {
      this.#socket.send(entry.text);
      if (entry.told) return;
      entry.told = true;
      emit(this, "sent", entry.message);
    });
    if (this.#state !== "open") return; // A listener left.
    if (!this.#token) this.#outbox.confirm(Infinity);
    else if (!this.#fenced && this.#outbox.unconfirmed) this.#fence();
  }

  /** Sends a message to this peer itself: once it comes back, the server has all that was sent before it. */
  #fence() {
    this.#fenced = ++this.#fences;
    const msgId = `fence ${this.#fenced} ${this.#outbox.unconfirmed}`;
    this.#socket.send(JSON.stringify({ type: "ice-candidate", to: this.#selfId, msgId }));
    if (!this.#expecting) this.#watch(MS.echo, () => this.#abandon("the server is silent"));
    this.#expecting = true;
  }

  #passed(fence, number) {
    this.#outbox.confirm(number);
    if (fence !== this.#fenced) return;
    this.#fenced = 0;
    this.#catchingUp = false;
    if (this.#state === "open") this.#flush();
  }

  #watch(ms, late) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(late, ms);
  }

  #refuse(code, messages) {
    const message = code === "too_large" ? `a message may have at most ${this.#maxMessageBytes} bytes` : "not sent";
    for (const { msgId } of messages) emit(this, "error", { type: "error", code, message, msgId });
  }

  // -- What is received --

  #receive(data) {
    const message = read(data);
    this.#seen++;
    if (this.#state === "open") {
      this.#expecting = false;
      this.#watch(MS.idle, () => this.#fence());
    }
    if (!message) return;
    const fence = /^fence (\d+) (\d+)$/.exec(message.msgId)?.slice(1).map(Number);
    if (fence && (message.from === this.#selfId || message.type === "error")) this.#passed(...fence);
    else if (!this.#repeated(message)) this.#take(message);
  }

  /** Whether a message came already: what was under way when its sender's connection broke is sent again. */
  #repeated({ from, msgId }) {
    const [, number] = (this.#isThere(from) && /^~(\d+)$/.exec(msgId)) || [];
    if (!number) return false;
    if (Number(number) <= (this.#heard.get(from) ?? 0)) return true;
    this.#heard.set(from, Number(number));
    return false;
  }

  #take(message) {
    if (message.type === "welcome") this.#enter(message);
    else if (message.type === "error") this.#outbox.answered(message.msgId);
    else if (message.type === "ice-servers") this.#iceServers = message.iceServers;
    emit(this, "received", message);
    if (this.#state === "closed") return; // A listener left.
    if (message.type === "welcome") this.#welcome(message);
    else if (message.type === "peer-list") this.#list(message);
    else if (message.type === "peer-joined") this.#joined(message);
    else if (message.type === "peer-left") this.#left(message);
    else emit(this, message.type, message);
  }

  #isThere(id) {
    return this.#peers.has(id) || id === this.#selfId;
  }

  #enter({ selfId, iceServers, resume, resumed }) {
    if (!resumed) {
      this.#seen = 1;
      this.#heard.clear();
      if (this.#selfId) this.#formerIds.add(this.#selfId);
      const [oldest] = this.#formerIds;
      if (this.#formerIds.size > MAX_FORMER_IDS) this.#formerIds.delete(oldest);
    }
    this.#selfId = selfId;
    this.#token = resume?.token;
    this.#iceServers = iceServers ?? [];
    this.#forget();
  }

  #welcome(message) {
    const another = !message.resumed && this.#formerIds.size > 0;
    const lost = another ? this.#outbox.remove(() => true) : [];
    emit(this, "welcome", message);
    this.#refuse("dropped", lost);
  }

  #list(message) {
    const before = this.#openedAt === undefined ? undefined : this.#peers;
    // The server may not have noticed yet that this peer lost its former connection.
    const others = message.peers.filter(({ id }) => !this.#formerIds.has(id) && id !== this.#selfId);
    this.#peers = new Map(others.map(({ id, metadata }) => [id, metadata]));
    for (const id of this.#heard.keys()) if (!this.#isThere(id)) this.#heard.delete(id);
    this.#openedAt = performance.now();
    this.#watch(MS.idle, () => this.#fence());
    this.#refuse("target_not_found", before ? this.#outbox.remove(({ to }) => !this.#isThere(to)) : []);
    this.#catchingUp = this.#outbox.doubtful;
    this.#change("open");
    this.#settle.resolve();
    emit(this, "peer-list", message);
    if (this.#state !== "open") return; // A listener left.
    if (this.#catchingUp) this.#fence();
    this.#flush();
    if (before) this.#compare(before);
  }

  /** Tells what happened while this peer was away. */
  #compare(before) {
    const now = new Map(this.#peers);
    for (const peerId of before.keys()) {
      if (!now.has(peerId)) emit(this, "peer-left", { type: "peer-left", peerId });
    }
    for (const [peerId, metadata] of now) {
      if (before.has(peerId)) continue;
      emit(this, "peer-joined", { type: "peer-joined", peerId, metadata });
    }
  }

  #joined(message) {
    const { peerId, metadata } = message;
    if (this.#isThere(peerId) || this.#formerIds.has(peerId)) return;
    this.#peers.set(peerId, metadata);
    emit(this, "peer-joined", message);
  }

  #left(message) {
    this.#heard.delete(message.peerId);
    this.#formerIds.delete(message.peerId);
    if (this.#peers.delete(message.peerId)) emit(this, "peer-left", message);
  }
}

/** Where to connect, but for what resumes a session. */
function address(url, metadata) {
  const made = new URL(url, globalThis.location?.href);
  made.protocol = made.protocol.replace("http", "ws");
  made.hash = "";
  const shown = { ...JSON.parse(made.searchParams.get("metadata") ?? "{}"), ...metadata, [INSTANCE]: random() };
  made.searchParams.delete("metadata");
  made.search += `${made.search ? "&" : "?"}metadata=${encodeURIComponent(JSON.stringify(shown))}`;
  return made.href;
}

/** A name that nobody else has. */
function random() {
  // crypto.randomUUID exists on secure pages only.
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(36)).join("");
}

/** A time of at most `ms` and at least half of it. */
function less(ms) {
  return ms * (1 - Math.random() / 2);
}

function after(ms) {
  return new Promise((done) => setTimeout(done, ms));
}

/** One of the others, and the connection to it: perfect negotiation as in section 10.7 of the WebRTC specification. */
class Peer {
  #signaling;
  #on; // what the mesh wants to hear: track, data, state, ended, error, rejected
  #closed = false;
  #timers = new Map();

  #mayOffer = false;
  #wanted = false; // whether a negotiation waits for `#mayOffer` or for the signaling
  #making = false;
  #ignoring = false;
  #settingAnswer = false;
  #describing = 0;
  #certificate; // the fingerprint of the other's connection
  #unanswered = 0; // offers, in a row
  #early = []; // candidates that came before their description
  #candidates = 0; // of the other's present path
  #fragment; // names that path

  #sent = new Map(); // msgId -> {number, type, payload}, for `dropped`
  #waiting = []; // what was dropped, and what came after it
  #numbers = 0;
  #lastOffer = 0;
  #drops = 0;
  #droppedAt = -Infinity;

  #gathering; // fulfilled by the first candidate
  #transport;
  #repairs = 0;
  #gatheredWith;
  #unauthorized = false;

  constructor(id, signaling, { connection, channel, tracks, on }) {
    this.id = id;
    this.metadata = signaling.peers.get(id) ?? {};
    this.#signaling = signaling;
    this.#on = on;
    this.connection = connection;
    const listen = (type, react) => this.connection.addEventListener(type, (event) => this.#closed || react(event));
    listen("negotiationneeded", () => this.#negotiate());
    listen("icecandidate", ({ candidate }) => candidate && this.#send("ice-candidate", candidate.toJSON()));
    this.#gathering = new Promise((begun) => this.connection.addEventListener("icecandidate", begun, { once: true }));
    listen("icecandidateerror", ({ errorCode }) => errorCode === 401 && this.#unauthorize());
    listen("connectionstatechange", () => this.#observe());
    listen("track", ({ track, streams }) => on.track({ peer: this, track, streams }));
    if (channel) this.#open();
    for (const [track, streams] of tracks) this.connection.addTrack(track, ...streams);
  }

  get polite() {
    return this.#signaling.selfId > this.id;
  }

  /** Of the other's connection; undefined before its first description. */
  get certificate() {
    return this.#certificate;
  }

  /**
   * Who came later offers a channel; the one who was there waits for that, though not for ever.
   *
   * @param atOnce - whether not to wait: this mesh is new where both peers were before.
   */
  start(atOnce = false) {
    if (atOnce || this.polite || !this.channel) this.#permit();
    else this.#later("start", MS.firstOffer, () => this.#permit());
  }

  /** Negotiates what had to wait. */
  proceed() {
    if (this.#wanted && !this.#describing && this.connection.signalingState === "stable") this.#negotiate();
  }

  /** The other came back with a new id. */
  bind(id) {
    this.id = id;
    this.metadata = this.#signaling.peers.get(id) ?? {};
    this.#cancel("grace");
    this.recover();
    this.proceed();
  }

  /** Signaling between the two begins anew, and what was under way is lost. */
  recover() {
    const { connection } = this;
    this.#sent.clear();
    this.#waiting = [];
    this.#cancel("resend");
    if (!connection.remoteDescription) this.start();
    if (connection.signalingState === "have-local-offer") this.#offer();
    else if (connection.remoteDescription && connection.connectionState !== "connected") this.#repairIn(0);
  }

  /** The other left the signaling: for good, or until it is there with a new id while the connection goes on. */
  orphan() {
    if (this.connection.connectionState !== "connected") this.#on.ended(this);
    else this.#later("grace", MS.grace, () => this.#on.ended(this));
  }

  close() {
    this.#closed = true;
    for (const name of [...this.#timers.keys()]) this.#cancel(name);
    this.connection.close();
  }

  /** New ICE servers. */
  configure(configuration) {
    try {
      this.connection.setConfiguration(configuration);
    } catch (error) {
      this.#on.error(this, error);
      return;
    }
    if (this.#unauthorized && this.connection.connectionState !== "connected") this.connection.restartIce();
    this.#unauthorized = false;
  }

  /** Whether a description is of another connection than the one before. */
  isAnother(certificate) {
    return this.#certificate !== undefined && certificate !== undefined && certificate !== this.#certificate;
  }

  async describe(description) {
    const { connection } = this;
    if (this.#describing >= MAX_DESCRIPTIONS) return;
    const offered = description.type === "offer";
    const ready = !this.#making && (connection.signalingState === "stable" || this.#settingAnswer);
    this.#ignoring = offered && !ready && !this.polite;
    if (this.#ignoring) {
      // The other's mesh may be younger than this side's offer, and not have heard it.
      if (!this.#making) this.#expectAnswer(MS.ignored);
      return;
    }
    // A second answer: the offer was made twice, as nobody answered for long.
    if (!offered && (this.#settingAnswer || connection.signalingState !== "have-local-offer")) return;
    this.#cancel("start");
    this.#cancel("answer");
    this.#wanted = false; // If there is more to say, the browser tells so anew.
    this.#unanswered = 0;
    this.#certificate = certificateOf(description.sdp) ?? this.#certificate;
    this.#describing++;
    try {
      // Chromium 156 never gathers again where an offer is rolled back before the first candidate.
      const tooEarly = offered && !ready && !connection.remoteDescription;
      if (tooEarly) await Promise.race([this.#gathering, after(MS.gathering)]);
      this.#settingAnswer = !offered;
      await connection.setRemoteDescription(description);
      this.#settingAnswer = false;
      const fragment = attribute(description.sdp, "ice-ufrag");
      if (fragment !== this.#fragment) this.#candidates = 0;
      this.#fragment = fragment;
      for (const candidate of this.#early.splice(0)) this.addCandidate(candidate);
      if (offered) await this.#describeSelf();
      this.#mayOffer = true;
      if (connection.connectionState !== "connected" && !this.#timers.has("repair")) this.#repairIn(MS.repair);
    } catch (error) {
      // A late answer finds no offer any more; all else would be rejected again, as what this connection is cannot change.
      const isLate = !offered && error.name === "InvalidStateError";
      if (!this.#closed && (isLate || !this.#on.rejected(this, error))) this.#repairIn(MS.otherSide);
    } finally {
      this.#settingAnswer = false;
      this.#describing--;
    }
  }

  async addCandidate(candidate) {
    if (this.#ignoring) return;
    if (!this.connection.remoteDescription) {
      if (this.#early.length < MAX_CANDIDATES) this.#early.push(candidate);
      return;
    }
    if (++this.#candidates > MAX_CANDIDATES) return;
    try {
      await this.connection.addIceCandidate(candidate);
    } catch {
      // Of a description that has been replaced meanwhile: the new one has its own.
    }
  }

  /** The server did not deliver a message. */
  undelivered(msgId, code) {
    const entry = this.#sent.get(msgId);
    this.#sent.delete(msgId);
    if (!entry || code === "target_not_found" || this.#signaling.state === "closed") return;
    if (!["dropped", "rate_limited"].includes(code)) {
      this.#on.error(this, new Error(`${entry.type} not delivered: ${code}`));
      return;
    }
    if (entry.type === "offer" && entry.number < this.#lastOffer) return;
    this.#wait(entry);
    if (this.#timers.has("resend")) return;
    const now = performance.now();
    this.#drops = now - this.#droppedAt > 2 * MS.mostResend ? 0 : this.#drops + 1;
    this.#droppedAt = now;
    this.#later("resend", less(Math.min(MS.mostResend, MS.resend * 2 ** this.#drops)), () => {
      for (const waiting of this.#waiting.splice(0)) this.#write(waiting);
    });
  }

  #open() {
    this.channel = this.connection.createDataChannel("mesh", { negotiated: true, id: 0 });
    this.channel.binaryType = "arraybuffer";
    this.channel.addEventListener("message", ({ data }) => this.#closed || this.#on.data({ peer: this, data }));
    this.channel.addEventListener("close", () => this.#closed || this.#on.ended(this));
  }

  // -- Negotiation --

  get #reachable() {
    return this.#signaling.state === "open" && this.#signaling.peers.has(this.id);
  }

  #permit() {
    this.#mayOffer = true;
    this.proceed();
  }

  #negotiate() {
    this.#wanted = !this.#mayOffer || !this.#reachable;
    if (!this.#wanted) this.#offer();
  }

  async #offer() {
    try {
      this.#making = true;
      await this.#describeSelf();
    } catch (error) {
      if (!this.#closed) {
        this.#on.error(this, error);
        this.#repairIn(MS.otherSide);
      }
    } finally {
      this.#making = false;
    }
    this.#expectAnswer(Math.min(MS.mostAnswer, MS.answer * 2 ** this.#unanswered));
  }

  #expectAnswer(ms) {
    this.#later("answer", ms, () => {
      this.#unanswered++;
      if (this.connection.signalingState === "have-local-offer" && this.#reachable) this.#offer();
    });
  }

  async #describeSelf() {
    this.#gatheredWith = this.#signaling.iceServers;
    await this.connection.setLocalDescription();
    if (this.#closed) return;
    const { type, sdp } = this.connection.localDescription;
    this.#send(type, { type, sdp });
  }

  // -- What is sent --

  #send(type, payload) {
    const entry = { number: ++this.#numbers, type, payload };
    if (type === "offer") {
      this.#lastOffer = entry.number;
      this.#waiting = this.#waiting.filter((waiting) => waiting.type !== "offer");
    }
    if (this.#waiting.length) this.#wait(entry);
    else this.#write(entry);
  }

  /** Keeps an entry for later, in order; of a peer that takes nothing for long, only the last ones. */
  #wait(entry) {
    this.#waiting.push(entry);
    this.#waiting.sort((one, other) => one.number - other.number);
    if (this.#waiting.length > MAX_KEPT) this.#waiting.shift();
  }

  #write(entry) {
    this.#sent.set(this.#signaling.send(entry.type, this.id, entry.payload), entry);
    if (this.#sent.size > MAX_KEPT) this.#sent.delete(this.#sent.keys().next().value);
  }

  // -- The path --

  #observe() {
    const state = this.connection.connectionState;
    if (state === "connected") {
      this.#cancel("repair");
      this.#repairs = 0;
      this.#expectGoodbye();
    } else if (["disconnected", "failed"].includes(state)) {
      if (this.#timers.has("grace")) {
        this.#on.ended(this);
        return;
      }
      this.#repairIn(state === "failed" ? 0 : MS.disconnected);
    }
    this.#on.state(this);
  }

  /** Closing a connection closes its DTLS transport on the other side at once; one that is lost just falls silent. */
  #expectGoodbye() {
    const transport = (this.connection.sctp ?? this.connection.getSenders()[0])?.transport;
    if (!transport || transport === this.#transport) return;
    this.#transport = transport;
    transport.addEventListener("statechange", () => {
      if (!this.#closed && transport.state === "closed") this.#on.ended(this);
    });
  }

  /** Restarts ICE, unless the path mends itself or the other side does it first. */
  #repairIn(ms) {
    this.#later("repair", ms + (this.polite ? 0 : MS.otherSide), () => {
      if (this.connection.connectionState === "connected") return;
      this.connection.restartIce();
      this.#repairIn(less(Math.min(MS.mostRepair, MS.repair * 2 ** this.#repairs++)));
    });
  }

  /** A TURN server refused the credentials. */
  #unauthorize() {
    if (this.connection.connectionState === "connected") return;
    if (this.#signaling.iceServers !== this.#gatheredWith) this.connection.restartIce();
    else this.#unauthorized = true;
  }

  #later(name, ms, run) {
    this.#cancel(name);
    if (this.#closed) return;
    const timer = setTimeout(() => {
      this.#timers.delete(name);
      run();
    }, ms);
    this.#timers.set(name, timer);
  }

  #cancel(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}

/** The random name of a client; undefined if it shows none. */
function instanceOf(metadata) {
  const instance = metadata?.[INSTANCE];
  return isText(instance) && instance ? instance : undefined;
}

/** Names the certificate of a connection, which it keeps for life. */
function certificateOf(sdp) {
  return attribute(sdp, "fingerprint")?.toLowerCase();
}

/** The value of the first line `a=NAME:VALUE`. Line by line, as a pattern over the whole may take time without end. */
function attribute(sdp, name) {
  const beginning = `a=${name}:`;
  const line = sdp.split(/\r\n?|\n/).find((candidate) => candidate.startsWith(beginning));
  return line?.slice(beginning.length).trim();
}

export class Mesh extends EventTarget {
  #signaling;
  #configuration;
  #channel;
  #maxConnections;
  #peers = new Map();
  #tracks = new Map(); // track -> streams
  #listening = new AbortController();
  #renewed = false; // whether this peer has a new id that its connections do not know
  #allowance; // for connections to new peers
  #anew; // for new connections in place of others: who begins anew all the time takes nothing from new peers
  #allowances = new Map(); // id -> the same for one peer
  #postponed = new Map(); // id -> since when it has no connection for now
  #crowded = false; // whether those come before anybody new
  #ended = new Map(); // id -> {certificate, at} of the last connection that ended
  #timer; // until those are looked at again

  constructor(signaling, { configuration = {}, channel = true, maxConnections = MAX_CONNECTIONS } = {}) {
    super();
    if (!globalThis.RTCPeerConnection) throw new Error("There is no WebRTC here: RTCPeerConnection is missing.");
    this.#maxConnections = maxConnections;
    this.#allowance = new Allowance(2 * maxConnections, MS.begin);
    this.#anew = new Allowance(2 * maxConnections, MS.begin);
    this.#signaling = signaling;
    this.#configuration = configuration;
    this.#channel = channel;
    const listening = { signal: this.#listening.signal };
    const on = (type, react) => signaling.addEventListener(type, ({ detail }) => react(detail), listening);
    on("welcome", (message) => this.#welcome(message));
    on("statechange", (detail) => this.#statechange(detail));
    signaling.addEventListener("peer-list", () => this.#meetAll(), { ...listening, once: true }); // Changes follow.
    on("peer-joined", ({ peerId }) => this.#meet(peerId));
    on("peer-left", ({ peerId }) => this.#left(peerId));
    on("ice-servers", () => this.#configure());
    on("offer", (message) => this.#describe(message));
    on("answer", (message) => this.#describe(message));
    on("ice-candidate", ({ from, payload }) => this.#peers.get(from)?.addCandidate(payload));
    on("error", ({ msgId, code }) => this.#peers.forEach((peer) => peer.undelivered(msgId, code)));
    globalThis.addEventListener?.("pagehide", () => this.#closeAll(), listening);
    globalThis.addEventListener?.("pageshow", ({ persisted }) => persisted && this.#meetAll(), listening);
    // Whoever makes a mesh has to have the time to listen.
    queueMicrotask(() => signaling.state === "open" && this.#meetAll(true));
  }

  get peers() {
    return this.#peers;
  }

  addTrack(track, ...streams) {
    this.#tracks.set(track, streams);
    for (const { connection } of this.#peers.values()) connection.addTrack(track, ...streams);
  }

  removeTrack(track) {
    this.#tracks.delete(track);
    for (const { connection } of this.#peers.values()) {
      const sender = connection.getSenders().find((candidate) => candidate.track === track);
      if (sender) connection.removeTrack(sender);
    }
  }

  broadcast(data) {
    for (const peer of this.#peers.values()) {
      if (peer.channel?.readyState !== "open") continue;
      try {
        peer.channel.send(data);
      } catch (error) {
        this.#report(peer.id, error); // It does not read what was sent before; the others do.
      }
    }
  }

  close() {
    this.#listening.abort();
    this.#closeAll();
  }

  // -- Who is there --

  #welcome({ resumed }) {
    this.#renewed = !resumed;
    this.#configure();
  }

  #statechange({ state, reason }) {
    // Without a reason this peer left; a server that is gone leaves the connections alone.
    if (state === "closed" && !reason) this.close();
    if (state !== "open") return;
    for (const peer of this.#peers.values()) {
      if (!this.#signaling.peers.has(peer.id)) continue; // It has left, and may have a new id as well.
      if (this.#renewed) peer.recover();
      peer.proceed();
    }
    this.#renewed = false;
  }

  #meetAll(atOnce) {
    if (this.#listening.signal.aborted) return;
    for (const id of this.#signaling.peers.keys()) this.#meet(id, atOnce);
  }

  #meet(id, atOnce) {
    if (this.#peers.has(id)) return;
    const holders = this.#holders(this.#signaling.peers.get(id));
    const mayBe = holders.find((peer) => this.#heir(peer) === id);
    if (mayBe) this.#bind(mayBe, id);
    else if (!holders.length || performance.now() - this.#postponed.get(id) > MS.grace) this.#add(id)?.start(atOnce);
    else this.#postpone(id);
  }

  /** The connections of those who show the same instance. */
  #holders(metadata) {
    const instance = instanceOf(metadata);
    return instance ? [...this.#peers.values()].filter((peer) => instanceOf(peer.metadata) === instance) : [];
  }

  /**
   * The id with which a peer that is gone came back, by what it says of itself. As anybody can say so, nobody is believed as
   * long as that peer is there, or if several say the same: its certificate, in an offer of its own, is a better proof.
   */
  #heir(peer) {
    if (this.#signaling.peers.has(peer.id) || this.#holders(peer.metadata).length !== 1) return undefined;
    let heir;
    for (const [id, metadata] of this.#signaling.peers) {
      if (this.#peers.has(id) || instanceOf(metadata) !== instanceOf(peer.metadata)) continue;
      if (heir) return undefined;
      heir = id;
    }
    return heir;
  }

  #bind(peer, id) {
    const former = peer.id;
    this.#postponed.delete(id);
    this.#peers.delete(former);
    this.#peers.set(id, peer);
    peer.bind(id);
    if (this.#signaling.peers.has(former)) this.#postpone(former); // It leaves before long, or is somebody else.
  }

  #left(id) {
    for (const known of [this.#allowances, this.#postponed, this.#ended]) known.delete(id);
    const peer = this.#peers.get(id);
    if (!peer) return;
    const heir = this.#heir(peer);
    if (heir) this.#bind(peer, heir);
    else peer.orphan();
  }

  // -- How many connections there are --

  /** Begins a connection to a peer; undefined if that has to wait. */
  #add(id) {
    const isFull = this.#peers.size >= this.#maxConnections;
    const waits = this.#crowded && !this.#postponed.has(id);
    if (!isFull && !waits && this.#allows(id, this.#allowance)) return this.#begin(id);
    this.#crowded = true;
    const why = isFull ? `there are ${this.#maxConnections} already` : "too many were begun just now";
    return this.#postpone(id, `no connection: ${why}`);
  }

  /** Begins a connection anew; undefined if that has to wait. */
  #replace(peer) {
    if (!this.#allows(peer.id, this.#anew)) {
      this.#report(peer.id, new Error("no new connection: too many were begun just now"));
      return undefined;
    }
    this.#remove(peer);
    return this.#begin(peer.id);
  }

  #allows(id, allowance) {
    if (!this.#allowances.has(id)) this.#allowances.set(id, new Allowance(MAX_BEGUN, MS.beginAgain));
    const both = [this.#allowances.get(id), allowance];
    if (!both.every(({ any }) => any)) return false;
    for (const one of both) one.take();
    return true;
  }

  #begin(id) {
    let connection;
    try {
      connection = this.#connection(id);
    } catch (error) {
      return this.#postpone(id, error.message);
    }
    const peer = new Peer(id, this.#signaling, {
      connection,
      channel: this.#channel,
      tracks: this.#tracks,
      on: {
        track: (detail) => emit(this, "track", detail),
        data: (detail) => emit(this, "data", detail),
        state: (detail) => emit(this, "connectionstatechange", detail),
        ended: (ended) => this.#remove(ended),
        error: (failing, error) => this.#report(failing.id, error),
        rejected: (failing, error) => this.#rejected(failing, error),
      },
    });
    this.#postponed.delete(id);
    this.#peers.set(id, peer);
    emit(this, "peer-added", peer);
    return peer;
  }

  #connection(id) {
    try {
      return new RTCPeerConnection(this.#configured);
    } catch (error) {
      // It may be the server's ICE servers, and many peers are reached without them.
      const connection = new RTCPeerConnection(this.#configuration);
      this.#report(id, error);
      return connection;
    }
  }

  /** Looks at a peer again later; an event says why, the first time. */
  #postpone(id, why) {
    if (!this.#postponed.has(id)) {
      this.#postponed.set(id, performance.now());
      if (why) this.#report(id, new Error(why));
    }
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#crowded = false;
      for (const postponed of [...this.#postponed.keys()]) this.#meet(postponed);
    }, MS.begin);
    return undefined;
  }

  #remove(peer) {
    this.#peers.delete(peer.id);
    if (peer.certificate && this.#signaling.peers.has(peer.id)) {
      this.#ended.set(peer.id, { certificate: peer.certificate, at: performance.now() });
    }
    peer.close();
    emit(this, "peer-removed", peer);
  }

  #closeAll() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#postponed.clear();
    this.#crowded = false;
    for (const peer of [...this.#peers.values()]) this.#remove(peer);
  }

  #report(peerId, error) {
    emit(this, "error", { peerId, error });
  }

  // -- What they say --

  #describe({ type, from, payload }) {
    const sdp = payload?.sdp;
    if (!isText(sdp) || !this.#signaling.peers.has(from)) return;
    const certificate = certificateOf(sdp);
    let peer = this.#returned(from, certificate) ?? this.#peers.get(from);
    if (type === "offer" && certificate && certificate !== peer?.certificate && this.#justEnded(from, certificate)) {
      // It was under way when the connection ended here: an answer would be another connection's.
      if (!peer) this.#add(from)?.start();
      return;
    }
    if (peer?.isAnother(certificate)) {
      // The other side began anew, so this side has to.
      peer = this.#replace(peer);
      if (type !== "offer") {
        peer?.start(true);
        return;
      }
    } else if (!peer && type === "offer" && certificate) peer = this.#add(from);
    peer?.describe({ type, sdp });
  }

  #justEnded(id, certificate) {
    const ended = this.#ended.get(id);
    return ended?.certificate === certificate && performance.now() - ended.at < MS.underWay;
  }

  /** The connection of a peer that has another id now, and proves by its certificate who it is. */
  #returned(id, certificate) {
    const holders = certificate ? this.#holders(this.#signaling.peers.get(id)) : [];
    const peer = holders.find((known) => known.certificate === certificate);
    if (!peer || peer.id === id) return undefined;
    const other = this.#peers.get(id);
    if (other) this.#remove(other);
    this.#bind(peer, id);
    return peer;
  }

  /**
   * A connection cannot take what the other side says: in Chromium, for example, an offer that meets its own and numbers the
   * extensions of RTP headers in another way. A new connection can.
   *
   * @returns whether there is a new one.
   */
  #rejected(peer, error) {
    this.#report(peer.id, error);
    if (!this.#signaling.peers.has(peer.id)) return false;
    const anew = this.#replace(peer);
    anew?.start(true);
    return anew !== undefined;
  }

  get #configured() {
    const own = this.#configuration.iceServers ?? [];
    return { ...this.#configuration, iceServers: [...this.#signaling.iceServers, ...own] };
  }

  #configure() {
    for (const peer of this.#peers.values()) peer.configure(this.#configured);
  }
}
