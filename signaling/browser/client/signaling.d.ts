/** A message of the wire. A peer without metadata has `{}`; keys that are not as in docs/protocol.md are left out. */
export type WireMessage<M extends object = Metadata> =
  | {
      type: "welcome";
      selfId: string;
      iceServers?: RTCIceServer[];
      resume?: { token: string; window: number };
      resumed?: true;
      /** Seconds until the access token expires. */
      expiresIn?: number;
      /** The names of the optional features that the server has on, at most 64 of them. */
      features?: string[];
    }
  | { type: "peer-list"; peers: { id: string; metadata: Untrusted<M> }[] }
  | { type: "peer-joined"; peerId: string; metadata: Untrusted<M> }
  /** A peer, which may be this one, has other metadata. */
  | { type: "peer-updated"; peerId: string; metadata: Untrusted<M> }
  | { type: "peer-left"; peerId: string }
  | { type: "ice-servers"; iceServers: RTCIceServer[] }
  | NoticeMessage
  | { type: "error"; code: string; message: string; msgId?: string }
  | RelayedMessage;

/** What the operator of the server says. No peer can send one: the server relays no message of this type. */
export interface NoticeMessage {
  type: "notice";
  data?: unknown;
}

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

/** An update of this peer's own metadata. */
export interface MetadataMessage {
  type: "metadata";
  metadata: Metadata;
  msgId: string;
}

/** The types of messages that the server relays from peer to peer. */
export type RelayedType = "offer" | "answer" | "ice-candidate";
/** What a peer shows to the others: any JSON object. */
export type Metadata = Record<string, unknown>;

/**
 * The metadata of another peer, where this one has `M`: the same keys, but each may be missing or have any value, because
 * nothing checks what a peer writes. Check the type of a value before you use it.
 */
export type Untrusted<M extends object> = { readonly [Key in keyof M]?: unknown };

/** `waiting`: the connection was lost, and the next attempt comes later. `closed`: for good. */
export type SignalingState = "connecting" | "open" | "waiting" | "closed";

export interface JoinOptions<M extends object = Metadata> {
  /** Shown to the other peers, with the additional key `instance`: a random name by which a `Mesh` recognises a peer with a new id. */
  metadata?: M;
  /** Leaves when it is aborted. */
  signal?: AbortSignal;
  /**
   * Whether to connect again after a loss, or after the token has expired; default: true. In either case, a token function
   * is asked for another token, once, if the server refuses the first one with 401 or 403.
   */
  reconnect?: boolean;
  /**
   * Milliseconds before an attempt to connect again, above 0: they double from `first` (default: 500) up to `most` (default:
   * 30000), less a random part of up to a half.
   */
  backoff?: { first?: number; most?: number };
  /** The size of one message of this peer, in bytes; default: 65536, as at the server. */
  maxMessageBytes?: number;
  /**
   * Shared by the peers of the topic, of at least 16 bytes: payloads are sealed with it, so that the server can neither read
   * nor change them (docs/sealing.md). Messages that are not sealed with it are `tampered`. Needs a secure page, and
   * `sealing.js` beside `signaling.js`.
   */
  secret?: string;
  /**
   * An access token, or a function that is asked for one before every attempt to connect, and to renew it on the open
   * connection at four fifths of its time. It has 15 s. A string is never renewed.
   *
   * @throws {TypeError} from `join`, if it cannot be a token: letters, digits and `-._~+`; or if the URL has one as well.
   */
  token?: string | (() => string | Promise<string>);
  /** The class to use in place of the global `WebSocket`, for example that of the package `ws`. */
  WebSocket?: new (url: string, protocols?: string[]) => WebSocketLike;
}

/** What is used of a WebSocket. */
export interface WebSocketLike {
  readonly readyState: number;
  readonly bufferedAmount?: number;
  send(data: string): void;
  close(code?: number): void;
  addEventListener(type: "open" | "message" | "error" | "close", listener: (event: any) => void): void;
}

/** Why the server refuses connections, in its words, and after how many seconds it may accept one. */
export interface Refusal {
  /** An HTTP status; or a close code: 4403 if an operator removed this peer, 4404 if an operator closed the topic. */
  status: number;
  reason: string;
  retryAfter?: number;
}

