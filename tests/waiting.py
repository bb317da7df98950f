"""Waiting in tests: for something to happen, never for a time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 900.0
"""Seconds after which something that takes a moment is taken to happen no more, on however busy a machine."""
_SECONDS_BETWEEN_LOOKS = 0.02


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> float:
    """Wait for a condition; returns how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"{what}: not within {seconds:g} s"
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return time.monotonic() - started
