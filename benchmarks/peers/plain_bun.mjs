// A relay in the simplest way on Bun's own server, which is uWebSockets; the only argument is the port.

import { Peer } from "./relay.mjs";

Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  development: false,
  routes: {
    "/ws/:topic": (request, server) =>
      server.upgrade(request, { data: { topic: request.params.topic, peer: null } })
        ? undefined
        : new Response("a WebSocket is wanted", { status: 426 }),
  },
  fetch: () => new Response("not found", { status: 404 }),
  websocket: {
    perMessageDeflate: false,
    open(socket) {
      socket.data.peer = new Peer(socket, socket.data.topic);
    },
    message(socket, text) {
      socket.data.peer.relay(text);
    },
    close(socket) {
      socket.data.peer.leave();
    },
  },
});
