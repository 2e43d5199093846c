/**
 * The client of a twisted-signaling server: `join` a topic, and keep a `Mesh` of connections to the other peers.
 *
 * signaling.d.ts has the types and their documentation; docs/reconnecting.md says what happens after each kind of loss.
 */

const RELAYED = ["offer", "answer", "ice-candidate"];

// The metadata key by which a peer is recognised when it comes back with another id.
const INSTANCE = "instance";

// The feature of a server that takes updates of metadata.
const METADATA_UPDATES = "metadata-updates";

// Of the characters of a bearer token (RFC 6750), a page cannot send "/" and "=" in a subprotocol.
const TOKEN = /^[\w.~+-]+$/;

const CONNECTING = 0; // a `readyState`, whatever class the sockets have

// The longest delay of a timer: browsers run one that is longer at once.
const MAX_TIMER_MS = 2 ** 31 - 1;

// -- Close codes and statuses --

// The server's code for a message that is too long.
const MESSAGE_TOO_BIG = 1009;

const TOKEN_EXPIRED = 4401;

// The codes by which an operator ends the stay of this peer, and what they mean if there is no reason.
const DISMISSALS = new Map([
  [4403, "an operator removed this peer from the topic"],
  [4404, "an operator closed the topic"],
]);

// The only 4xx statuses for which the same request may succeed later.
const TEMPORARY = [408, 425, 429];

// Statuses that a server may give for metadata that is too long, or for a URL that is too long with it.
const OF_THE_URL = [400, 414, 431];

// Statuses after which another token may be right.
const UNAUTHORIZED = [401, 403];

// -- Limits of what the server sends (docs/clients-limits.md); sizes are in characters --

// A message: enough for a list of `MAX_PEERS`.
const MAX_RECEIVED = 32 * 2 ** 20;

// Peers of a topic, and the size of their ids and metadata: a server has at most 5,000 peers, unless its operator says
// otherwise, and a list of all is one message.
const MAX_PEERS = 16_384;
const MAX_PEERS_SIZE = MAX_RECEIVED;

// A peer's id; a server's have 26.
const MAX_ID = 4_096;

// A peer's metadata as JSON. A server takes no longer one from a client; a token may have about this much.
const MAX_METADATA = 16_384;

// Names of features in a welcome, and their size; a server has a handful.
const MAX_FEATURES = 64;
const MAX_FEATURE = 64;

// ICE servers of a message, the URLs of all of them, and the size of one as JSON: a server has a few, with credentials.
const MAX_ICE_SERVERS = 32;
const MAX_ICE_URLS = 256;
const MAX_ICE_SERVER = 4_096;

// Messages that wait while the payload of one is opened, and their size: enough for the longest one.
const MAX_INCOMING = 1_024;
const MAX_INCOMING_SIZE = MAX_RECEIVED;

// The reason for a refusal.
const MAX_REASON = 500;

// The answer to a check.
const MAX_CHECK = 4_096;

// -- Limits of what this peer sends --

// Messages that wait for a connection; the next one is `dropped`, as the server does with its own queues.
const MAX_WAITING = 256;

// Messages that were sent on the current connection, or wait for a moment, and are not confirmed.
const MAX_UNCONFIRMED = 4_096;

// Bytes that wait in the socket, for a server that does not read.
const MAX_BUFFERED_BYTES = 16 * 2 ** 20;

// Bytes of one message, unless the options say otherwise: the server's own default.
const MAX_MESSAGE_BYTES = 65_536;

// Updates of this peer's metadata that are kept until the server has answered them, the latest ones.
const MAX_UNANSWERED = 16;

// Bytes of a secret: as many as an attacker cannot guess, if they are random.
const MIN_SECRET_BYTES = 16;

// Bytes of a sealed payload, besides what was sealed: nonce and tag.
const SEAL_BYTES = 28;

// -- Limits of connecting --

// How many attempts may fail in a row before the first connection: more than a minute, after which a wrong address is
// likelier than a server that restarts.
const MAX_FIRST_ATTEMPTS = 10;

// Ids that this peer had before: the server may take a minute to notice that one is gone.
const MAX_FORMER_IDS = 16;

// Connections that seem dead and are not closed yet. The session of an older one has ended by itself.
const MAX_ABANDONED = 3;

// -- Limits of a mesh --

// Connections, unless the options say otherwise.
const MAX_CONNECTIONS = 64;

// Connections that a mesh makes at once for one peer: browsers count closed ones for some time.
const MAX_BEGUN = 5;

// Media sections of a description. Chromium takes quadratic time: 0.1 s to 1 s for these, 12 s for 500, in which all
// connections of the page negotiate nothing.
const MAX_SECTIONS = 64;

// Media sections of all descriptions of one peer, at once; then one every `MS.section`.
const MAX_NEGOTIATED = 1_024;

// Descriptions of one peer that are applied at the same time.
const MAX_DESCRIPTIONS = 8;

// Candidates of one description: a browser finds a few dozen.
const MAX_CANDIDATES = 256;

// Characters of a candidate as JSON; those of browsers have about 200.
const MAX_CANDIDATE = 4_096;

const MS = {
  asking: 15_000, // for the token function
  opening: 15_000, // from a connection's start to its peer list
  check: 5_000, // for the server to say why it refuses connections
  checkAgain: 300_000, // from one check to the next, in a streak of failures
  mostRetryAfter: 3_600_000,
  update: 10_000, // from an update of the metadata to its answer
  renewal: 1_000, // at least, before a token is renewed
  idle: 30_000, // without a message, before this side checks that the server is still there
  echo: 10_000, // from such a check to any message
  expiry: 1_000, // a token that expires earlier than this is asked for with backoff
  stable: 5_000, // after a connection that lasted this long, the backoff starts again
  firstOffer: 2_000, // for which the peer that joined first waits for the other's offer
  answer: 10_000, // from an offer to its answer, before the offer is repeated; doubles up to `mostAnswer`
  mostAnswer: 120_000,
  ignored: 2_500, // the same, if the other side offered as well
  gathering: 1_000, // for the first candidate
  disconnected: 3_000, // before an ICE restart: the path often recovers
  otherSide: 4_000, // for which one side lets the other restart ICE
  repair: 8_000, // from one ICE restart to the next; doubles up to `mostRepair`
  mostRepair: 60_000,
  resend: 100, // after the first `dropped`; doubles up to `mostResend`
  mostResend: 5_000,
  grace: 60_000, // for a peer whose connection works to come back to the signaling
  beginAgain: 10_000, // from one connection to the next with the same peer, once `MAX_BEGUN` were made
  inFlight: 2_000, // for messages that were sent before a connection ended to arrive; less than `ignored`
  connecting: 30_000, // for which a connection keeps its place in a full mesh while it is not connected
  section: 30, // from one media section of a peer to the next, once `MAX_NEGOTIATED` were negotiated
  begin: 1_000, // from one connection to the next, once twice `maxConnections` were made
};

// ---- Helpers ----

/** @throws {TypeError} with the message, unless the condition is true. */
function need(condition, message) {
  if (!condition) throw new TypeError(message);
}

/** The value of a JSON text; undefined if it is none. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The text of whatever was thrown. */
function messageOf(error) {
  try {
    return String(error?.message ?? error);
  } catch {
    return "an error without a text"; // For example an object without a prototype.
  }
}

function emit(target, type, detail) {
  target.dispatchEvent(new CustomEvent(type, { detail }));
}

function bytesIn(text) {
  return new TextEncoder().encode(text).length;
}

/** A unique name. */
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

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isText = (value) => typeof value === "string";
const isSeconds = (value) => Number.isFinite(value) && value >= 0;
const isId = (value) => isText(value) && value.length <= MAX_ID;
const objects = (value) => (Array.isArray(value) ? value.filter(isObject) : []);
const metadataOf = ({ metadata }) => (isObject(metadata) && charactersOf(metadata) <= MAX_METADATA ? metadata : {});
/** The same for metadata as JSON. */
const asReceived = (metadata) => (metadata.length <= MAX_METADATA ? metadata : "{}");

/** The length of a value as JSON; infinite if it is nested too deeply for that. */
function charactersOf(value) {
  try {
    return JSON.stringify(value).length;
  } catch {
    return Infinity;
  }
}

/** Characters of what is kept of a peer. */
const sizeOf = (id, metadata) => id.length + charactersOf(metadata);

// ---- Reading what the server sends ----

/**
 * Reads a message of the server, and makes sure that every key on which this client or a page relies has its type.
 *
 * @returns undefined if it is not a message of docs/protocol.md.
 */
function read(data) {
  if (!isText(data) || data.length > MAX_RECEIVED) return undefined;
  const message = parsed(data);
  if (!isObject(message)) return undefined;
  const { type, msgId, ...rest } = message;
  const made = { type, ...rest, ...(isText(msgId) && { msgId }) };
  switch (type) {
    case "welcome":
      return isId(rest.selfId) ? readWelcome(made) : undefined;
    case "peer-list": {
      const peers = objects(rest.peers).filter(({ id }) => isId(id)).slice(0, MAX_PEERS);
      return { ...made, peers: peers.map((peer) => ({ ...peer, metadata: metadataOf(peer) })) };
    }
    case "peer-joined":
    case "peer-updated":
      return isId(rest.peerId) ? { ...made, metadata: metadataOf(rest) } : undefined;
    case "peer-left":
      return isText(rest.peerId) ? made : undefined;
    case "ice-servers":
      return { ...made, iceServers: readIceServers(rest.iceServers) };
    case "notice":
      return { type, data: rest.data };
    case "token":
      return readExpiry(made);
    case "error":
      return isText(rest.code) ? { ...made, message: isText(rest.message) ? rest.message : "" } : undefined;
    default:
      return RELAYED.includes(type) && isText(rest.from) ? made : undefined;
  }
}

/** The message; without `expiresIn` if that is no number of seconds. */
function readExpiry({ expiresIn, ...rest }) {
  return { ...rest, ...(isSeconds(expiresIn) && { expiresIn }) };
}

/** A bounded number of ICE servers, with a bounded number of URLs: a connection asks all of them. */
function readIceServers(value) {
  const short = (server) => charactersOf(server) <= MAX_ICE_SERVER;
  const servers = Array.isArray(value) ? value.slice(0, MAX_ICE_SERVERS).filter(isObject).filter(short) : [];
  let left = MAX_ICE_URLS;
  const bounded = servers.map((server) => {
    const urls = Array.isArray(server.urls) ? server.urls.slice(0, left) : server.urls;
    left -= Array.isArray(urls) ? urls.length : 0;
    return { ...server, urls };
  });
  // Browsers use no server at all if one has no URL.
  return bounded.filter(({ urls }) => urls?.length !== 0);
}

