// A relay in the simplest way on Deno's own server; the only argument is the port.

import { Peer } from "./relay.mjs";

Deno.serve({ hostname: "127.0.0.1", port: Number(Deno.args[0]), onListen: () => {} }, (request) => {
  if (request.headers.get("upgrade") !== "websocket") return new Response("a WebSocket is wanted", { status: 426 });
  const { socket, response } = Deno.upgradeWebSocket(request);
  let peer;
  socket.onopen = () => {
    peer = new Peer(socket, new URL(request.url).pathname);
  };
  socket.onmessage = (event) => peer.relay(event.data);
  socket.onclose = () => peer?.leave();
  socket.onerror = () => {};
  return response;
});
