"""Tests of the load tools: ``make test-benchmarks``."""
