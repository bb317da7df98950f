"""What a client tells where its whole part is hidden: clipped scalars under noise, and no loss.

A client's part is the vector of its scalars of a round and one more number, which says whether they were clipped. Its
L2 norm is at most the clip, whatever the client holds; so Gaussian noise of a standard deviation of noise_multiplier x
clip on each word of the sum hides the client (Dwork and Roth 2014; McMahan et al. 2018 for clients). Every client adds
its share of the noise, so that the sum has enough of it once the fewest clients are in it that a sum may have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmezo.federation.sums import FixedPoint, Tally, Words
from fedmezo.privacy.noise import DistributedNoise
from fedmezo.records import Report

FOR_THE_FLAG = 0.1
"""Share of the clip that is left to the number that says whether there was something to clip: it costs 0.5 %."""

NOISE_ROOM = 12.0
"""Standard deviations of noise that words have room for: more comes once in 10^32 draws."""


@dataclass(frozen=True, slots=True)
class ClippedSums:
    """How clipped reports become words; implements `federation.sums.Coding`.

    Args:
        fixed: the words' units; all clients weigh the same.
        clip: largest L2 norm of a client's part.
        noise: of each client, in units.
    """

    fixed: FixedPoint
    clip: float
    noise: DistributedNoise

    @property
    def length(self) -> int:
        """See `Coding`."""
        return self.fixed.length

    @property
    def widths(self) -> tuple[int, ...]:
        """See `Coding`."""
        return self.fixed.widths

    @property
    def fewest(self) -> int:
        """As many as have enough noise together."""
        return self.noise.clients

    def words(self, report: Report) -> Words:
        """A report's scalars, clipped and rounded towards zero, so that the norm stays below the clip, under noise."""
        scalars = np.array(report.scalars or (), dtype=np.float64)
        norm, limit = float(np.linalg.norm(scalars)), self.clip * math.sqrt(1 - FOR_THE_FLAG**2)
        was_clipped = norm > limit
        kept = np.trunc(scalars * (limit / norm if was_clipped else 1.0) / self.fixed.scalar_unit).astype(np.int64)
        flag = self._flag if was_clipped else -self._flag
        words = np.concatenate([kept, np.array([1, flag, 0, 1], np.int64)])
        noise = self.noise.draw(len(kept) + 1)
        words[: len(kept)] += noise[:-1]
        words[len(kept) + 1] += noise[-1]
        return words

    def tally(self, total: Words) -> Tally:
        """See `Coding`; the share that was clipped has noise on it, and may lie outside 0 to 1."""
        _, flags, _, clients = total[self.fixed.scalars :].tolist()
        scalars = total[: self.fixed.scalars].astype(np.float64) * self.fixed.scalar_unit
        share = 0.5 + flags / (2 * self._flag * max(1, clients))
        return Tally(clients, clients, tuple(scalars.tolist()), 0.0, 0, share)

    @property
    def _flag(self) -> int:
        return int(FOR_THE_FLAG * self.clip / self.fixed.scalar_unit)


def clipped_sums(scalars: int, clients: int, fewest: int, clip: float, noise_multiplier: float) -> ClippedSums:
    """How clients' parts are summed so that each of them is hidden.

    Args:
        scalars: of a report.
        clients: that can be in a sum at most.
        fewest: that can be in a sum at least: the noise is enough for them.
        clip: largest L2 norm of a client's part.
        noise_multiplier: standard deviation of the sum's noise in units of the clip.

    Raises:
        ValueError: the noise is too little for whole numbers.
        ConfigError: the clip is too large for them.
    """
    sigma = noise_multiplier * clip
    largest = clip + NOISE_ROOM * sigma / math.sqrt(fewest)
    fixed = FixedPoint(scalars, clients, 1, largest, equal=True)
    return ClippedSums(fixed, clip, DistributedNoise(sigma / fixed.scalar_unit, fewest))


def clipped(vector: Sequence[float], clip: float) -> tuple[float, ...]:
    """A vector of an L2 norm of at most `clip`; 0 is no limit."""
    norm = math.hypot(*vector)
    return tuple(vector) if not clip or norm <= clip else tuple(value * (clip / norm) for value in vector)