const isFeature = (name) => isText(name) && name.length <= MAX_FEATURE;

function readWelcome({ features, iceServers, resume, resumed, ...rest }) {
  return {
    ...readExpiry(rest),
    ...(Array.isArray(features) && { features: features.slice(0, MAX_FEATURES).filter(isFeature) }),
    ...(iceServers !== undefined && { iceServers: readIceServers(iceServers) }),
    // It becomes a part of the URL.
    ...(isText(resume?.token) && /^[ -~]{1,1000}$/.test(resume.token) && { resume }),
    ...(resumed === true && { resumed }),
  };
}

// ---- Access tokens ----

/** Why there is no token to present. */
const withoutToken = (error) => `the token function failed: ${messageOf(error)}`;

/** @throws {TypeError} if it is not a token that a page can present. */
function checkedToken(token) {
  if (isText(token) && TOKEN.test(token)) return token;
  throw new TypeError("not a token: it has to be a string of letters, digits and - . _ ~ +");
}

/** The access token of a client. It is asked for whenever it is needed, and never kept. */
class Credential {
  #token; // undefined, a string, or the function to ask

  /** @throws {TypeError} if `token` cannot be one, or if the URL has one as well. */
  constructor(token, url) {
    if (token !== undefined && new URL(url).searchParams.has("token")) {
      throw new TypeError("there are two tokens: one in the URL, and one in the options");
    }
    this.#token = token === undefined || typeof token === "function" ? token : checkedToken(token);
  }

  /** Whether there may be another token the next time. */
  get isRenewable() {
    return typeof this.#token === "function";
  }

  /** The token that never changes; undefined without one. */
  get fixed() {
    return this.isRenewable ? undefined : this.#token;
  }

  /**
   * Asks the function.
   *
   * @param signal - ends the wait when it is aborted.
   * @returns a promise, rejected if there is no token in time.
   */
  async ask(signal) {
    const ask = this.#token;
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("the token function did not answer in time")), MS.asking);
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
    try {
      return checkedToken(await Promise.race([Promise.resolve().then(ask), late]));
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Renews the token of an open connection, again and again, at four fifths of its time. */
class Renewal {
  #credential;
  #send;
  #report;
  #timer;
  #pending = new AbortController(); // aborted when the connection is lost
  #expiresAt;
  #msgId; // of the token that the server has not answered yet
  #sent = 0;

  /**
   * @param send - writes a message to the connection.
   * @param report - is called with the reason whenever there is no new token.
   */
  constructor(credential, send, report) {
    this.#credential = credential;
    this.#send = send;
    this.#report = report;
  }

  /** The token in use expires in `seconds`; never, if that is undefined. */
  start(seconds) {
    this.stop();
    if (seconds === undefined || !this.#credential.isRenewable) return;
    this.#expiresAt = performance.now() + seconds * 1000;
    this.#in(seconds * 800);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#pending.abort();
    this.#msgId = undefined;
  }

  /** Takes the answer to a token; returns whether the message was one. */
  take({ type, msgId, expiresIn, message }) {
    if (type !== "token" && type !== "error") return false; // The msgId of a peer's message is that peer's choice.
    const isAwaited = msgId !== undefined && msgId === this.#msgId;
    if (type === "token" && isAwaited) this.start(expiresIn);
    else if (type === "error" && isAwaited) this.#again(message);
    return type === "token" || isAwaited;
  }

  #in(ms) {
    this.#timer = setTimeout(() => this.#renew(), Math.min(Math.max(ms, MS.renewal), MAX_TIMER_MS));
  }

  async #renew() {
    this.#pending = new AbortController();
    const { signal } = this.#pending;
    try {
      const token = await this.#credential.ask(signal);
      if (signal.aborted) return;
      this.#msgId = `token ${++this.#sent}`;
      this.#send({ type: "token", token, msgId: this.#msgId });
    } catch (error) {
      if (!signal.aborted) this.#again(withoutToken(error));
    }
  }

  /** Tries once more while there is time; then the server closes the connection, and the next one has a new token. */
  #again(reason) {
    this.#msgId = undefined;
    const leftMs = this.#expiresAt - performance.now();
    if (leftMs > MS.renewal) this.#in(leftMs / 5);
    this.#report(reason);
  }
}

// ---- What this peer sends ----

/** The messages that were sent, in order, until the server has certainly processed them. */
class Outbox {
  #entries = []; // of {number, message, text, wasSent}; the text is undefined until the payload is sealed
  #unsealed = [];
  #written = 0; // how many of them were written to the current connection
  #longestForgotten = 0; // bytes of the longest that was, and of which nobody will know whether it arrived
  #last = 0;

  get size() {
    return this.#entries.length;
  }

  /** The number of the last message that was written and is not confirmed; 0 without one. */
  get unconfirmed() {
    return this.#written ? this.#entries[this.#written - 1].number : 0;
  }

  /** The number of the next message. */
  get next() {
    return this.#last + 1;
  }

  add(message, text) {
    this.#entries.push({ number: ++this.#last, message, text, wasSent: false });
  }

  /** Adds a message whose payload, as JSON, is to be sealed before it is written. */
  addUnsealed(message, json) {
    this.add(message);
    this.#unsealed.push({ entry: this.#entries.at(-1), json });
  }

  /** Removes and returns the messages to seal: {entry, json}. */
  takeUnsealed() {
    return this.#unsealed.splice(0);
  }

