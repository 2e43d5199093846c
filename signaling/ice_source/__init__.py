"""ICE servers from a provider's HTTP API, for the peers of this server (docs/turn.md)."""
