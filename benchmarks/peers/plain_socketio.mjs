// A relay as Socket.IO's users write one; the only argument is the port.

import { createRequire } from "node:module";

// Only `require` looks where NODE_PATH says.
const { Server } = createRequire(import.meta.url)("socket.io");

const io = new Server(Number(process.argv[2]), {
  transports: ["websocket"],
  serveClient: false,
  // The load generator answers WebSocket's pings, but not Socket.IO's.
  pingInterval: 3_600_000,
});

io.on("connection", (socket) => {
  const { topic } = socket.handshake.query;
  socket.emit("peer-list", [...(io.sockets.adapter.rooms.get(topic) ?? [])]);
  socket.to(topic).emit("peer-joined", socket.id);
  socket.join(topic);
  for (const type of ["offer", "answer", "ice-candidate"]) {
    socket.on(type, (to, payload) => {
      const target = io.sockets.sockets.get(to);
      if (target === undefined) socket.emit("error-message", "target_not_found");
      else target.emit(type, socket.id, payload);
    });
  }
  socket.on("disconnect", () => io.to(topic).emit("peer-left", socket.id));
});
