// A server's sockets and a browser's connections, for tests of the JavaScript client in Node.

export const sockets = []; // all that were made, the newest last
export const connections = []; // the same of the connections

export const welcome = (selfId, extra) => ({ type: "welcome", selfId, ...extra });
export const list = (...ids) => ({ type: "peer-list", peers: ids.map((id) => ({ id })) });

export class FakeSocket extends EventTarget {
  static CONNECTING = 0;
  readyState = FakeSocket.CONNECTING;
  sent = [];
  closed;

  constructor(url) {
    super();
    this.url = new URL(url);
    sockets.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code = "without a code") {
    this.closed = code;
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

  get texts() {
    return this.sent.filter(({ msgId }) => !msgId.startsWith("fence")).map(({ payload }) => payload);
  }
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

  /** Connects, with an open channel. */
  connect() {
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
