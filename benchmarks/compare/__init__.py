"""The server beside its peers: ``python -m benchmarks.compare`` (docs/performance.md)."""
