"""What tests of real processes and the benchmarks share: servers, Redis, faults, clients and the delivery log.

Nothing here needs pytest.
"""
