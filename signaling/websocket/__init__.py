"""WebSocket connections for any application: handshake, frames, a bounded queue in front of the transport."""