  /** Writes the messages that were not written to the current connection yet, up to one that is not sealed. */
  write(write) {
    while (this.#entries[this.#written]?.text !== undefined) write(this.#entries[this.#written++]);
  }

  /** The server has processed this message, and all before it. */
  confirm(number) {
    const first = this.#entries.findIndex((entry) => entry.number > number);
    const confirmed = first < 0 ? this.#entries.length : first;
    this.#entries.splice(0, confirmed);
    this.#written = Math.max(0, this.#written - confirmed);
  }

  /** The session cannot be resumed: what was written is not repeated. */
  forget() {
    this.#longestForgotten = Math.max(this.#longestForgotten, this.longest);
    this.#entries.splice(0, this.#written);
    this.#written = 0;
  }

  /** The bytes of the longest message that was written to the current connection and is not confirmed; 0 without one. */
  get longest() {
    const sizes = this.#entries.slice(0, this.#written).map(({ text }) => bytesIn(text));
    return sizes.reduce((longest, size) => Math.max(longest, size), this.#longestForgotten);
  }

  /** Removes and returns that message, if it is still here. */
  removeLongest() {
    const { longest } = this;
    const index = this.#entries.findIndex(({ text }, at) => at < this.#written && bytesIn(text) === longest);
    if (index < 0) return [];
    this.#written--;
    return this.#entries.splice(index, 1).map(({ message }) => message);
  }

  /** The connection was lost: nobody knows which messages arrived. */
  rewind() {
    this.#written = this.#longestForgotten = 0;
  }

  /** Whether a message was written to an earlier connection, and may not have arrived. */
  get hasUncertain() {
    return this.#entries.some(({ wasSent }, index) => wasSent && index >= this.#written);
  }

  /** The server answered a message: it will not be sent again. */
  answered(msgId) {
    const index = this.#entries.findIndex(({ message, wasSent }) => wasSent && message.msgId === msgId);
    if (index < 0) return;
    this.#entries.splice(index, 1);
    if (index < this.#written) this.#written--;
  }

  /** Removes and returns the messages for which `test` is true. */
  remove(test) {
    const [kept, removed] = [[], []];
    for (const entry of this.#entries) (test(entry.message) ? removed : kept).push(entry);
    this.#entries = kept;
    return removed.map(({ message }) => message);
  }
}

/**
 * This peer's own metadata, as JSON: with which it joins, and its updates on an open connection; without I/O.
 *
 * One update at a time is under way: the server answers it with an `error` that has its msgId, or with this peer's own
 * `peer-updated`, which has none but has the update's metadata, as it was written. The latest of the others waits. After a
 * loss nobody knows whether the server has the update.
 *
 * The answer to an update for which nobody waits any more may come while a later one is under way. The server answers each
 * update once, and those that it takes in their order; so a `peer-updated` is the answer to the oldest unanswered update
 * that has the same metadata.
 */
class OwnMetadata {
  #shown; // what others see, as far as this client knows
  #wanted; // for the next join
  #requested; // of the current attempt, or of the last one
  #joined; // of the last one that joined
  #accepted; // the latest that a server has taken, by a join or an update
  #underWay; // {metadata, message, resolve, reject, wasWritten}; without the functions if nobody waits for the outcome
  #next;
  #unanswered = []; // those that were written to this connection, oldest first; one that is under way is the last
  #updates = 0;

  constructor(metadata) {
    this.#shown = metadata;
    this.#wanted = this.#requested = this.#joined = this.#accepted = JSON.stringify(metadata);
  }

  get shown() {
    return this.#shown;
  }

  get requested() {
    return this.#requested;
  }

  /** An attempt to connect begins: returns with what it joins. */
  request() {
    return (this.#requested = this.#wanted);
  }

  /** The attempt joined, as a new peer. */
  join() {
    this.#joined = this.#accepted = this.#requested;
    this.#shown = JSON.parse(this.#requested);
  }

  /** Asks for the update again if a loss has left it uncertain. */
  repeat() {
    if (this.#wanted !== this.#accepted) this.#underWay = this.make(JSON.parse(this.#wanted));
  }

  /** Makes an update, which is not asked for yet. It keeps the instance. */
  make(object) {
    const { [INSTANCE]: instance } = JSON.parse(this.#wanted);
    const metadata = JSON.stringify({ ...object, [INSTANCE]: instance });
    const msgId = `metadata ${++this.#updates}`;
    return { metadata, message: { type: "metadata", metadata: JSON.parse(metadata), msgId }, wasWritten: false };
  }

  /** @returns a promise of its outcome. */
  ask(update, isOpen) {
    this.#wanted = update.metadata;
    const outcome = new Promise((resolve, reject) => Object.assign(update, { resolve, reject }));
    if (!isOpen) update.reject(notUpdated("unconfirmed", "there is no connection: the next one asks for this metadata"));
    else if (this.#underWay) {
      this.#next?.reject(notUpdated("replaced", "a later update took its place"));
      this.#next = update;
    } else this.#underWay = update;
    return outcome;
  }

  /** The message to write to the connection now; undefined without one. */
  write() {
    if (!this.#underWay || this.#underWay.wasWritten) return undefined;
    this.#underWay.wasWritten = true;
    this.#unanswered.push(this.#underWay);
    if (this.#unanswered.length > MAX_UNANSWERED) this.#unanswered.shift();
    return this.#underWay.message;
  }

  /** What the server says about this peer. */
  updated(metadata) {
    this.#shown = metadata;
    const received = JSON.stringify(metadata);
    const index = this.#unanswered.findIndex((update) => asReceived(update.metadata) === received);
    const update = this.#unanswered.splice(0, index + 1).at(-1); // Those before it will not be taken any more.
    if (update) {
      this.#accepted = update.metadata;
      this.#complete(update)?.resolve();
    } else if (received === asReceived(this.#wanted)) this.#accepted = this.#wanted; // An answer of an earlier connection.
  }

  /** Whether an update waits for its answer. */
  get isWaiting() {
    return this.#underWay?.wasWritten === true;
  }

  /** Whether an error answers an update. */
  isAnsweredBy(msgId) {
    return this.#unanswered.some(({ message }) => message.msgId === msgId);
  }

  /** An update was refused; returns whether somebody waits for its outcome. */
  refuse(msgId, code, message) {
    const index = this.#unanswered.findIndex((update) => update.message.msgId === msgId);
    const waiting = this.#complete(...this.#unanswered.splice(index, 1));
    // Otherwise it is that of a later update. The server may still take an earlier one.
    if (!this.#underWay) this.#wanted = this.#unanswered.at(-1)?.metadata ?? this.#accepted;
    waiting?.reject(notUpdated(code, message));
    return waiting !== undefined;
  }

  /** The server has not answered. */
  late() {
    if (this.#underWay) this.#complete(this.#underWay)?.reject(notUpdated("unconfirmed", "the server has not answered in time"));
  }

  /** The longest update that the server has not answered: its size in bytes and its msgId. */
  get longest() {
    const sizes = this.#unanswered.map(({ message }) => ({ size: bytesIn(JSON.stringify(message)), msgId: message.msgId }));
    return sizes.reduce((longest, other) => (other.size > longest.size ? other : longest), { size: 0 });
  }

  /** The connection was lost. */
  lose() {
    this.#end("unconfirmed", "the connection was lost: the next one asks for this metadata");
    this.#unanswered = [];
  }

  leave() {
    this.#end("dropped", "this peer left");
  }

  /** Whether the next attempt differs from the last join. */
  get isRevertible() {
    return this.#wanted !== this.#joined;
  }

  /** The server does not take what is wanted: goes back to the last join's. */
  revert() {
    this.#wanted = this.#joined;
  }

  /** An update has an outcome: returns who waits for that; undefined if nobody does. */
  #complete(update) {
    if (update === this.#underWay) this.#advance();
    const { resolve, reject } = update;
    update.resolve = update.reject = undefined;
    return resolve && { resolve, reject };
  }

  #advance() {
    const ended = this.#underWay;
    [this.#underWay, this.#next] = [this.#next, undefined];
    return ended;
  }

  #end(code, message) {
    for (const update of [this.#advance(), this.#advance()]) update?.reject?.(notUpdated(code, message));
  }
}

const notUpdated = (code, message) => Object.assign(new Error(`the metadata was not updated: ${message}`), { code });

// ---- Connecting again ----

/** The status of a refused handshake: the package `ws` has it in its error, browsers do not report it. */
function statusOf(failure) {
  const [, status] = /^Unexpected server response: (\d{3})$/.exec(failure) ?? [];
  return status && Number(status);
}

/**
 * Asks a server why it refuses connections, because browsers hide the status of a failed handshake.
 *
 * @param url - of the attempt, with its query and without the session.
 * @returns a promise of {status, reason, retryAfter?}; of undefined if the server would accept the connection, or if the
 *   answer is not that of a signaling server: a proxy in between may be wrong for a moment.
 */
async function askWhy(url, token, signal) {
  const checked = new URL(url);
  checked.protocol = checked.protocol.replace("ws", "http");
  // To its own server a page sends its origin with an upgrade only.
  checked.search += `&check=${encodeURIComponent(globalThis.location?.origin ?? "")}`;
  const limit = new AbortController();
  const stop = () => limit.abort();
  signal.addEventListener("abort", stop, { once: true });
  const timer = setTimeout(stop, MS.check);
  try {
    const response = await fetch(checked, {
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      signal: limit.signal,
    });
    const { status, reason, retryAfter } = JSON.parse(await textOf(response.body));
    if (status !== response.status || status < 400 || !isText(reason)) return undefined;
    return { status, reason: reason.slice(0, MAX_REASON), ...(isSeconds(retryAfter) && { retryAfter }) };
  } catch {
    return undefined;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    limit.abort(); // Nothing more of a long body is read.
  }
}

/** The text of a body; empty if it is too long. */
async function textOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  for (let text = ""; text.length < MAX_CHECK; ) {
    const { done, value } = await reader.read();
    if (done) return text;
    text += decoder.decode(value, { stream: true });
  }
  return "";
}

// The states of `Retry`. Each event leads to a decision, and so to a state:
//
// | in             | event                                                              | decision  | next   |
// |----------------|--------------------------------------------------------------------|-----------|--------|
// | TRYING         | `opened`: the peer list has arrived                                |           | OPEN   |
// | TRYING, OPEN   | `lost`, by the end of this peer's stay or the tenth first failure  | `end`     | ENDED  |
// | TRYING         | `lost` without a reason, and the server was not asked for 5 min    | `ask`     | ASKING |
// | TRYING, OPEN   | `lost`, refused for a token or metadata, and there is another      | `connect` | TRYING |
// | TRYING, OPEN   | `lost`, refused for good, or the page wants no other connection    | `end`     | ENDED  |
// | TRYING, OPEN   | `lost` otherwise                                                   | `wait`    | PAUSED |
// | ASKING         | `answered`: as after `lost`, but the server is not asked again     |           |        |
// | ASKING, PAUSED | `woken`, and no `retryAfter` of the server is left                 | true      |        |
// | any            | `tries`: the pause is over, or the network is back                 |           | TRYING |
const TRYING = "trying"; // an attempt is being made: from the token function to the peer list
const OPEN = "open";
const ASKING = "asking"; // the server is asked why an attempt failed
const PAUSED = "paused"; // the next attempt comes later
const ENDED = "ended";

/**
 * Decides what follows when a connection was lost or refused; without I/O.
 *
 * A decision has a `reason` for a person, and `next`:
 * - `ask`: ask the server why, and pass the answer to `answered`; with `retryInMs` if another attempt follows in any case
 * - `connect`: at once, with another token, or with the former metadata if `isReverted`
 * - `wait`: connect again in `retryInMs`
 * - `end`: for good
 *
 * It has a `refusal` if the server refuses connections, and that is to be reported.
 */
class Retry {
  #first; // pause, in milliseconds
  #most;
  #reconnects;
  #isRenewable; // whether there may be another token
  #hasOpened = false;
  #state = TRYING;
  #since; // when the state began
  #loss; // while ASKING

  #isServerThere = false; // whether it has accepted a connection, or said why not now: its address is right
  #attempts = 0; // that failed in a row, and the loss before them
  #askedAt = -Infinity; // when the server was asked why in this row
  #retryAfterMs = 0; // as the server said in this row
  #notBefore = 0; // when that is over
  #hasExpired = false; // whether the token of a connection did, and none has lasted since
  #wasAskedAnew = false; // whether the token was asked for again because it was refused

  constructor(backoff, reconnects, isRenewable) {
    const { first = 500, most = 30_000 } = backoff;
    const isPause = (ms) => typeof ms === "number" && ms > 0;
    need(isObject(backoff) && isPause(first) && isPause(most), "`backoff` has to be {first, most} in milliseconds, above 0");
    this.#first = first;
    this.#most = Math.min(most, MAX_TIMER_MS);
    this.#reconnects = reconnects;
    this.#isRenewable = isRenewable;
  }

  /** An attempt begins. */
  tries() {
    this.#enter(TRYING);
  }

  /** The handshake succeeded, so the address and the token are right. */
  accepted() {
    this.#isServerThere = true;
    this.#wasAskedAnew = false;
    this.#retryAfterMs = 0;
    this.#askedAt = -Infinity;
  }

  opened() {
    this.#hasOpened = true;
    this.#enter(OPEN);
  }

  /** The network may be back; returns whether the next attempt is to be made now. */
  woken() {
    this.#attempts = 0;
    this.#askedAt = -Infinity;
    const isPausing = this.#state === PAUSED || (this.#state === ASKING && this.#reconnects && !this.#loss.refusal);
    return isPausing && performance.now() >= this.#notBefore;
  }

  /**
   * The connection, or the attempt to make one, has ended.
   *
   * @param loss - `code` and `reason`; `refusal`, as far as the answer of the server is known; and `isUnexplained`: whether
   *   there may be an answer that is hidden.
   * @param isRevertible - whether the next attempt could be made with the metadata of an earlier one.
   */
  lost(loss, isRevertible) {
    const lastedMs = this.#state === OPEN ? performance.now() - this.#since : 0;
    if (lastedMs >= MS.stable) {
      this.#attempts = 0;
      this.#hasExpired = false;
    }
    const { code, reason } = loss;
    if (DISMISSALS.has(code)) return this.#refused({ status: code, reason: reason.slice(0, MAX_REASON) }, loss);
    if (code === TOKEN_EXPIRED && this.#isRefusal(lastedMs)) {
      this.#attempts = 0;
      return this.#refused({ status: 401, reason: "the token has expired" }, loss);
    }
    this.#attempts++;
    if (!loss.refusal && !this.#isServerThere && this.#attempts >= MAX_FIRST_ATTEMPTS) {
      const why = `no connection in ${MAX_FIRST_ATTEMPTS} attempts: is the server there, and is its address right?`;
      return this.#end(`${why} (${reason})`);
    }
    if (loss.isUnexplained && performance.now() - this.#askedAt >= MS.checkAgain) return this.#ask(loss);
    return loss.refusal ? this.#refused(loss.refusal, loss, isRevertible) : this.#retryLater(loss);
  }

  /** The server was asked why. Without an answer, the next attempt comes as late as without the question. */
  answered(answer, isRevertible) {
    const loss = this.#loss;
    const refusal = answer ?? loss.refusal;
    if (refusal) return this.#refused(refusal, loss, isRevertible);
    return this.#retryLater(loss, Math.max(0, loss.retryInMs - (performance.now() - this.#since)));
  }

  #enter(state) {
    this.#state = state;
    this.#since = performance.now();
  }

  #ask(loss) {
    this.#enter(ASKING);
    this.#askedAt = this.#since;
    this.#retryAfterMs = 0; // It will say that again.
    const retryInMs = this.#pauseMs(loss.code);
    this.#loss = { ...loss, retryInMs };
    return { next: "ask", reason: loss.reason, ...(this.#reconnects && !loss.refusal && { retryInMs }) };
  }

  #refused(refusal, { code }, isRevertible) {
    const { status, reason, retryAfter = 0 } = refusal;
    if (this.#reconnects && isRevertible && OF_THE_URL.includes(status)) return this.#connect({ reason, isReverted: true });
    if (UNAUTHORIZED.includes(status) && this.#mayRenew && !this.#wasAskedAnew) {
      this.#wasAskedAnew = true;
      return this.#connect({ reason });
    }
    const isFinal = DISMISSALS.has(status) || (status >= 400 && status < 500 && !TEMPORARY.includes(status));
    if (isFinal || !this.#reconnects) return this.#end(reason, refusal);
    this.#isServerThere = true;
    this.#retryAfterMs = Math.min(MS.mostRetryAfter, retryAfter * 1000);
    this.#notBefore = performance.now() + this.#retryAfterMs;
    return this.#pause({ reason, retryInMs: this.#pauseMs(code), refusal });
  }

  #retryLater({ code, reason }, retryInMs = this.#pauseMs(code)) {
    return this.#reconnects ? this.#pause({ reason, retryInMs }) : this.#end(reason);
  }

  #connect(decision) {
    this.#enter(TRYING);
    this.#askedAt = -Infinity; // The attempt may be refused for another reason.
    return { next: "connect", ...decision };
  }

  #pause(decision) {
    this.#enter(PAUSED);
    return { next: "wait", ...decision };
  }

  #end(reason, refusal) {
    this.#enter(ENDED);
    return { next: "end", reason, refusal };
  }

  /** Whether an expired token counts as refused, and not as a loss, after which another one is asked for with backoff. */
  #isRefusal(lastedMs) {
    const isTooSoon = lastedMs < MS.expiry || this.#hasExpired;
    this.#hasExpired = true;
    return !isTooSoon || !this.#mayRenew;
  }

  /** Whether another token may be presented: without a connection so far, that is no reconnect. */
  get #mayRenew() {
    return this.#isRenewable && (this.#reconnects || !this.#hasOpened);
  }

  /** Milliseconds to the next attempt. */
  #pauseMs(code) {
    const backoffMs = this.#backoffMs(code);
    // Clients that were told the same time do not all come back at the same moment.
    return this.#retryAfterMs ? Math.max(backoffMs, this.#retryAfterMs + Math.random() * backoffMs) : backoffMs;
  }

  #backoffMs(code) {
    const most = this.#most;
    const span = Math.min(most, this.#first * 2 ** Math.max(0, this.#attempts - 1));
    // A server that stops closes all connections at once: spread the reconnects.
    if (code === 1001 || code === 1012) return Math.random() * Math.min(most, Math.max(span, this.#first * 4));
    if (code === 1008) return less(most);
    return less(code === 1013 ? Math.max(span, most / 4) : span);
  }
}

// ---- Sealed payloads ----

/** The topic that a URL names, as it is, not percent-encoded. */
function topicOf(url) {
  try {
    return decodeURIComponent(new URL(url).pathname.split("/").at(-1));
  } catch {
    throw new TypeError("the topic in the URL is not percent-encoded UTF-8");
  }
}

/** The size of a message once its payload is sealed, in bytes. */
function sealedSize(message, number, json) {
  const data = Math.ceil(((bytesIn(json) + SEAL_BYTES) * 4) / 3); // base64
  return bytesIn(JSON.stringify({ ...message, payload: { sealed: 1, number, data: "" } })) + data;
}

/**
 * Prepares to seal and open payloads.
 *
 * @returns a promise of a `Sealing`.
 * @throws if there is no such secret or no cryptography here.
 */
function sealingOf(secret, topic) {
  if (!isText(secret)) throw new TypeError("the secret is no string");
  if (/\p{Surrogate}/u.test(secret)) throw new TypeError("the secret is not Unicode: it has a lone surrogate");
  if (bytesIn(secret) < MIN_SECRET_BYTES) {
    const how = "btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(32))))";
    throw new TypeError(`the secret is shorter than ${MIN_SECRET_BYTES} bytes; make one with: ${how}`);
  }
  if (!globalThis.crypto?.subtle) {
    throw new Error("a secret needs crypto.subtle, which browsers have on https: pages and on localhost only");
  }
  return import("./sealing.js").then(({ Sealing }) => Sealing.create(secret, topic));
}

// ---- One peer in a topic ----

/**
 * What to connect to, and with what.
 *
 * @returns `address`, the URL without metadata and resume token, and `shown`, the metadata.
 */
function addressed(url, metadata) {
  // A `URL` of another frame is no instance of this one's.
  const given = isText(url) ? url : url?.href;
  need(isText(given) && given, "`join` needs the URL of a topic");
  const made = new URL(given, globalThis.location?.href);
  made.protocol = made.protocol.replace("http", "ws");
  need(/^wss?:$/.test(made.protocol), "the URL of a topic has to begin with ws:, wss:, http: or https:");
  made.hash = "";
  const inUrl = made.searchParams.has("metadata") ? parsed(made.searchParams.get("metadata")) : {};
  need(isObject(inUrl), "the metadata in the URL has to be a JSON object");
  need(isObject(metadata), "`metadata` has to be an object");
  made.searchParams.delete("metadata");
  return { address: made.href, shown: { ...inUrl, ...metadata, [INSTANCE]: random() } };
}

export function join(url, options) {
  return new Signaling(url, options);
}

export class Signaling extends EventTarget {
  #url; // without metadata
  #own; // metadata
  #updateTimer; // of the update that is under way
  #maxMessageBytes;
  #retry;
  #state = "connecting";
  #selfId = "";
  #formerIds = new Set();
  #peers = new Map();
  #peersSize = 0; // in characters
  #iceServers = [];
  #features = new Set();
  #ready;
  #readyResolvers; // {resolve, reject} of `ready`
  #listening = new AbortController();

  #WebSocket;
  #socket; // the current one
  #isAccepted = false; // whether its handshake succeeded
  #isWelcomed = false; // whether it belongs to a session
  #isListed = false; // whether a list has ever arrived
  #abandoned = new Set(); // sockets that seem dead
  #timer; // of the current state
  #step = new AbortController(); // of what the current state waits for besides: a token or a diagnosis

  #credential;
  #presented; // the token of the current attempt
  #renewal;

  #resumeToken;
  #seen = 0;
  #outbox = new Outbox();
  #messages = 0;
  #fences = 0;
  #pendingFence = 0; // the number of the fence that has not returned; 0 without one
  #catchingUp = false; // whether missed messages may still arrive
  #awaitsEcho = false; // whether the server has to send something soon
  #lastNumbers = new Map(); // peer id -> the number of the last message from it

  #sealing; // a promise of it; undefined without a secret
  #incoming = []; // of {react, size}: what the connection brought and is not processed yet, in order
  #incomingSize = 0; // of these

  constructor(url, options = {}) {
    super();
    need(isObject(options), "the options of `join` have to be an object");
    const { signal, token, WebSocket = globalThis.WebSocket } = options;
    const maxMessageBytes = options.maxMessageBytes ?? MAX_MESSAGE_BYTES;
    need(typeof WebSocket === "function", "There is no WebSocket here: give `join` the option WebSocket, for example of the package ws.");
    need(signal === undefined || signal === null || typeof signal.aborted === "boolean", "`signal` has to be an AbortSignal");
    need(maxMessageBytes > 0 && typeof maxMessageBytes === "number", "`maxMessageBytes` has to be a positive number");
    this.#WebSocket = WebSocket;
    const { address, shown } = addressed(url, options.metadata ?? {});
    this.#url = address;
    this.#own = new OwnMetadata(shown);
    this.#maxMessageBytes = maxMessageBytes;
    this.#credential = new Credential(token, this.#url);
    this.#retry = new Retry(options.backoff ?? {}, options.reconnect ?? true, this.#credential.isRenewable);
    this.#renewal = new Renewal(
      this.#credential,
      (message) => this.#socket.send(JSON.stringify(message)),
      (message) => emit(this, "error", { type: "error", code: "invalid_token", message }),
    );
    if (options.secret !== undefined) this.#useSecret(options.secret);
    this.#ready = new Promise((resolve, reject) => (this.#readyResolvers = { resolve, reject }));
    this.#ready.catch(() => {}); // An application that does not wait for it gets no error.
    if (signal?.aborted) {
      this.#end(undefined, signal.reason);
      return;
    }
    this.#connect();
    const listening = { signal: this.#listening.signal };
    signal?.addEventListener("abort", () => this.#leave(signal.reason), listening);
    for (const type of ["online", "pageshow"]) globalThis.addEventListener?.(type, () => this.#wake(), listening);
    globalThis.addEventListener?.("pagehide", ({ persisted }) => persisted && this.#pause(), listening);
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.#wake(), listening);
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

  get metadata() {
    return this.#own.shown;
  }

  get features() {
    return this.#features;
  }

  get ready() {
    return this.#ready;
  }

  send(type, to, payload, msgId = `~${++this.#messages}`) {
    const message = { type, to, payload, msgId };
    const text = JSON.stringify(message);
    const json = this.#sealing && (JSON.stringify(payload) ?? "");
    const size = this.#sealing ? sealedSize(message, this.#outbox.next, json) : bytesIn(text);
    const open = this.#isConnected;
    const isTooLarge = size > this.#maxMessageBytes;
    const isFull = this.#outbox.size >= (open ? MAX_UNCONFIRMED : MAX_WAITING);
    const isStuck = open && this.#socket.bufferedAmount > MAX_BUFFERED_BYTES;
    if (isTooLarge || isFull || isStuck || this.#state === "closed") {
      const why = isTooLarge ? `a message may have at most ${this.#maxMessageBytes} bytes` : undefined;
      queueMicrotask(() => this.#reportUnsent(isTooLarge ? "too_large" : "dropped", [message], why));
      return msgId;
    }
    if (this.#sealing) this.#outbox.addUnsealed(message, json);
    else this.#outbox.add(message, text);
    if (open) this.#flush();
    return msgId;
  }

  updateMetadata(metadata) {
    const outcome = this.#update(metadata);
    outcome.catch(() => {}); // An application that does not wait for it gets no error.
    return outcome;
  }

  leave() {
    this.#leave(new DOMException("left the topic", "AbortError"));
  }

  /** Whether messages can be written: a listener of `refused` may send while the state is that of the lost connection. */
  get #isConnected() {
    return this.#state === "open" && this.#socket !== undefined;
  }

  // -- The connection --

  /** Begins another step of the current state, and ends those before. */
  #begin() {
    clearTimeout(this.#timer);
    this.#step.abort();
    this.#step = new AbortController();
    return this.#step.signal;
  }

  /** Makes an attempt. Without a token function it begins at once, and throws what the socket's constructor throws. */
  #connect(detail) {
    const signal = this.#begin();
    this.#retry.tries();
    this.#change("connecting", detail);
    if (signal.aborted) return; // A listener left.
    if (this.#credential.isRenewable) this.#askAndOpen(signal);
    else this.#open(this.#credential.fixed);
  }

  async #askAndOpen(signal) {
    let token;
    try {
      token = await this.#credential.ask(signal);
    } catch (error) {
      if (!signal.aborted) this.#fail({ reason: withoutToken(error) });
      return;
    }
    if (!signal.aborted) this.#tryTo(() => this.#open(token));
  }

  #tryTo(connect) {
    try {
      connect();
    } catch (error) {
      this.#fail({ reason: messageOf(error) });
    }
  }

  #open(token) {
    const url = this.#attempt(this.#own.request());
    if (this.#resumeToken) url.search += `&resume=${encodeURIComponent(this.#resumeToken)}&seen=${this.#seen}`;
    // Pages cannot set headers. Subprotocols work in programs as well.
    const protocols = token ? [["signaling", `signaling.bearer.${token}`]] : [];
    const socket = new this.#WebSocket(url.href, ...protocols);
    this.#socket = socket;
    this.#presented = token;
    this.#isAccepted = this.#isWelcomed = false;
    const isCurrent = () => this.#socket === socket;
    const ifCurrent = (react) => (event) => {
      if (isCurrent()) this.#processInOrder(() => isCurrent() && react(event), event.data?.length ?? event.data?.size);
    };
    socket.addEventListener("open", ifCurrent(() => this.#accept()));
    socket.addEventListener("message", ifCurrent(({ data }) => this.#receive(data)));
    let failure;
    // Without a listener, an error ends a program that runs in Node with the package `ws`.
    socket.addEventListener("error", ({ message }) => (failure = message));
    socket.addEventListener("close", ifCurrent(({ code, reason }) => this.#lose(code, reason, failure)));
    socket.addEventListener("close", () => this.#abandoned.delete(socket));
    this.#timer = setTimeout(() => this.#abandon("the server did not answer"), MS.opening);
  }

  /** The URL of an attempt, without the session. */
  #attempt(metadata) {
    const url = new URL(this.#url);
    url.search += `${url.search ? "&" : "?"}metadata=${encodeURIComponent(metadata)}`;
    return url;
  }

  #accept() {
    this.#isAccepted = true;
    this.#retry.accepted();
  }

  /** Stops using a connection that seems dead. */
  #abandon(reason) {
    // A close frame that arrived after all would end the session that the next connection resumes.
    if (this.#socket.readyState === CONNECTING) this.#socket.close();
    else this.#abandoned.add(this.#socket);
    const [oldest] = this.#abandoned;
    if (this.#abandoned.size > MAX_ABANDONED) {
      this.#abandoned.delete(oldest);
      oldest.close();
    }
    this.#lose(1006, reason);
  }

  #closeAbandoned() {
    for (const socket of this.#abandoned) socket.close();
    this.#abandoned.clear();
  }

  /** The connection, or the attempt to make one, has ended. */
  #lose(code, reason, failure) {
    const lost = this.#state === "open" ? `the connection was lost (${code})` : `no connection (${code})`;
    this.#socket = undefined;
    for (const { size } of this.#incoming.splice(1)) this.#incomingSize -= size; // The first one is being processed.
    this.#renewal.stop();
    clearTimeout(this.#updateTimer);
    if (code === MESSAGE_TOO_BIG) this.#dropLongest();
    this.#own.lose();
    this.#outbox.rewind();
    this.#awaitsEcho = this.#catchingUp = false;
    this.#pendingFence = 0;
    const status = statusOf(failure);
    const refusal = status && { status, reason: `the server refuses (HTTP ${status})` };
    const isUnexplained = code === 1006 && !this.#isAccepted;
    this.#fail({ reason: reason || DISMISSALS.get(code) || failure || lost, code, refusal, isUnexplained });
  }

  /** A message was too long for the server: the longest one that is not confirmed, which must not be repeated. */
  #dropLongest() {
    const { size, msgId } = this.#own.longest;
    const why = "the server takes no such long message";
    let refused = [];
    if (this.#outbox.longest >= size) refused = this.#outbox.removeLongest();
    else if (!this.#own.refuse(msgId, "too_large", why)) refused = [{ msgId }];
    queueMicrotask(() => this.#reportUnsent("too_large", refused, why));
  }

  /** An attempt failed, or a connection was lost. */
  #fail(loss) {
    this.#follow(this.#retry.lost(loss, this.#own.isRevertible), loss);
  }

  /** Does what `#retry` decided about a loss. */
  #follow({ next, reason, retryInMs, refusal, isReverted }, loss) {
    const signal = this.#begin();
    const { code } = loss;
    if (isReverted) {
      this.#own.revert();
      emit(this, "error", { type: "error", code: "invalid_metadata", message: reason });
    } else if (refusal) emit(this, "refused", refusal);
    if (signal.aborted) return; // A listener left.
    if (next === "ask") this.#ask(loss, retryInMs, signal);
    else if (next === "connect") this.#tryTo(() => this.#connect({ reason, code }));
    else if (next === "wait") {
      this.#timer = setTimeout(() => this.#tryTo(() => this.#connect()), retryInMs);
      // Otherwise it was reported before the server was asked.
      if (refusal || this.#state !== "waiting") this.#change("waiting", { reason, code, retryInMs });
    } else this.#end(reason, refusal && Object.assign(new Error(reason), { status: refusal.status }), code);
  }

  /** Asks the server why it refuses connections. */
  async #ask(loss, retryInMs, signal) {
    const { reason, code } = loss;
    if (retryInMs !== undefined) this.#change("waiting", { reason, code, retryInMs });
    if (signal.aborted) return; // A listener left.
    const answer = await askWhy(this.#attempt(this.#own.requested), this.#presented, signal);
    if (!signal.aborted) this.#follow(this.#retry.answered(answer, this.#own.isRevertible), loss);
  }

  /** The network may be back, or a connection may have been lost unnoticed. */
  #wake() {
    const isDue = this.#retry.woken();
    if (this.#isConnected) this.#fence();
    else if (isDue) this.#tryTo(() => this.#connect());
  }

  /**
   * The user went to another page, and the browser keeps this one for a way back, together with its connection, whose pings
   * it answers itself: other peers would call in vain.
   */
  #pause() {
    if (!this.#socket) return;
    this.#socket.close(1000);
    this.#closeAbandoned();
    this.#lose(1000, "the page was left");
  }

  #leave(reason) {
    if (this.#state === "closed") return;
    this.#socket?.close(1000);
    this.#end(undefined, reason);
  }

  #end(why, rejection = new Error(why), code = undefined) {
    this.#begin();
    this.#renewal.stop();
    clearTimeout(this.#updateTimer);
    this.#own.leave();
    this.#socket = undefined;
    this.#closeAbandoned();
    this.#listening.abort();
    this.#readyResolvers.reject(rejection);
    this.#change("closed", { reason: why, code });
    this.#reportUnsent("dropped", this.#outbox.remove(() => true));
  }

  #change(state, detail) {
    if (state === this.#state && state === "open") return;
    this.#state = state;
    emit(this, "statechange", { state, ...detail });
  }

  // -- Sending --

  #flush() {
    if (this.#catchingUp) return;
    for (const { entry, json } of this.#outbox.takeUnsealed()) this.#sealEntry(entry, json, this.#selfId);
    this.#outbox.write((entry) => {
      this.#socket.send(entry.text);
      if (entry.wasSent) return;
      entry.wasSent = true;
      emit(this, "sent", entry.message);
    });
    if (this.#state !== "open") return; // A listener left.
    if (!this.#resumeToken) this.#outbox.forget();
    else if (!this.#pendingFence && this.#outbox.unconfirmed) this.#fence();
  }

  /** Sends a message to this peer itself: once it returns, the server has processed all before it. */
  #fence() {
    this.#pendingFence = ++this.#fences;
    const msgId = `fence ${this.#pendingFence} ${this.#outbox.unconfirmed}`;
    this.#socket.send(JSON.stringify({ type: "ice-candidate", to: this.#selfId, msgId }));
    if (!this.#awaitsEcho) this.#watch(MS.echo, () => this.#abandon("the server is silent"));
    this.#awaitsEcho = true;
  }

  #fenceReturned(fence, number) {
    this.#outbox.confirm(number);
    if (fence !== this.#pendingFence) return;
    this.#pendingFence = 0;
    this.#catchingUp = false;
    if (this.#state === "open") this.#flush();
  }

  async #update(metadata) {
    if (!isObject(metadata)) throw new TypeError("metadata has to be an object");
    const update = this.#own.make(metadata);
    const isOpen = this.#isConnected;
    if (bytesIn(JSON.stringify(update.message)) > this.#maxMessageBytes) {
      throw notUpdated("too_large", `a message may have at most ${this.#maxMessageBytes} bytes`);
    }
    if (this.#state === "closed") throw notUpdated("dropped", "this peer left");
    if (isOpen && !this.#features.has(METADATA_UPDATES)) {
      throw notUpdated("unsupported", "the server does not take updates (--metadata-updates)");
    }
    const outcome = this.#own.ask(update, isOpen);
    this.#writeUpdate();
    return outcome;
  }

  /** Writes the update that is under way, if that is not done yet. */
  #writeUpdate() {
    const message = this.#own.write();
    if (!message) return;
    this.#socket.send(JSON.stringify(message));
    this.#updateTimer = setTimeout(() => {
      this.#own.late();
      this.#writeUpdate();
    }, MS.update);
    emit(this, "sent", message);
  }

  /** An update was answered: the next one may be written, unless that was a late answer. */
  #updateAnswered() {
    if (this.#own.isWaiting) return;
    clearTimeout(this.#updateTimer);
    this.#writeUpdate();
  }

  #watch(ms, late) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(late, ms);
  }

  #reportUnsent(code, messages, message = "not sent") {
    for (const { msgId } of messages) emit(this, "error", { type: "error", code, message, msgId });
  }

  // -- Sealed payloads --

  #useSecret(secret) {
    this.#sealing = sealingOf(secret, topicOf(this.#url));
    this.#sealing.catch((error) => {
      if (this.#state === "closed") return;
      this.#socket?.close(1000);
      const why = `sealing.js could not be loaded beside signaling.js: ${messageOf(error)}`;
      this.#end(why);
    });
  }

  /** Seals the payload of a message, which is written when all before it are sealed as well. */
  async #sealEntry(entry, json, from) {
    const { number, message } = entry;
    const { type, to } = message;
    try {
      const sealing = await this.#sealing;
      entry.text = JSON.stringify({ ...message, payload: await sealing.seal({ type, from, to, number }, json) });
    } catch (error) {
      const unsealed = this.#outbox.remove((kept) => kept === message);
      this.#reportUnsent("not_sealed", unsealed, `the payload was not sealed: ${messageOf(error)}`);
    }
    if (this.#state === "open") this.#flush();
  }

  /** Opens the payload of a message, and passes it on if it is what its sender sealed for this peer. */
  async #unseal(sealed) {
    const sealing = await this.#sealing;
    const { message, reason } = await sealing.open(sealed, this.#selfId);
    if (this.#state === "closed") return;
    if (message) this.#deliver(message);
    else if (reason) emit(this, "tampered", { from: sealed.from, type: sealed.type, reason });
  }

  /**
   * Processes what a connection brings in its order, although a payload takes time to open.
   *
   * @param size - of a message, in characters or bytes.
   */
  #processInOrder(react, size = 0) {
    if (!this.#sealing) {
      react();
      return;
    }
    const { length } = this.#incoming;
    if (length >= MAX_INCOMING || (length && this.#incomingSize + size > MAX_INCOMING_SIZE)) {
      this.#abandon("the server sends faster than this side reads");
      return;
    }
    this.#incoming.push({ react, size });
    this.#incomingSize += size;
    if (!length) this.#processIncoming();
  }

  async #processIncoming() {
    for (; this.#incoming.length; this.#incomingSize -= this.#incoming.shift().size) {
      try {
        await this.#incoming[0].react();
      } catch (error) {
        // sealing.js is missing: the client has ended.
        if (this.#state !== "closed") queueMicrotask(() => { throw error; });
      }
    }
  }

  // -- Receiving --

  #receive(data) {
    this.#accept();
    const message = read(data);
    // An error before `welcome`, such as `topic_full`, belongs to no session.
    if (this.#isWelcomed || message?.type === "welcome") this.#seen++;
    if (this.#state === "open") {
      this.#awaitsEcho = false;
      this.#watch(MS.idle, () => this.#fence());
    }
    if (!message || !this.#isExpected(message) || this.#renewal.take(message)) return undefined;
    const fence = /^fence (\d+) (\d+)$/.exec(message.msgId)?.slice(1).map(Number);
    if (fence && (message.from === this.#selfId || message.type === "error")) this.#fenceReturned(...fence);
    else if (this.#sealing && RELAYED.includes(message.type)) return this.#unseal(message);
    else if (!this.#repeated(message)) this.#deliver(message);
    return undefined;
  }

  /** Whether a message may come now: a connection begins with a welcome, which only errors precede, and has one list. */
  #isExpected({ type }) {
    if (!this.#isWelcomed) return type === "welcome" || type === "error";
    return type !== "welcome" && (type !== "peer-list" || this.#state !== "open");
  }

  /** Whether a message is a duplicate: its sender repeats unconfirmed messages after a loss. */
  #repeated({ from, msgId }) {
    const [, number] = (this.#isThere(from) && /^~(\d+)$/.exec(msgId)) || [];
    if (!number) return false;
    if (Number(number) <= (this.#lastNumbers.get(from) ?? 0)) return true;
    this.#lastNumbers.set(from, Number(number));
    return false;
  }

  #deliver(message) {
    if (message.type === "welcome") this.#startSession(message);
    else if (message.type === "error") this.#outbox.answered(message.msgId);
    else if (message.type === "ice-servers") this.#iceServers = message.iceServers;
    emit(this, "received", message);
    if (this.#state === "closed") return; // A listener left.
    if (message.type === "welcome") this.#welcome(message);
    else if (message.type === "peer-list") this.#list(message);
    else if (message.type === "peer-joined") this.#joined(message);
    else if (message.type === "peer-updated") this.#updated(message);
    else if (message.type === "peer-left") this.#left(message);
    else if (message.type === "error" && this.#own.isAnsweredBy(message.msgId)) this.#updateRefused(message);
    else emit(this, message.type, message);
  }

  #isThere(id) {
    return this.#peers.has(id) || id === this.#selfId;
  }

  #startSession(message) {
    this.#isWelcomed = true;
    // Another id is another peer, whatever the server says: nothing may be repeated as that.
    if (message.selfId !== this.#selfId) delete message.resumed;
    const { selfId, features, iceServers, resume, resumed, expiresIn } = message;
    if (!resumed) {
      this.#own.join();
      this.#seen = 1;
      this.#lastNumbers.clear();
      if (this.#selfId) this.#formerIds.add(this.#selfId);
      const [oldest] = this.#formerIds;
      if (this.#formerIds.size > MAX_FORMER_IDS) this.#formerIds.delete(oldest);
    }
    this.#selfId = selfId;
    this.#resumeToken = resume?.token;
    this.#renewal.start(expiresIn);
    this.#iceServers = iceServers ?? [];
    this.#features = new Set(features);
    this.#closeAbandoned();
  }

  #welcome(message) {
    const another = !message.resumed && this.#formerIds.size > 0;
    const lost = another ? this.#outbox.remove(() => true) : [];
    emit(this, "welcome", message);
    this.#reportUnsent("dropped", lost);
  }

  #list(message) {
    const before = this.#isListed ? this.#peers : undefined;
    // The server may not have noticed yet that this peer lost its earlier connection.
    const others = message.peers.filter(({ id }) => !this.#formerIds.has(id) && id !== this.#selfId);
    this.#peers = new Map(others.map(({ id, metadata }) => [id, metadata]));
    this.#peersSize = [...this.#peers].reduce((sum, [id, metadata]) => sum + sizeOf(id, metadata), 0);
    for (const id of this.#lastNumbers.keys()) if (!this.#isThere(id)) this.#lastNumbers.delete(id);
    this.#isListed = true;
    this.#retry.opened();
    this.#watch(MS.idle, () => this.#fence());
    this.#reportUnsent("target_not_found", before ? this.#outbox.remove(({ to }) => !this.#isThere(to)) : []);
    if (this.#state === "closed") return; // A listener left.
    this.#catchingUp = this.#outbox.hasUncertain;
    if (this.#features.has(METADATA_UPDATES)) this.#own.repeat();
    this.#change("open");
    if (this.#state !== "open") return; // A listener left, as below.
    this.#readyResolvers.resolve();
    emit(this, "peer-list", message);
    if (this.#state !== "open") return;
    if (this.#catchingUp) this.#fence();
    this.#flush();
    this.#writeUpdate();
    if (before) this.#compare(before);
  }

  /** Reports the changes while this peer had no connection. */
  #compare(before) {
    const now = new Map(this.#peers);
    const isUpdated = ([id, metadata]) => before.has(id) && JSON.stringify(before.get(id)) !== JSON.stringify(metadata);
    const changes = [
      ...[...before.keys()].filter((id) => !now.has(id)).map((peerId) => ({ type: "peer-left", peerId })),
      ...[...now].filter(([id]) => !before.has(id)).map(([peerId, metadata]) => ({ type: "peer-joined", peerId, metadata })),
      ...[...now].filter(isUpdated).map(([peerId, metadata]) => ({ type: "peer-updated", peerId, metadata })),
    ];
    for (const change of changes) if (this.#state === "open") emit(this, change.type, change);
  }

  #joined(message) {
    const { peerId, metadata } = message;
    if (this.#isThere(peerId) || this.#formerIds.has(peerId)) return;
    const size = sizeOf(peerId, metadata);
    if (this.#peers.size >= MAX_PEERS || this.#peersSize + size > MAX_PEERS_SIZE) return;
    this.#peers.set(peerId, metadata);
    this.#peersSize += size;
    emit(this, "peer-joined", message);
  }

  #updated(message) {
    const { peerId } = message;
    if (peerId === this.#selfId) {
      this.#own.updated(message.metadata);
      this.#updateAnswered();
      if (this.#state === "closed") return; // A listener left.
    } else if (this.#peers.has(peerId)) {
      const others = this.#peersSize - sizeOf(peerId, this.#peers.get(peerId));
      if (others + sizeOf(peerId, message.metadata) > MAX_PEERS_SIZE) message.metadata = {};
      this.#peers.set(peerId, message.metadata);
      this.#peersSize = others + sizeOf(peerId, message.metadata);
    } else return;
    emit(this, "peer-updated", message);
  }

  #updateRefused(message) {
    const isAwaited = this.#own.refuse(message.msgId, message.code, message.message);
    this.#updateAnswered();
    if (!isAwaited) emit(this, "error", message);
  }

  #left(message) {
    const { peerId } = message;
    this.#lastNumbers.delete(peerId);
    this.#formerIds.delete(peerId);
    if (!this.#peers.has(peerId)) return;
    this.#peersSize -= sizeOf(peerId, this.#peers.get(peerId));
    this.#peers.delete(peerId);
    emit(this, "peer-left", message);
  }
}

// ---- A mesh of connections ----

/** Allows `most` actions at once, and one more every `ms`; an action may count as several. */
class Allowance {
  #most;
  #ms;
  #left;
  #at = performance.now();

  constructor(most, ms) {
    this.#most = this.#left = most;
    this.#ms = ms;
  }

  /** Whether so many more are allowed. */
  has(count = 1) {
    const now = performance.now();
    this.#left = Math.min(this.#most, this.#left + (now - this.#at) / this.#ms);
    this.#at = now;
    return this.#left >= count;
  }

  take(count = 1) {
    this.#left -= count;
  }
}

/** The random name of a client; undefined if its metadata has none. */
function instanceOf(metadata) {
  const instance = metadata?.[INSTANCE];
  return isText(instance) && instance ? instance : undefined;
}

/** The fingerprint of a connection's certificate, which never changes. */
function certificateOf(sdp) {
  return attribute(sdp, "fingerprint")?.toLowerCase();
}

/** The value of the first line `a=NAME:VALUE`. Line by line: a pattern over the whole text may take very long. */
function attribute(sdp, name) {
  const beginning = `a=${name}:`;
  const line = sdp.split(/\r\n?|\n/).find((candidate) => candidate.startsWith(beginning));
  return line?.slice(beginning.length).trim();
}

/** How many media sections a description has. */
function sectionsOf(sdp) {
  return sdp.split(/\r\n?|\n/).filter((line) => line.startsWith("m=")).length;
}

/** Another peer and the connection to it, with perfect negotiation (section 10.7 of the WebRTC specification). */
class Peer {
  #signaling;
  #on; // callbacks of the mesh: track, data, state, ended, error, rejected
  #closed = false;
  #timers = new Map();

  #mayOffer = false;
  #wanted = false; // whether a negotiation waits for `#mayOffer` or for the signaling
  #making = false;
  #ignoring = false;
  #settingAnswer = false;
  #applying = 0;
  #certificate; // the fingerprint of the other side's connection
  #unanswered = 0; // offers in a row
  #early = []; // candidates that came before their description
  #candidates = 0; // of the current ICE generation of the other side
  #fragment; // the ice-ufrag of that generation

  #sent = new Map(); // msgId -> {number, type, payload}, for `dropped`
  #waiting = []; // dropped messages, and those after them
  #numbers = 0;
  #lastOffer = 0;
  #drops = 0;
  #droppedAt = -Infinity;

  #unconnectedSince = performance.now(); // undefined while it is connected
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

  /** Of the other side's connection; undefined before its first description. */
  get certificate() {
    return this.#certificate;
  }

  /** Whether it has not been connected for so long that another peer may take its place. */
  get isOverdue() {
    return performance.now() - this.#unconnectedSince >= MS.connecting;
  }

  /**
   * The peer that joined later offers a channel; the other one waits for that for some time.
   *
   * @param atOnce - do not wait: this mesh is new, and both peers were in the topic before.
   */
  start(atOnce = false) {
    if (atOnce || this.polite || !this.channel) this.#permit();
    else this.#later("start", MS.firstOffer, () => this.#permit());
  }

  /** Starts a negotiation that had to wait. */
  proceed() {
    if (this.#wanted && !this.#applying && this.connection.signalingState === "stable") this.#negotiate();
  }

  /** The other peer came back with a new id. */
  bind(id) {
    this.id = id;
    this.metadata = this.#signaling.peers.get(id) ?? {};
    this.#cancel("grace");
    this.recover();
    this.proceed();
  }

  /** The signaling between the two peers starts again; messages in flight are lost. */
  recover() {
    const { connection } = this;
    this.#sent.clear();
    this.#waiting = [];
    this.#cancel("resend");
    if (!connection.remoteDescription) this.start();
    if (connection.signalingState === "have-local-offer") this.#offer();
    else if (connection.remoteDescription && connection.connectionState !== "connected") this.#repairIn(0);
  }

  /** The other peer left the topic: for good, or until it comes back with a new id while the connection goes on. */
  leftTopic() {
    if (this.connection.connectionState !== "connected") this.#on.ended(this);
    else this.#later("grace", MS.grace, () => this.#on.ended(this));
  }

  close() {
    this.#closed = true;
    for (const name of [...this.#timers.keys()]) this.#cancel(name);
    this.connection.close();
  }

  /** Applies new ICE servers. */
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

  /** Whether a description is for another connection than the one before. */
  isAnother(certificate) {
    return this.#certificate !== undefined && certificate !== undefined && certificate !== this.#certificate;
  }

  async applyDescription(description) {
    const { connection } = this;
    if (this.#applying >= MAX_DESCRIPTIONS) return;
    const offered = description.type === "offer";
    const ready = !this.#making && (connection.signalingState === "stable" || this.#settingAnswer);
    this.#ignoring = offered && !ready && !this.polite;
    if (this.#ignoring) {
      // The other side's mesh may be newer than this side's offer, and not have received it.
      if (!this.#making) this.#expectAnswer(MS.ignored);
      return;
    }
    // A second answer: the offer was repeated.
    if (!offered && (this.#settingAnswer || connection.signalingState !== "have-local-offer")) return;
    this.#cancel("start");
    this.#cancel("answer");
    this.#wanted = false; // If more has to be negotiated, the browser reports it again.
    this.#unanswered = 0;
    this.#certificate = certificateOf(description.sdp) ?? this.#certificate;
    this.#applying++;
    try {
      // Chromium 156 never gathers again if an offer is rolled back before the first candidate.
      const tooEarly = offered && !ready && !connection.remoteDescription;
      if (tooEarly) await Promise.race([this.#gathering, after(MS.gathering)]);
      this.#settingAnswer = !offered;
      await connection.setRemoteDescription(description);
      this.#settingAnswer = false;
      const fragment = attribute(description.sdp, "ice-ufrag");
      if (fragment !== this.#fragment) this.#candidates = 0;
      this.#fragment = fragment;
      for (const candidate of this.#early.splice(0)) this.addCandidate(candidate);
      if (offered) await this.#sendDescription();
      this.#mayOffer = true;
      if (connection.connectionState !== "connected" && !this.#timers.has("repair")) this.#repairIn(MS.repair);
    } catch (error) {
      // A late answer has no offer any more. Any other description would be rejected again by this connection.
      const isLate = !offered && error.name === "InvalidStateError";
      if (!this.#closed && (isLate || !this.#on.rejected(this, error))) this.#repairIn(MS.otherSide);
    } finally {
      this.#settingAnswer = false;
      this.#applying--;
    }
  }

  async addCandidate(candidate) {
    if (this.#ignoring || charactersOf(candidate) > MAX_CANDIDATE) return;
    if (!this.connection.remoteDescription) {
      if (this.#early.length < MAX_CANDIDATES) this.#early.push(candidate);
      return;
    }
    if (++this.#candidates > MAX_CANDIDATES) return;
    try {
      await this.connection.addIceCandidate(candidate);
    } catch {
      // It belongs to a description that was replaced; the new one has its own.
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
      await this.#sendDescription();
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

  async #sendDescription() {
    this.#gatheredWith = this.#signaling.iceServers;
    await this.connection.setLocalDescription();
    if (this.#closed) return;
    const { type, sdp } = this.connection.localDescription;
    this.#send(type, { type, sdp });
  }

  // -- Sending --

  #send(type, payload) {
    const entry = { number: ++this.#numbers, type, payload };
    if (type === "offer") {
      this.#lastOffer = entry.number;
      this.#waiting = this.#waiting.filter((waiting) => waiting.type !== "offer");
    }
    if (this.#waiting.length) this.#wait(entry);
    else this.#write(entry);
  }

  /** Keeps an entry for later, in order; if too many wait, only the last ones. */
  #wait(entry) {
    this.#waiting.push(entry);
    this.#waiting.sort((one, other) => one.number - other.number);
    if (this.#waiting.length > MAX_WAITING) this.#waiting.shift();
  }

  #write(entry) {
    this.#sent.set(this.#signaling.send(entry.type, this.id, entry.payload), entry);
    if (this.#sent.size > MAX_WAITING) this.#sent.delete(this.#sent.keys().next().value);
  }

  // -- The path --

  #observe() {
    const state = this.connection.connectionState;
    this.#unconnectedSince = state === "connected" ? undefined : (this.#unconnectedSince ?? performance.now());
    if (state === "connected") {
      this.#cancel("repair");
      this.#repairs = 0;
      this.#watchTransport();
    } else if (["disconnected", "failed"].includes(state)) {
      if (this.#timers.has("grace")) {
        this.#on.ended(this);
        return;
      }
      this.#repairIn(state === "failed" ? 0 : MS.disconnected);
    }
    this.#on.state(this);
  }

  /** Notices that the other side closed the connection, which closes the DTLS transport; a loss does not. */
  #watchTransport() {
    const transport = (this.connection.sctp ?? this.connection.getSenders()[0])?.transport;
    if (!transport || transport === this.#transport) return;
    this.#transport = transport;
    transport.addEventListener("statechange", () => {
      if (!this.#closed && transport.state === "closed") this.#on.ended(this);
    });
  }

  /** Restarts ICE, unless the path recovers or the other side restarts it first. */
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

export class Mesh extends EventTarget {
  #signaling;
  #configuration;
  #channel;
  #maxConnections;
  #peers = new Map();
  #tracks = new Map(); // track -> streams
  #listening = new AbortController();
  #renewed = false; // whether this peer has a new id that its connections do not use yet
  #allowance; // for connections to new peers
  #replacements; // for connections that replace others, so that a peer that restarts all the time takes nothing from new peers
  #allowances = new Map(); // id -> the same for one peer
  #sections = new Map(); // id -> an allowance for media sections of its descriptions
  #postponed = new Map(); // id -> since when it waits for a connection
  #crowded = false; // whether waiting peers come before new ones
  #ended = new Map(); // id -> {certificate, at} of the last connection that ended
  #timer; // for the next attempt for waiting peers

  constructor(signaling, options = {}) {
    super();
    // It may be of another copy of this module: the package has two, an ES module and CommonJS.
    need(isText(signaling?.selfId) && signaling.addEventListener, "a mesh needs what `join` returned");
    need(isObject(options), "the options of a mesh have to be an object");
    const { configuration = {}, channel = true, maxConnections = MAX_CONNECTIONS } = options;
    const iceServers = configuration?.iceServers ?? [];
    need(isObject(configuration) && Array.isArray(iceServers), "`configuration` has to be that of an RTCPeerConnection");
    need(typeof maxConnections === "number" && maxConnections >= 1, "`maxConnections` has to be a number from 1 up");
    if (!globalThis.RTCPeerConnection) throw new Error("There is no WebRTC here: RTCPeerConnection is missing.");
    this.#maxConnections = maxConnections;
    this.#allowance = new Allowance(2 * maxConnections, MS.begin);
    this.#replacements = new Allowance(2 * maxConnections, MS.begin);
    this.#signaling = signaling;
    this.#configuration = configuration;
    this.#channel = channel;
    const listening = { signal: this.#listening.signal };
    const on = (type, react) => signaling.addEventListener(type, ({ detail }) => react(detail), listening);
    on("welcome", (message) => this.#welcome(message));
    on("statechange", (detail) => this.#statechange(detail));
    const connectOnceListed = () => signaling.addEventListener("peer-list", () => this.#connectToAll(), { ...listening, once: true });
    connectOnceListed(); // Changes come as events.
    on("peer-joined", ({ peerId }) => this.#connectTo(peerId));
    on("peer-updated", ({ peerId, metadata }) => this.#update(peerId, metadata));
    on("peer-left", ({ peerId }) => this.#left(peerId));
    on("ice-servers", () => this.#configure());
    on("offer", (message) => this.#takeDescription(message));
    on("answer", (message) => this.#takeDescription(message));
    on("ice-candidate", ({ from, payload }) => this.#peers.get(from)?.addCandidate(payload));
    on("error", ({ msgId, code }) => this.#peers.forEach((peer) => peer.undelivered(msgId, code)));
    globalThis.addEventListener?.("pagehide", () => this.#closeAll(), listening);
    globalThis.addEventListener?.("pageshow", ({ persisted }) => persisted && connectOnceListed(), listening);
    // The application has to add its listeners first.
    queueMicrotask(() => signaling.state === "open" && this.#connectToAll(true));
  }

  get peers() {
    return this.#peers;
  }

  addTrack(track, ...streams) {
    // Otherwise each later connection would fail.
    need(isText(track?.kind), "`addTrack` needs a track");
    need(streams.every(isObject), "`addTrack` needs streams after the track");
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
        this.#report(peer.id, error); // It has not read earlier data; the other peers get this.
      }
    }
  }

  close() {
    this.#listening.abort();
    this.#closeAll();
  }

  get #isClosed() {
    return this.#listening.signal.aborted;
  }

  // -- The peers in the topic --

  #welcome({ resumed }) {
    this.#renewed = !resumed;
    this.#configure();
  }

  #statechange({ state, reason, code }) {
    // No reason means that this peer left. If the server is gone, the connections stay.
    if (state === "closed" && (!reason || DISMISSALS.has(code))) this.close();
    if (state !== "open") return;
    for (const peer of this.#peers.values()) {
      if (!this.#signaling.peers.has(peer.id)) continue; // It has left, or has a new id as well.
      if (this.#renewed) peer.recover();
      peer.proceed();
    }
    this.#renewed = false;
  }

  #connectToAll(atOnce) {
    if (this.#isClosed) return;
    for (const id of this.#signaling.peers.keys()) this.#connectTo(id, atOnce);
  }

  #connectTo(id, atOnce) {
    if (this.#peers.has(id) || this.#isClosed) return;
    const candidates = this.#sameInstance(this.#signaling.peers.get(id));
    const returned = candidates.find((peer) => this.#successor(peer) === id);
    if (returned) this.#bind(returned, id);
    else if (!candidates.length || performance.now() - this.#postponed.get(id) > MS.grace) this.#add(id)?.start(atOnce);
    else this.#postpone(id);
  }

  /** The connections of peers with the same instance in their metadata. */
  #sameInstance(metadata) {
    const instance = instanceOf(metadata);
    return instance ? [...this.#peers.values()].filter((peer) => instanceOf(peer.metadata) === instance) : [];
  }

  /**
   * The id with which a peer that left came back, by the instance in its metadata. Anybody can copy that: it does not count
   * while the peer is still there, or if several peers show it. The certificate in an offer is a better proof.
   */
  #successor(peer) {
    if (this.#signaling.peers.has(peer.id) || this.#sameInstance(peer.metadata).length !== 1) return undefined;
    let successor;
    for (const [id, metadata] of this.#signaling.peers) {
      if (this.#peers.has(id) || instanceOf(metadata) !== instanceOf(peer.metadata)) continue;
      if (successor) return undefined;
      successor = id;
    }
    return successor;
  }

  #bind(peer, id) {
    if (this.#isClosed) return; // By a listener.
    const former = peer.id;
    this.#postponed.delete(id);
    this.#peers.delete(former);
    this.#peers.set(id, peer);
    peer.bind(id);
    if (this.#signaling.peers.has(former)) this.#postpone(former); // It leaves soon, or is another peer.
  }

  #update(id, metadata) {
    const peer = this.#peers.get(id);
    if (!peer) return;
    peer.metadata = metadata;
    emit(this, "peer-updated", peer);
  }

  #left(id) {
    for (const known of [this.#allowances, this.#sections, this.#postponed, this.#ended]) known.delete(id);
    const peer = this.#peers.get(id);
    if (!peer) return;
    const successor = this.#successor(peer);
    if (successor) this.#bind(peer, successor);
    else peer.leftTopic();
  }

  // -- The number of connections --

  /** Makes a connection to a peer; undefined if that has to wait. */
  #add(id) {
    const isFull = this.#peers.size >= this.#maxConnections;
    const waits = this.#crowded && !this.#postponed.has(id);
    if (!isFull && !waits && this.#allows(id, this.#allowance)) return this.#begin(id);
    this.#crowded = true;
    const why = isFull ? `there are ${this.#maxConnections} already` : "too many were begun just now";
    return this.#postpone(id, `no connection: ${why}`);
  }

  /** Replaces a connection by a new one; undefined if that has to wait. */
  #replace(peer) {
    if (!this.#allows(peer.id, this.#replacements)) {
      this.#report(peer.id, new Error("no new connection: too many were begun just now"));
      return undefined;
    }
    this.#remove(peer);
    return this.#begin(peer.id);
  }

  #allows(id, allowance) {
    if (!this.#allowances.has(id)) this.#allowances.set(id, new Allowance(MAX_BEGUN, MS.beginAgain));
    const both = [this.#allowances.get(id), allowance];
    if (!both.every((one) => one.has())) return false;
    for (const one of both) one.take();
    return true;
  }

  #begin(id) {
    if (this.#isClosed) return undefined; // By a listener.
    let connection;
    try {
      connection = this.#connection(id);
    } catch (error) {
      return this.#postpone(id, error.message);
    }
    if (this.#isClosed) {
      connection.close();
      return undefined;
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
      // The server's ICE servers may be wrong, and many peers can be reached without them.
      const connection = new RTCPeerConnection(this.#configuration);
      this.#report(id, error);
      return connection;
    }
  }

  /** Tries again later; an event says why, the first time. */
  #postpone(id, why) {
    if (!this.#postponed.has(id)) {
      this.#postponed.set(id, performance.now());
      if (why) this.#report(id, new Error(why));
    }
    if (this.#isClosed) return undefined; // By a listener.
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#crowded = false;
      this.#makeRoom();
      for (const postponed of [...this.#postponed.keys()]) this.#connectTo(postponed);
    }, MS.begin);
    return undefined;
  }

  /** In a full mesh, a peer that is not connected loses its place to one that waits, and waits itself. */
  #makeRoom() {
    if (this.#peers.size < this.#maxConnections) return;
    const overdue = [...this.#peers.values()].find(({ isOverdue }) => isOverdue);
    if (!overdue) return;
    this.#remove(overdue);
    if (this.#signaling.peers.has(overdue.id) && !this.#isClosed) this.#postpone(overdue.id);
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

  // -- Messages from peers --

  #takeDescription({ type, from, payload }) {
    const sdp = payload?.sdp;
    if (!isText(sdp) || !this.#signaling.peers.has(from)) return;
    const sections = sectionsOf(sdp);
    if (sections > MAX_SECTIONS) {
      this.#report(from, new Error(`the ${type} has more than ${MAX_SECTIONS} media sections`));
      return;
    }
    if (!this.#sections.has(from)) this.#sections.set(from, new Allowance(MAX_NEGOTIATED, MS.section));
    const negotiated = this.#sections.get(from);
    if (!negotiated.has(sections)) {
      // The other side repeats an offer without an answer, and this side its own.
      this.#report(from, new Error(`the ${type} was ignored: too many media sections were negotiated just now`));
      return;
    }
    negotiated.take(sections);
    const certificate = certificateOf(sdp);
    let peer = this.#returned(from, certificate) ?? this.#peers.get(from);
    if (type === "offer" && certificate && certificate !== peer?.certificate && this.#justEnded(from, certificate)) {
      // It was in flight when the connection ended here: an answer would be for another connection.
      if (!peer) this.#add(from)?.start();
      return;
    }
    if (peer?.isAnother(certificate)) {
      // The other side made a new connection, so this side has to.
      peer = this.#replace(peer);
      if (type !== "offer") {
        peer?.start(true);
        return;
      }
    } else if (!peer && type === "offer" && certificate) peer = this.#add(from);
    peer?.applyDescription({ type, sdp });
  }

  #justEnded(id, certificate) {
    const ended = this.#ended.get(id);
    return ended?.certificate === certificate && performance.now() - ended.at < MS.inFlight;
  }

  /** The connection of a peer that has another id now, and proves its identity by its certificate. */
  #returned(id, certificate) {
    const candidates = certificate ? this.#sameInstance(this.#signaling.peers.get(id)) : [];
    const peer = candidates.find((known) => known.certificate === certificate);
    if (!peer || peer.id === id) return undefined;
    const other = this.#peers.get(id);
    if (other) this.#remove(other);
    this.#bind(peer, id);
    return peer;
  }

  /**
   * Makes a new connection after one that rejected a description. In Chromium, for example, this happens if both sides
   * offer at once and number the RTP header extensions differently.
   *
   * @returns whether there is a new connection.
   */
  #rejected(peer, error) {
    this.#report(peer.id, error);
    if (!this.#signaling.peers.has(peer.id)) return false;
    const replaced = this.#replace(peer);
    replaced?.start(true);
    return replaced !== undefined;
  }

  get #configured() {
    const own = this.#configuration.iceServers ?? [];
    return { ...this.#configuration, iceServers: [...this.#signaling.iceServers, ...own] };
  }

  #configure() {
    for (const peer of this.#peers.values()) peer.configure(this.#configured);
  }
}
