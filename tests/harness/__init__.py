"""What tests and benchmarks share: a transport in memory, real servers, Redis, faults, clients and the delivery log.

Nothing here needs pytest.
"""
