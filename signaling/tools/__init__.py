"""Commands: a probe, a health check, and tokens for trying access control."""
