import type { JoinOptions, Mesh, MeshEventMap, MeshOptions, MeshPeer, Metadata, Refusal, Signaling, SignalingState } from "twisted-signaling-client";

/**
 * The options of `join` and `Mesh`. They count when the peer joins, and may be new objects in each rendering: to join again
 * with others, give the component another `key`. The functions `token` and those of `on` are always the latest ones.
 */
export interface UseMeshOptions<M extends object = Metadata> extends JoinOptions<M>, MeshOptions {
  /** Listeners for events of the mesh, which miss none. */
  on?: { [Type in keyof MeshEventMap<M>]?: (event: MeshEventMap<M>[Type]) => unknown };
}

export interface MeshResult<M extends object = Metadata> {
  /** Undefined in the first rendering, and on a server. */
  readonly signaling: Signaling<M> | undefined;
  /** Undefined in the first rendering, and on a server. */
  readonly mesh: Mesh<M> | undefined;
  readonly state: SignalingState;
  /** Why there is no connection, for a person. */
  readonly reason: string | undefined;
  /** Why the server refuses connections; undefined once it lets this peer in. */
  readonly refused: Refusal | undefined;
  /** Those of the mesh; a new array when a peer, its metadata or the state of its connection changes. */
  readonly peers: readonly MeshPeer<M>[];
}

/**
 * Joins a topic while the component is mounted, and keeps a mesh. Another URL leaves, and joins that one. StrictMode joins
 * once.
 *
 * @throws What `join` or `Mesh` throws, while rendering: an error boundary catches it.
 */
export function useMesh<M extends object = Metadata>(url: string | URL, options?: UseMeshOptions<M>): MeshResult<M>;
