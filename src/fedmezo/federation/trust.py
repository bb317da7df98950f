"""Trust in the rate: a round that makes the train loss jump is not taken, and the rate shrinks.

A jump is a mean train loss beyond what the last rounds explain: their mean and spread. The reports of such a round get
the weight 0, so that theta stays where it was, and every later rate is half as large. A second jump in a row is taken
all the same, as the level from which further rounds are judged: the state itself may be what is bad. All of this
follows from the journal's records, and what comes of it stands there as weights and rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedmezo.records import RoundRecord

WINDOW = 8
"""Rounds that a loss is judged by."""

SPREADS = 4.0
"""Standard deviations of their losses above their mean, and at least"""
SMALLEST_JUMP = 0.25
"""this share of the mean, that a loss may have."""
FEWEST = 3
"""With fewer rounds to judge by, a jump is a loss of twice their mean."""

SHRINK = 0.5
"""What a jump leaves of the rate."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What is left of the rate, and why.

    Args:
        share: of the rate.
        losses: mean train losses of the last rounds that were taken, at most `WINDOW`, newest last.
        dropped: whether the last round was not taken.
    """

    share: float = 1.0
    losses: tuple[float, ...] = ()
    dropped: bool = False

    @property
    def limit(self) -> float:
        """The largest loss that the last rounds explain; infinite where there are none."""
        if not self.losses:
            return math.inf
        mean = sum(self.losses) / len(self.losses)
        spread = math.sqrt(sum((loss - mean) ** 2 for loss in self.losses) / len(self.losses))
        return mean + max(SPREADS * spread, (SMALLEST_JUMP if len(self.losses) >= FEWEST else 1.0) * mean)

    def takes(self, loss: float) -> bool:
        """Whether a round of this mean train loss is taken."""
        return self.dropped or loss <= self.limit

    def after(self, loss: float) -> Trust:
        """The trust after a round."""
        if not self.takes(loss):
            return replace(self, share=self.share * SHRINK, dropped=True)
        known = self.losses if loss <= self.limit else ()  # else the loss is a new level
        return replace(self, losses=(*known, loss)[-WINDOW:], dropped=False)


def train_loss(record: RoundRecord) -> float:
    """The mean train loss of a round over its examples."""
    parts = record.contributions
    return sum(part.train_loss * part.num_examples for part in parts) / sum(part.num_examples for part in parts)
