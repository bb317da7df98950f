"""How far a mean or a share can be trusted: 95 % intervals, and the 90 % intervals of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# 97.5 % and 95 % quantiles of Student's t by degrees of freedom from 1; beyond a table that of the normal distribution.
_T = {
    95: (
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ),
    90: (
        6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753,
        1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697,
    ),
}  # fmt: skip
_NORMAL = {95: 1.960, 90: 1.645}
_Z = _NORMAL[95]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the ends of its interval, which are not numbers where the observations say nothing of them."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the distance between the ends."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], level: int = 95) -> Interval:
    """The mean of independent observations, of which there is at least one, with Student's interval of 95 or 90 %."""
    mean = fmean(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Interval(mean, math.nan, math.nan)
    degrees = len(values) - 1
    table = _T[level]
    quantile = table[degrees - 1] if degrees <= len(table) else _NORMAL[level]
    reach = quantile * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach)


def share_interval(successes: int, trials: int) -> Interval:
    """The share of successes with Wilson's interval (1927), which stays within 0 and 1."""
    share = successes / trials
    spread = _Z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    reach = _Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return Interval(share, max(0.0, centre - reach), min(1.0, centre + reach))