export interface SignalingEventMap<M extends object = Metadata> {
  welcome: CustomEvent<Extract<WireMessage, { type: "welcome" }>>;
  /**
   * Every list. After each but the first, `peer-joined`, `peer-updated` and `peer-left` report what changed since the connection
   * was lost.
   */
  "peer-list": CustomEvent<Extract<WireMessage<M>, { type: "peer-list" }>>;
  "peer-joined": CustomEvent<Extract<WireMessage<M>, { type: "peer-joined" }>>;
  /** A peer, which may be this one, has other metadata. */
  "peer-updated": CustomEvent<Extract<WireMessage<M>, { type: "peer-updated" }>>;
  "peer-left": CustomEvent<Extract<WireMessage, { type: "peer-left" }>>;
  "ice-servers": CustomEvent<Extract<WireMessage, { type: "ice-servers" }>>;
  notice: CustomEvent<NoticeMessage>;
  /**
   * The error for a message of this peer: from the server, or, if it could not be sent, from the client itself.
   * `invalid_token`, without a `msgId`: the token of the open connection could not be renewed, and `message` says why. About
   * metadata that the client asked for again after a loss: the server does not take it, and the former metadata stays.
   */
  error: CustomEvent<Extract<WireMessage, { type: "error" }>>;
  offer: CustomEvent<RelayedMessage>;
  answer: CustomEvent<RelayedMessage>;
  "ice-candidate": CustomEvent<RelayedMessage>;
  /**
   * Every message of the server, before the event of its own type, except those that a client sends to itself as a fence, and
   * the answers to tokens.
   */
  received: CustomEvent<WireMessage<M>>;
  /** With a `secret`: a message that was not passed on, because it is not what its sender sealed for this peer, now. */
  tampered: CustomEvent<{ from: string; type: RelayedType; reason: string }>;
  /** Every message that this peer sent, except fences and tokens, as it was before it was sealed. */
  sent: CustomEvent<OutgoingMessage | MetadataMessage>;
  /**
   * The server refuses connections, or an operator removed this peer or closed its topic. `closed` follows, unless another
   * attempt may succeed: after 429 and 5xx the client waits, at least for `retryAfter`.
   */
  refused: CustomEvent<Refusal>;
  /**
   * `retryInMs` is set while `waiting`. `reason` says for a person why a connection ended, unless this peer left; `code` is
   * its close code: 4401 if the token expired, 4403 if an operator removed this peer, 4404 if one closed the topic.
   */
  statechange: CustomEvent<{ state: SignalingState; reason?: string; code?: number; retryInMs?: number }>;
}

