/** A message of the wire. A peer without metadata has `{}`; what is not as the protocol says is left out. */
export type WireMessage =
  | { type: "welcome"; selfId: string; iceServers?: RTCIceServer[]; resume?: { token: string; window: number }; resumed?: true }
  | { type: "peer-list"; peers: { id: string; metadata: Metadata }[] }
  | { type: "peer-joined"; peerId: string; metadata: Metadata }
  | { type: "peer-left"; peerId: string }
  | { type: "ice-servers"; iceServers: RTCIceServer[] }
  | { type: "error"; code: string; message: string; msgId?: string }
  | RelayedMessage;

/** A message that another peer sent to this one. */
export interface RelayedMessage {
  type: RelayedType;
  from: string;
  payload?: unknown;
  msgId?: string;
}

/** A message of this peer to another. */
export interface OutgoingMessage {
  type: RelayedType;
  to: string;
  payload?: unknown;
  msgId?: string;
}

export type RelayedType = "offer" | "answer" | "ice-candidate";
export type Metadata = Record<string, unknown>;

/** `waiting`: the connection is gone, and the next attempt is due in a while. `closed`: for good. */
export type SignalingState = "connecting" | "open" | "waiting" | "closed";

export interface JoinOptions {
  /** Shown to the others, with one key more: `instance`, a random name by which a `Mesh` knows a peer again that has a new id. */
  metadata?: Metadata;
  /** Leaves when it is aborted. */
  signal?: AbortSignal;
  /** Whether to connect again after a loss; default: true. */
  reconnect?: boolean;
  /** Milliseconds before the first attempts to connect again, which double from `first` up to `most`, less a random part. */
  backoff?: { first?: number; most?: number };
  /** Bytes of one message of this peer; default: 65536, which is the server's default as well. */
  maxMessageBytes?: number;
}

export interface SignalingEventMap {
  welcome: CustomEvent<Extract<WireMessage, { type: "welcome" }>>;
  /** Every list. After all but the first, `peer-joined` and `peer-left` tell what changed while this peer was away. */
  "peer-list": CustomEvent<Extract<WireMessage, { type: "peer-list" }>>;
  "peer-joined": CustomEvent<Extract<WireMessage, { type: "peer-joined" }>>;
  "peer-left": CustomEvent<Extract<WireMessage, { type: "peer-left" }>>;
  "ice-servers": CustomEvent<Extract<WireMessage, { type: "ice-servers" }>>;
  /** The answer to one message of this peer: by the server, or, where the message could not be sent, by the client itself. */
  error: CustomEvent<Extract<WireMessage, { type: "error" }>>;
  offer: CustomEvent<RelayedMessage>;
  answer: CustomEvent<RelayedMessage>;
  "ice-candidate": CustomEvent<RelayedMessage>;
  /** Every message of the server, before the event of its own type; but for those that a client sends to itself as a fence. */
  received: CustomEvent<WireMessage>;
  /** Every message that this peer sent. */
  sent: CustomEvent<OutgoingMessage>;
  /**
   * `retryInMs` is there while `waiting`. `reason` says why a connection ended, for a person, unless this peer left; `code` is
   * its close code, 4401 if the token expired.
   */
  statechange: CustomEvent<{ state: SignalingState; reason?: string; code?: number; retryInMs?: number }>;
}

/** One peer of a topic. Events carry their message in `detail`. */
export class Signaling extends EventTarget {
  private constructor();
  /** This peer's id; another one after a loss that could not be resumed. Empty before the first `welcome`. */
  readonly selfId: string;
  readonly state: SignalingState;
  /** The others, in joining order, and their metadata, which is `{}` if they show none. */
  readonly peers: ReadonlyMap<string, Metadata>;
  /** From the latest `welcome` or `ice-servers`; empty where the server names none. */
  readonly iceServers: RTCIceServer[];
  /** Fulfilled by the first `peer-list`, rejected where this peer left, or gave up, before. */
  readonly ready: Promise<void>;
  /**
   * Sends one message. While the connection is gone, it is kept for the next one, and dropped where that is another peer's;
   * so is what comes when 256 messages are kept already. An `error` tells what was dropped, or is `too_large` to be sent.
   *
   * @returns its `msgId`, which an `error` about it repeats.
   */
  send(type: RelayedType, to: string, payload?: unknown, msgId?: string): string;
  /** Leaves the topic for good. */
  leave(): void;
  addEventListener<K extends keyof SignalingEventMap>(
    type: K,
    listener: (event: SignalingEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
}

/**
 * Joins the topic of a URL, such as `wss://example.com/ws/my-room`; a path, such as `/ws/my-room`, is the page's own server.
 */
export function join(url: string | URL, options?: JoinOptions): Signaling;

export interface MeshOptions {
  /** Of each connection; the server's ICE servers come before those given here. */
  configuration?: RTCConfiguration;
  /** Whether each connection has a data channel, `MeshPeer.channel`; default: true. */
  channel?: boolean;
  /** Connections at once; default: 64. Who comes then is met once there is room, in joining order. */
  maxConnections?: number;
}

/** One of the others, and the connection to it. */
export interface MeshPeer {
  /** Another one after a loss that could not be resumed, while the connection goes on: the object tells who it is. */
  readonly id: string;
  /** `{}` if it shows none. */
  readonly metadata: Metadata;
  readonly connection: RTCPeerConnection;
  /** Whether this side gives way when both make an offer at once. */
  readonly polite: boolean;
  /** For messages of the application; undefined where `channel` is false. To close it is to say goodbye. */
  readonly channel?: RTCDataChannel;
}

export interface MeshEventMap {
  /** A connection to a new peer is being made. */
  "peer-added": CustomEvent<MeshPeer>;
  /** A peer is gone, or began anew, and the connection to it closed. */
  "peer-removed": CustomEvent<MeshPeer>;
  track: CustomEvent<{ peer: MeshPeer; track: MediaStreamTrack; streams: readonly MediaStream[] }>;
  /** A message of a peer's data channel. */
  data: CustomEvent<{ peer: MeshPeer; data: unknown }>;
  connectionstatechange: CustomEvent<MeshPeer>;
  /**
   * What a peer's connection could not do, as the browser says it. After a description that the browser rejects,
   * `peer-removed` and `peer-added` follow: the connection begins anew.
   */
  error: CustomEvent<{ peerId: string; error: Error }>;
}

/**
 * Keeps one connection to each of the others in the topic (perfect negotiation, WebRTC section 10.7). Make it right after
 * `join`: what others offer before it is there, it does not hear.
 */
export class Mesh extends EventTarget {
  /** @throws {Error} where there is no `RTCPeerConnection`. */
  constructor(signaling: Signaling, options?: MeshOptions);
  readonly peers: ReadonlyMap<string, MeshPeer>;
  /** Sends a track to everyone there, and to everyone who comes. */
  addTrack(track: MediaStreamTrack, ...streams: MediaStream[]): void;
  /** Sends it to nobody any more. */
  removeTrack(track: MediaStreamTrack): void;
  /** Sends `data` on every open data channel. */
  broadcast(data: string | ArrayBuffer | ArrayBufferView | Blob): void;
  /** Closes every connection; the signaling stays. Leaving the signaling does it as well. */
  close(): void;
  addEventListener<K extends keyof MeshEventMap>(
    type: K,
    listener: (event: MeshEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
}
