"""The signaling server on a port: one protocol for each connection, and the factory that owns the topics."""
