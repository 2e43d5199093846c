"""Commands beside the server: probe, health check, tokens for trying."""
