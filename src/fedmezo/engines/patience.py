"""How long a round waits for the clients that have not reported yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

SECONDS_OF_GRACE = 60.0
SECONDS_TO_LOAD = 600.0
"""In the first round, in which the sites load their models and no time is known yet."""
TIMES_USUAL = 10.0
ROUNDS_REMEMBERED = 5
MOST_DOUBLINGS = 6


class Patience:
    """The deadline of a round, in seconds from its first task.

    It is given, or follows from the time in which half of the clients reported in the last rounds: those who dawdle
    cannot move that as long as they are not the half.

    Args:
        seconds: the deadline; None for one by measurement.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._usual: deque[float] = deque(maxlen=ROUNDS_REMEMBERED)

    def deadline(self, last: float) -> float:
        """When the round in hand is to close if enough have reported, the last of them after `last` seconds."""
        if self._seconds is not None:
            return self._seconds
        if not self._usual:
            return SECONDS_TO_LOAD + TIMES_USUAL * last
        return SECONDS_OF_GRACE + TIMES_USUAL * median(self._usual)

    @staticmethod
    def growth(tries: int) -> int:
        """How many deadlines the nth try of a round with too few reports lasts."""
        return 1 << min(tries - 1, MOST_DOUBLINGS)

    def learn(self, seconds: Sequence[float]) -> None:
        """Note after how many seconds each report of a round came."""
        if seconds:
            self._usual.append(sorted(seconds)[len(seconds) // 2])
