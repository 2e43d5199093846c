// What the tests of the hook for React do in their page; the document's own component is in documented.tsx.

import { Component, createElement, StrictMode, useEffect, version } from "react";
import { flushSync } from "react-dom";
import { createRoot } from "react-dom/client";
import { join, Mesh } from "twisted-signaling-client";
import { useMesh } from "twisted-signaling-client/react";
import { Room } from "./documented";

const opened = []; // the URLs of all WebSocket connections
globalThis.WebSocket = class extends WebSocket {
  constructor(url, ...rest) {
    super(url, ...rest);
    opened.push(url);
  }
};

const seen = { mounts: 0, results: [], data: [], caught: [] };

function Probe({ url, number = 0, ...more }) {
  // New objects and functions in each rendering.
  const result = useMesh(url, {
    metadata: { name: "Ada", number },
    backoff: { first: 50 },
    ...more,
    on: { data: ({ detail }) => seen.data.push([number, detail.data]) },
  });
  seen.results.push({ url, ...result });
  useEffect(() => void seen.mounts++, []);
  return result.state;
}

class Boundary extends Component {
  state = {};
  static getDerivedStateFromError(error) {
    return { error };
  }
  render() {
    return this.state.error ? `caught ${this.state.error.name}` : this.props.children;
  }
}

let root;

/** Renders now, in StrictMode, as a page does. */
function render(component, props) {
  root ??= createRoot(document.body.appendChild(document.createElement("main")));
  flushSync(() => root.render(<StrictMode><Boundary>{createElement(component, props)}</Boundary></StrictMode>));
}

function unmount() {
  root.unmount();
  root = undefined;
}

/** A peer beside the component, which records who joins and leaves. */
async function observe(url) {
  const signaling = join(url, { metadata: { name: "an observer" } });
  const mesh = new Mesh(signaling);
  const observer = { signaling, mesh, joined: [], left: [] };
  signaling.addEventListener("peer-joined", ({ detail }) => observer.joined.push(detail));
  signaling.addEventListener("peer-left", ({ detail }) => observer.left.push(detail.peerId));
  await signaling.ready;
  return observer;
}

async function until(test) {
  while (!test()) await new Promise((done) => setTimeout(done, 10));
}

Object.assign(globalThis, { version, opened, seen, Probe, Room, render, unmount, observe, until });
