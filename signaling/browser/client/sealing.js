/**
 * Payloads that only peers with the same secret can read and write (docs/sealing-format.md). signaling.js loads this module if
 * `join` has a `secret`.
 *
 * The server is a stranger: it chooses the ids, and may drop, delay, repeat and exchange messages, or invent them. So a
 * payload is encrypted together with the type, the sender, the target and a number, and a number counts once. The
 * Python module sealing.py does the same; both are tested by tests/vectors/sealing.json.
 */

const VERSION = 1;
const LABEL = "twisted-signaling sealed 1\0";
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

// The ids of a server have 26 characters. The bound is for what is remembered of each.
const MAX_ID_LENGTH = 64;

// Senders whose last number is remembered.
const MAX_SENDERS = 16_384;

// Accepted messages of all senders that are recognised when they come again.
const MAX_RECENT = 4_096;

const UNSEALED = "it is not sealed";
const UNOPENED = "it cannot be opened: another secret, or it was changed on its way";
const REPEATED = "it came again, or out of order";
const FORGOTTEN = "its sender came too long ago";
const UNREADABLE = "it holds no JSON";

const LONE_SURROGATE = /\p{Surrogate}/u;

const utf8 = new TextEncoder();

/** Seals the payloads of one client, and opens those for it. */
export class Sealing {
  #key;
  #lastNumbers = new Map(); // id -> number; the sender that was heard last comes last
  #recent = new Map(); // number and id -> msgId
  #forgotten = ""; // the greatest id that was forgotten

  /**
   * @param secret - shared by the peers of the topic.
   * @param topic - its name, not percent-encoded.
   */
  static async create(secret, topic) {
    const material = await crypto.subtle.importKey("raw", utf8.encode(secret), "HKDF", false, ["deriveKey"]);
    const derivation = { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(), info: utf8.encode(LABEL + topic) };
    const cipher = { name: "AES-GCM", length: 256 };
    const made = new Sealing();
    made.#key = await crypto.subtle.deriveKey(derivation, material, cipher, false, ["encrypt", "decrypt"]);
    return made;
  }

  /**
   * Makes the payload for the wire.
   *
   * @param message - its `type`, `from`, `to` and `number`, which is greater than that of any earlier message of this client.
   * @param text - the payload as JSON; empty if there is none.
   * @param nonce - for tests; used once in the life of a secret.
   */
  async seal(message, text, nonce = crypto.getRandomValues(new Uint8Array(NONCE_BYTES))) {
    const sealed = await crypto.subtle.encrypt(cipherOf(message, nonce), this.#key, utf8.encode(text));
    const bytes = new Uint8Array(NONCE_BYTES + sealed.byteLength);
    bytes.set(nonce);
    bytes.set(new Uint8Array(sealed), NONCE_BYTES);
    return { sealed: VERSION, number: message.number, data: base64url(bytes) };
  }

  /**
   * Opens the payload of a message for the peer `to`. Wait for the outcome before you open the next message: they count in
   * their order.
   *
   * @returns the `message` with its payload opened; or the `reason` why it is not what its sender sealed for this peer, now;
   *   or neither, for a duplicate that the sender itself repeated after a loss.
   */
  async open(message, to) {
    const { from, msgId = "", payload } = message;
    const { number } = payload ?? {};
    const isSealed = payload?.sealed === VERSION && Number.isSafeInteger(number) && number > 0;
    if (!isSealed || typeof payload.data !== "string") return { reason: UNSEALED };
    const bytes = from.length <= MAX_ID_LENGTH && bytesOf(payload.data);
    if (!bytes || bytes.length < NONCE_BYTES + TAG_BYTES) return { reason: UNOPENED };
    let text;
    try {
      const cipher = cipherOf({ ...message, to, number }, bytes.subarray(0, NONCE_BYTES));
      text = await crypto.subtle.decrypt(cipher, this.#key, bytes.subarray(NONCE_BYTES));
    } catch {
      return { reason: UNOPENED };
    }
    const known = msgId.slice(0, MAX_ID_LENGTH);
    if (number <= (this.#lastNumbers.get(from) ?? 0)) {
      return this.#recent.get(`${number} ${from}`) === known ? {} : { reason: REPEATED };
    }
    if (!this.#lastNumbers.has(from) && from <= this.#forgotten) return { reason: FORGOTTEN };
    this.#remember(from, number, known);
    return opened(message, text);
  }

  #remember(from, number, msgId) {
    this.#lastNumbers.delete(from);
    this.#lastNumbers.set(from, number);
    if (this.#lastNumbers.size > MAX_SENDERS) {
      // A server gives a new peer a greater id than all before, so this refuses none but peers of long ago.
      const [oldest] = this.#lastNumbers.keys();
      this.#lastNumbers.delete(oldest);
      if (oldest > this.#forgotten) this.#forgotten = oldest;
    }
    this.#recent.set(`${number} ${from}`, msgId);
    if (this.#recent.size > MAX_RECENT) this.#recent.delete(this.#recent.keys().next().value);
  }
}

/** The message with the payload that `text` holds. */
function opened({ payload: _, ...message }, text) {
  if (!text.byteLength) return { message };
  try {
    const json = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(text);
    return { message: { ...message, payload: JSON.parse(json) } };
  } catch {
    return { reason: UNREADABLE };
  }
}

/** What a payload is encrypted with: the length of each part keeps one from reaching into the next. */
function cipherOf({ type, from, to, number }, nonce) {
  // It has no UTF-8: the encoder would make different ids the same.
  if (LONE_SURROGATE.test(`${from} ${to}`)) throw new TypeError("an id is not Unicode");
  const parts = [type, from, to, `${number}`].map((part) => utf8.encode(part));
  const additionalData = new Uint8Array(parts.reduce((length, part) => length + 4 + part.length, 0));
  let at = 0;
  for (const part of parts) {
    new DataView(additionalData.buffer).setUint32(at, part.length);
    additionalData.set(part, at + 4);
    at += 4 + part.length;
  }
  return { name: "AES-GCM", iv: nonce, additionalData };
}

function base64url(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The bytes of a text in base64url; undefined if it is none. */
function bytesOf(text) {
  if (!/^[\w-]*$/.test(text)) return undefined;
  try {
    return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
  } catch {
    return undefined;
  }
}
