"""The one-sided estimate with normalised differences (FZOO): one loss for each direction, and one at theta itself.

The differences are divided by their own size, so that a step's length depends neither on eps nor on how steep the loss
is: long where the gradient is small, as on the plateau that tuning often starts from.

Source: FZOO, ICLR 2026. There the divisor is the standard deviation of the losses; here it is the root mean square of
their differences from L(theta). The two agree where the loss is straight. Where it is curved all differences have one
sign, their standard deviation is much smaller than they are, and dividing by it throws theta far away; divided by the
root mean square no scalar is larger than sqrt(q), which the server can check.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedmezo.records import Batch
from fedmezo.zo.estimators.protocol import Settings, all_finite
from fedmezo.zo.local import Probe
from fedmezo.zo.replay import Address, Move, Pace, linear_moves


@dataclass(frozen=True, slots=True)
class OneSided:
    """s_j = (L(theta + eps z_j) - L(theta)) / rms_k (L(theta + eps z_k) - L(theta)): q + 1 forward passes.

    With one direction a scalar is a sign.
    """

    settings: Settings = field(default_factory=Settings)

    @property
    def directions(self) -> int:
        """One for each query."""
        return self.settings.queries

    @property
    def losses_per_step(self) -> int:
        """One for each direction, and one at theta."""
        return self.settings.queries + 1

    @property
    def passes(self) -> int:
        """As many as losses: each is of the whole batch."""
        return self.losses_per_step

    @property
    def largest(self) -> float:
        """The clip, or that of q numbers whose squares sum to q."""
        return self.settings.clip or math.sqrt(self.settings.queries)

    def probes(self, address: Address, step: int, batch: Batch) -> list[Probe]:
        """Theta, then theta + eps z for each direction."""
        eps = self.settings.step_size
        streams = [address.stream(step, query) for query in range(self.directions)]
        return [Probe(batch), *(Probe(batch, stream, eps) for stream in streams)]

    def scalars(self, losses: Sequence[float]) -> tuple[float, ...] | None:
        """The normalised difference of each direction; zeros where all losses are equal."""
        if not all_finite(losses):
            return None
        here, *others = losses
        return tuple(map(self.settings.to_scalar, normalised([loss - here for loss in others])))

    def train_loss(self, losses: Sequence[float]) -> float:
        """The loss at theta."""
        return losses[0]

    def moves(self, pace: Pace, scalars: Sequence[float], address: Address, from_step: int = 0) -> list[Move]:
        """Theta -= rate s_j z_j / q for each direction."""
        scale_free = self.settings.scale_free
        return linear_moves(pace, scalars, address, self.directions, from_step, scale_free=scale_free)


def normalised(differences: Sequence[float]) -> list[float]:
    """The differences over their root mean square; zeros if all are 0."""
    size = math.sqrt(sum(x * x for x in differences) / len(differences))
    return [x / size if size else 0.0 for x in differences]
