"""Limits: fixed, and checked with their names."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import pytest

from signaling.limits import Limits


def test_limits_are_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().max_message_bytes = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_message_bytes", 0, "max_message_bytes: 0 is not a whole number from 1 up"),
        ("high_water_messages", -1, "high_water_messages: -1 is not"),
        ("high_water_bytes", 1000, "high_water_bytes: 1000 is less than one message of 65536 bytes"),
        ("ping_timeout_seconds", 0, "ping_timeout_seconds: 0 is not more than 0 and at most 86400 seconds"),
        ("ping_interval_seconds", -1, "ping_interval_seconds: -1 is not from 0 to 86400 seconds"),
        ("write_timeout_seconds", float("nan"), "write_timeout_seconds: nan is not"),
        ("shutdown_timeout_seconds", float("inf"), "shutdown_timeout_seconds: inf is not"),
    ],
)
def test_invalid_limits_are_named(name: str, value: float, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        Limits(**{name: value})
