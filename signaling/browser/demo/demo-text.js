/**
 * Texts for the messages in the demo: pure functions of what a server or a peer sent.
 *
 * A peer may send anything, so they take linear time and never throw; no pattern may backtrack. tests/unit/hostile.test.mjs
 * measures it.
 */

const LONGEST_WORDS = 80;
const LONGEST_REASON = 120;
const LONGEST_NOTICE = 300;
const DEEPEST = 50;

export const SHORT = { "ice-candidate": "candidate" };
const SECRET = new Set(["credential", "token"]);

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

// Control characters, and marks that change the direction of text.
const UNSEEN = /[\p{Cc}\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+/gu;

/** One line of at most `longest` characters. */
export function oneLine(text, longest) {
  const line = text.slice(0, 4 * longest).replace(UNSEEN, " ");
  const letters = [...line.replace(/\s+/g, " ").trim()];
  return letters.length > longest ? `${letters.slice(0, longest - 1).join("")}…` : letters.join("");
}

/** The room of everybody who chooses no other. */
export const DEFAULT_TOPIC = "demo";

/** Whether a text has only characters of tokens that a page can present. */
export const isToken = (text) => /^[\w.~+-]+$/.test(text);

/**
 * The topic and the token in the address of the page, such as `#team-meeting&token=ey...`.
 *
 * A fragment never reaches a server or its log. A query does, so a token there is not read.
 */
export function addressed({ hash, search }) {
  const [fragment, token = ""] = hash.slice(1).split(/(?:^|&)token=/, 2);
  return { topic: decoded(fragment) || new URLSearchParams(search).get("topic") || DEFAULT_TOPIC, token: decoded(token) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * Why a server refuses to let this page in, for a person.
 *
 * @param refusal `{status, reason}`.
 * @param hasToken whether a token was presented.
 * @returns `field`, the id of the input that has to change, or empty; `text`; and `state`, if an operator ended the stay.
 */
export function refusalText({ status, reason }, { topic, hasToken }) {
  const said = oneLine(reason ?? "", LONGEST_REASON) || `HTTP ${status}`;
  if (status === 401 && !hasToken) {
    return { field: "token", text: "This server needs an access token. Ask whoever runs it for one." };
  }
  if (status === 401 && said === "the token has expired") {
    return { field: "token", text: "This access token has expired. Enter a new one." };
  }
  if (status === 401) return { field: "token", text: `The server does not accept this access token: ${said}.` };
  const why = said.startsWith("an operator ") ? "" : `: ${said}`; // If there is no reason, the client says that.
  if (status === 4403) return { field: "topic", state: "Removed", text: `An operator removed you from this room${why}.` };
  if (status === 4404) return { field: "topic", state: "Room closed", text: `An operator closed this room${why}.` };
  if (status === 403 && said.includes("--allow-origin")) {
    return { field: "", text: "This server does not accept calls from this page's address. Whoever runs it can allow that." };
  }
  if (status === 403 && said.includes("may not join this topic for")) {
    return { field: "topic", text: `You were removed from this room: ${said}.` };
  }
  if (status === 403 && hasToken) {
    return { field: "topic", text: `Your access token does not open the room “${oneLine(topic, 40)}”. Choose another room, or another token.` };
  }
  if (status === 429) return { field: "", text: "Too many connections come from your network. You get in as soon as one of them ends." };
  if (status === 503) return { field: "", text: "The server is full, or about to restart. You get in as soon as it has room." };
  return { field: "topic", text: `The server refuses this room: ${said}.` };
}

/**
 * Why a name was not changed, for a person; empty if that is no news.
 *
 * @param error of `updateMetadata`.
 */
export function renamingText({ code, message }) {
  switch (code) {
    case "dropped":
    case "replaced":
      return "";
    case "forbidden":
      return "Your access token decides about your name.";
    case "rate_limited":
      return "You have changed your name too often. Try it again in some seconds.";
    case "invalid_metadata":
    case "too_large":
    case "topic_full":
      return "This name is too long for the server.";
    case "unconfirmed":
      return "The server has not confirmed your new name. You get it when you are connected again.";
    default:
      return `Your name was not changed: ${oneLine(message, LONGEST_REASON)}.`;
  }
}

/** What an operator says, whatever it is: one line. */
export function noticeText(data) {
  const text = typeof data === "string" ? data : (data?.text ?? data?.message);
  if (typeof text === "string") return oneLine(text, LONGEST_NOTICE);
  return isDeep(data) ? "(nested too deeply to show)" : oneLine(JSON.stringify(data) ?? "", LONGEST_NOTICE);
}

const linesOf = (sdp) => sdp.split(/\r\n?|\n/);

/** The value of a description's first line `a=NAME:VALUE`. */
export function attribute(sdp, name) {
  const beginning = `a=${name}:`;
  return linesOf(sdp)
    .find((line) => line.startsWith(beginning))
    ?.slice(beginning.length)
    .trim();
}

/** The media of a description, such as `audio, video, data`. */
function media(sdp) {
  const lines = linesOf(sdp);
  const isBundled = lines.includes("a=bundle-only");
  const counts = new Map();
  for (const line of lines) {
    if (!line.startsWith("m=")) continue;
    const [kind, port] = line.slice(2).split(" ", 2);
    const word = kind === "application" ? "data" : kind;
    const shown = port === "0" && !isBundled ? `no ${word}` : word;
    counts.set(shown, (counts.get(shown) ?? 0) + 1);
  }
  return [...counts].map(([kind, count]) => (count > 1 ? `${count} × ${kind}` : kind)).join(", ");
}

/** The kind of a candidate, such as `host udp`. */
function candidate(payload) {
  const text = payload?.candidate;
  if (text === "" || payload === null || payload === undefined) return "end of candidates";
  const found =
    typeof text === "string" &&
    /^(?:a=)?candidate:\S+ \d (udp|tcp) \d+ (\S+) \d+ typ (host|srflx|prflx|relay)\b/i.exec(text);
  if (!found) return "not understood";
  const [, protocol, address, type] = found;
  return `${type} ${protocol.toLowerCase()}${address.endsWith(".local") ? " mDNS" : ""}`;
}

/** A short summary of a message. */
export function summary(message, names) {
  return oneLine(wordsOf(message, names), LONGEST_WORDS);
}

function wordsOf(message, names) {
  const { payload } = message;
  switch (message.type) {
    case "welcome": {
      const servers = message.iceServers ? `, ${plural(message.iceServers.length, "ICE server")}` : "";
      return `${message.resumed ? "session resumed as" : "you are"} …${message.selfId.slice(-4)}${servers}`;
    }
    case "peer-list":
      return message.peers.length ? plural(message.peers.length, "other") : "nobody else";
    case "metadata":
    case "peer-updated":
      return typeof message.metadata.name === "string" ? message.metadata.name : "";
    case "notice":
      return noticeText(message.data);
    case "peer-joined":
    case "peer-left":
      return names.of(message.peerId);
    case "ice-servers":
      return plural(message.iceServers.length, "server");
    case "error":
      return message.code;
    case "ice-candidate":
      return candidate(payload);
    default:
      return typeof payload?.sdp === "string" ? media(payload.sdp) : "";
  }
}

/** Whether a value is nested too deeply to show: indentation would make it far longer. */
function isDeep(value, levels = DEEPEST) {
  if (typeof value !== "object" || value === null) return false;
  return levels === 0 || Object.values(value).some((inner) => isDeep(inner, levels - 1));
}

/** The bytes of a value as JSON; 0 if it is nested too deeply. */
export function jsonBytes(value) {
  return isDeep(value) ? 0 : new TextEncoder().encode(JSON.stringify(value)).length;
}

/** A message for a reader: descriptions line by line, and no secrets. */
export function readable(message) {
  if (isDeep(message)) return "(nested too deeply to show)";
  const { type, from, to, msgId, ...rest } = message;
  if (typeof rest.payload?.sdp === "string" && typeof rest.payload.type === "string") {
    return `type: ${rest.payload.type}\n${linesOf(rest.payload.sdp).join("\n")}`;
  }
  return JSON.stringify(
    "payload" in rest ? rest.payload : rest,
    (key, value) => (SECRET.has(key) ? "(not shown)" : value),
    2,
  );
}

/** A message of a peer's data channel; text that is not a JSON object is a line of the chat. */
export function said(data) {
  if (typeof data !== "string") return {};
  try {
    const value = JSON.parse(data);
    if (typeof value === "object" && value !== null) return value;
  } catch {
    // Plain text of another program.
  }
  return { text: data };
}
