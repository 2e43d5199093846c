"""Load tools: ``python -m benchmarks.soak`` and ``python -m benchmarks.flood`` (docs/soak.md)."""
