"""Load tools, each a module to run: ``python -m benchmarks.soak`` (docs/soak.md), ``benchmarks.compare``, and more."""
