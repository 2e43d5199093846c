// What a plain server of our wire does, whatever carries its messages; nothing is checked.

const topics = new Map();

/** One peer; its socket has a `send` that takes text. */
export class Peer {
  /** Welcome the peer, and inform the others. */
  constructor(socket, topic) {
    this.id = crypto.randomUUID().replaceAll("-", "").slice(0, 26);
    this.socket = socket;
    this.topic = topic;
    let members = topics.get(topic);
    if (members === undefined) topics.set(topic, (members = new Map()));
    this.members = members;
    this.send({ type: "welcome", selfId: this.id });
    this.send({ type: "peer-list", peers: Array.from(members.keys(), (id) => ({ id })) });
    this.inform({ type: "peer-joined", peerId: this.id });
    members.set(this.id, this);
  }

  /** Relay a message to its target. */
  relay(text) {
    const message = JSON.parse(text);
    const { type, payload, msgId } = message;
    const target = this.members.get(message.to);
    if (target === undefined) {
      this.send({ type: "error", code: "target_not_found", message: "peer not found", msgId });
    } else {
      target.send({ type, from: this.id, payload, msgId });
    }
  }

  /** Inform the others, and forget an empty topic. */
  leave() {
    this.members.delete(this.id);
    if (this.members.size === 0) topics.delete(this.topic);
    else this.inform({ type: "peer-left", peerId: this.id });
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  inform(message) {
    const text = JSON.stringify(message);
    for (const member of this.members.values()) member.socket.send(text);
  }
}
