"""What all tests share: how hard property tests look, whether coverage watches them, and the signals of programs."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

# A shell starts a job in the background with SIGINT ignored, and every program that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine, making an example may take any time.
ANY_TIME = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# ``make test`` is quick and repeats itself, ``thorough`` takes its time.
settings.register_profile("suite", ANY_TIME, max_examples=50, derandomize=True)
settings.register_profile("thorough", ANY_TIME, max_examples=2000, print_blob=True)
settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave property tests unmeasured: they run the same lines again and again, and Hypothesis more than these."""
    for item in items:
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.unmeasured)