/** One peer of a topic. Events carry their message in `detail`. */
export class Signaling<M extends object = Metadata> extends EventTarget {
  private constructor();
  /** This peer's id; a new one after a loss that could not be resumed. Empty before the first `welcome`. */
  readonly selfId: string;
  readonly state: SignalingState;
  /** The other peers, in joining order, and their metadata, which is `{}` if they have none. */
  readonly peers: ReadonlyMap<string, Untrusted<M>>;
  /** This peer's own metadata with its `instance`, as given, or as the server last said; a token may have replaced the former. */
  readonly metadata: Readonly<Metadata>;
  /** From the latest `welcome` or `ice-servers`, at most 32 of them; empty if the server names none. */
  readonly iceServers: RTCIceServer[];
  /** The names of the optional features that the server has on; empty before the first `welcome`. */
  readonly features: ReadonlySet<string>;
  /** Fulfilled by the first `peer-list`; rejected if this peer leaves or gives up before, with a `Refusal`'s `status` if it was refused. */
  readonly ready: Promise<void>;
  /**
   * Sends a message. Without a connection, it waits for the next one, and is dropped if that cannot resume, or if 256
   * messages wait already. An `error` reports messages that were dropped, or that are `too_large`, or `not_sealed`.
   *
   * @returns Its `msgId`, which an `error` about it repeats.
   */
  send(type: RelayedType, to: string, payload?: unknown, msgId?: string): string;
  /**
   * Replaces this peer's metadata, of which only `instance` stays, for all peers in the topic.
   *
   * @returns A promise, fulfilled when the server has told all peers, and rejected with an error that has a `code`: that of the
   *   server's `error`, such as `invalid_metadata`, `forbidden` or `rate_limited`; `unsupported` if the server does not have
   *   `metadata-updates` among its `features`; `too_large`; `replaced` by a later update before it was sent; `dropped` after
   *   leaving; `unconfirmed` without a connection, after a loss, or without an answer in 10 s: then the client asks for this
   *   metadata again when it next connects. A rejection that nobody handles is no uncaught error.
   */
  updateMetadata(metadata: M): Promise<void>;
  /** Leaves the topic for good. With a `secret`, messages of `send` that are not sealed yet are dropped. */
  leave(): void;
  /** Calls `listener` with each event of this type. */
  addEventListener<K extends keyof SignalingEventMap<M>>(
    type: K,
    listener: (event: SignalingEventMap<M>[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
}

/**
 * Joins the topic of a URL, such as `wss://example.com/ws/my-room`; a path, such as `/ws/my-room`, means the page's own server.
 *
 * @typeParam M - this peer's metadata, for example `join<{ name: string }>`; of the other peers, see `Untrusted`.
 * @throws {TypeError} if an argument is wrong, before it connects.
 */
export function join<M extends object = Metadata>(url: string | URL, options?: JoinOptions<NoInfer<M>>): Signaling<M>;

export interface MeshOptions {
  /** Of each connection; the server's ICE servers come before those of this configuration. */
  configuration?: RTCConfiguration;
  /** Whether each connection has a data channel, `MeshPeer.channel`; default: true. */
  channel?: boolean;
  /** Connections at once; default: 64. Further peers wait, in joining order. */
  maxConnections?: number;
}

/** Another peer and the connection to it. */
export interface MeshPeer<M extends object = Metadata> {
  /** Changes after a loss that could not be resumed, while the connection goes on; this object stays the same. */
  readonly id: string;
  /** `{}` if it has none. Replaced by another object if the peer updates it. */
  readonly metadata: Untrusted<M>;
  /** Made by the mesh, which negotiates every change of it. */
  readonly connection: RTCPeerConnection;
  /** Whether this side is the polite one of perfect negotiation: if both offer at once, its offer is rolled back. */
  readonly polite: boolean;
  /** For messages of the application; undefined if `channel` is false. Closing it ends the connection. */
  readonly channel?: RTCDataChannel;
}

export interface MeshEventMap<M extends object = Metadata> {
  /** A connection to a new peer is being made. */
  "peer-added": CustomEvent<MeshPeer<M>>;
  /** A peer has other metadata. */
  "peer-updated": CustomEvent<MeshPeer<M>>;
  /** The connection to a peer was closed: the peer left, or a new connection replaces it. */
  "peer-removed": CustomEvent<MeshPeer<M>>;
  /** A peer sends a track. */
  track: CustomEvent<{ peer: MeshPeer<M>; track: MediaStreamTrack; streams: readonly MediaStream[] }>;
  /** A message of a peer's data channel. */
  data: CustomEvent<{ peer: MeshPeer<M>; data: unknown }>;
  /** The `connectionState` of a peer's `connection` is another one. */
  connectionstatechange: CustomEvent<MeshPeer<M>>;
  /**
   * What went wrong with the connection to a peer, from the browser or because of a limit (docs/clients-limits.md), or why
   * there is none. The mesh goes on. After a description that the browser rejects, `peer-removed` and `peer-added` follow: a
   * new connection replaces the old one.
   */
  error: CustomEvent<{ peerId: string; error: Error }>;
}

/**
 * Keeps one connection to each other peer in the topic (perfect negotiation, WebRTC section 10.7). Create it right after
 * `join`: it does not receive offers from before.
 */
export class Mesh<M extends object = Metadata> extends EventTarget {
  /**
   * @throws {Error} if there is no `RTCPeerConnection`.
   * @throws {TypeError} if an argument is wrong.
   */
  constructor(signaling: Signaling<M>, options?: MeshOptions);
  /** The peers to which there is a connection, open or not, by their ids. */
  readonly peers: ReadonlyMap<string, MeshPeer<M>>;
  /**
   * Sends a track to all peers, and to those that join later.
   *
   * @throws {TypeError} if it is no track.
   */
  addTrack(track: MediaStreamTrack, ...streams: MediaStream[]): void;
  /** Stops sending a track. */
  removeTrack(track: MediaStreamTrack): void;
  /** Sends `data` on every open data channel. */
  broadcast(data: string | ArrayBuffer | ArrayBufferView | Blob): void;
  /** Closes every connection, not the signaling. They are closed as well if this peer leaves or is removed. */
  close(): void;
  /** Calls `listener` with each event of this type. */
  addEventListener<K extends keyof MeshEventMap<M>>(
    type: K,
    listener: (event: MeshEventMap<M>[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
}
