"""What all tests share: how hard the property tests look, and which signals the programs receive that they start."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A shell starts a job in the background with SIGINT ignored, and every program that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine, making an example may take any time.
ANY_TIME = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# ``make test`` is quick and repeats itself, ``thorough`` takes its time.
settings.register_profile("suite", ANY_TIME, max_examples=50, derandomize=True)
settings.register_profile("thorough", ANY_TIME, max_examples=2000, print_blob=True)
settings.load_profile("suite")
