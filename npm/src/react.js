"use client";

/**
 * A hook for React that joins a topic while a component is mounted.
 *
 * react.d.ts has its types and their documentation.
 */

import { useEffect, useRef, useState } from "react";
import { join, Mesh } from "twisted-signaling-client";

const MESH_EVENTS = ["peer-added", "peer-updated", "peer-removed", "track", "data", "connectionstatechange", "error"];
const NOT_JOINED = { signaling: undefined, mesh: undefined, state: "connecting", reason: undefined, refused: undefined, peers: [] };

export function useMesh(url, options = {}) {
  const address = String(url);
  const latest = useRef(options);
  const [shown, show] = useState({ address, result: NOT_JOINED });
  useEffect(() => {
    latest.current = options;
  });
  useEffect(() => {
    let mounted = true;
    let signaling;
    // Later, because StrictMode mounts, unmounts and mounts at once: only the last mount joins.
    queueMicrotask(() => {
      if (!mounted) return;
      let result = NOT_JOINED;
      const update = (change) => {
        result = { ...result, ...change };
        if (mounted) show({ address, result });
      };
      try {
        signaling = enter(address, latest, update);
      } catch (error) {
        show({ address, error });
      }
    });
    return () => {
      mounted = false;
      signaling?.leave();
    };
  }, [address]);
  if (shown.address !== address) return NOT_JOINED;
  if ("error" in shown) throw shown.error;
  return shown.result;
}

/**
 * Joins, and reports what changes.
 *
 * @param latest - the ref of the options, whose functions are those of the last rendering.
 * @param update - called with the changed keys of the hook's result.
 */
function enter(address, latest, update) {
  const { on, token, ...options } = latest.current;
  const latestToken = () => {
    const { token: current } = latest.current;
    return typeof current === "function" ? current() : current;
  };
  if (token !== undefined) options.token = typeof token === "function" ? latestToken : token;
  const signaling = join(address, options);
  try {
    const mesh = new Mesh(signaling, options);
    const updatePeers = () => update({ peers: [...mesh.peers.values()] });
    for (const type of MESH_EVENTS) {
      mesh.addEventListener(type, (event) => {
        if (type.startsWith("peer-") || type === "connectionstatechange") updatePeers();
        latest.current.on?.[type]?.(event);
      });
    }
    // A peer may have a new id, and is the same object.
    for (const type of ["peer-joined", "peer-left"]) signaling.addEventListener(type, updatePeers);
    signaling.addEventListener("statechange", ({ detail: { state, reason } }) => {
      update({ state, reason, ...(state === "open" && { refused: undefined }) });
    });
    signaling.addEventListener("refused", ({ detail }) => update({ refused: detail }));
    update({ signaling, mesh, state: signaling.state });
  } catch (error) {
    signaling.leave();
    throw error;
  }
  return signaling;
}
