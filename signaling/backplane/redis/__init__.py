"""A store for a cluster on Redis: connections, discovery, TLS, scripts."""
