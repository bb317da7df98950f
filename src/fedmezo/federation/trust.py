"""Trust in the rate: a round that makes the train loss jump is not taken, and the rate shrinks.

A jump is a mean train loss of twice the largest of the last rounds, or of half as much again as the run began with. The
reports of such a round get the weight 0, so that theta stays where it was, and every later rate is half as large. A
second jump in a row is taken all the same, as the level from which further rounds are judged: the state itself may be
what is bad. All of this follows from the journal's records, and what comes of it stands there as weights and rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedmezo.records import RoundRecord

WINDOW = 8
"""Rounds that a loss is judged by."""

JUMP = 2.0
"""Times the largest of their losses is a jump: the mean loss over a round's few batches varies by less."""

WORST = 1.5
"""Times the loss of the first round, which a run that learns never comes back to."""

SHRINK = 0.5
"""What a jump leaves of the rate."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What is left of the rate, and why.

    Args:
        share: of the rate.
        first: mean train loss of the first round; infinite before it.
        losses: mean train losses of the last rounds that were taken, at most `WINDOW`, newest last.
        dropped: whether the last round was not taken.
    """

    share: float = 1.0
    first: float = math.inf
    losses: tuple[float, ...] = ()
    dropped: bool = False

    @property
    def limit(self) -> float:
        """The largest loss that is no jump; infinite in the first round."""
        return min(JUMP * max(self.losses, default=math.inf), WORST * self.first)

    def takes(self, loss: float) -> bool:
        """Whether a round of this mean train loss is taken."""
        return self.dropped or loss <= self.limit

    def after(self, loss: float) -> Trust:
        """The trust after a round."""
        if not self.takes(loss):
            return replace(self, share=self.share * SHRINK, dropped=True)
        known = self.losses if loss <= self.limit else ()  # else the loss is a new level
        first = loss if math.isinf(self.first) else self.first
        return replace(self, first=first, losses=(*known, loss)[-WINDOW:], dropped=False)


def train_loss(record: RoundRecord) -> float:
    """The mean train loss of a round over its examples."""
    weighed = [(part.train_loss, part.num_examples) for part in record.contributions]
    weighed += [(part.train_loss, part.weight) for part in record.groups]
    return sum(loss * weight for loss, weight in weighed) / sum(weight for _, weight in weighed)
