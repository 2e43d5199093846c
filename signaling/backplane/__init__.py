"""How several nodes serve one topic together (docs/cluster-design.md)."""
