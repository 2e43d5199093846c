// A relay in the simplest way on Node.js and `ws`; the only argument is the port.

import { createRequire } from "node:module";

import { Peer } from "./relay.mjs";

// Only `require` looks where NODE_PATH says.
const { WebSocketServer } = createRequire(import.meta.url)("ws");

const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]) });

server.on("connection", (socket, request) => {
  const peer = new Peer(socket, request.url);
  socket.on("message", (data) => peer.relay(data.toString()));
  socket.on("close", () => peer.leave());
  socket.on("error", () => {});
});
