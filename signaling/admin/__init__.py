"""The admin API: HTTP for operators and back ends, on a port of its own (docs/admin.md)."""
