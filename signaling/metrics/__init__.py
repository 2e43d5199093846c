"""Metrics for Prometheus, of one process or of all workers together."""
