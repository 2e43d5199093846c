"""The server beside its peers: ``python -m benchmarks.compare`` (docs/benchmark.md)."""
