"""The two-point estimate (MeZO), the paper's: a pair of losses around theta for each random direction.

Source: Ling et al., KDD 2024, section 3; Malladi et al., NeurIPS 2023, definition 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedmezo.records import Batch
from fedmezo.zo.estimators.protocol import Settings, all_finite
from fedmezo.zo.local import Probe
from fedmezo.zo.replay import Address, Move, Pace, linear_moves

LARGEST_LOSS_CHANGE = 100.0
"""In nats per token. No perturbation changes a usable loss by more: a larger scalar is absurd and refused."""


@dataclass(frozen=True, slots=True)
class TwoPoint:
    """g_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps) for each of q directions: 2 q forward passes."""

    settings: Settings = field(default_factory=Settings)

    @property
    def directions(self) -> int:
        """One for each query."""
        return self.settings.queries

    @property
    def losses_per_step(self) -> int:
        """Two for each direction."""
        return 2 * self.settings.queries

    @property
    def passes(self) -> int:
        """As many as losses: each is of the whole batch."""
        return self.losses_per_step

    @property
    def largest(self) -> float:
        """The clip, or what an absurd change of the loss gives."""
        return self.settings.clip or LARGEST_LOSS_CHANGE / (2 * self.settings.eps)

    def probes(self, address: Address, step: int, batch: Batch) -> list[Probe]:
        """Theta + eps z and theta - eps z, direction by direction."""
        eps = self.settings.step_size
        streams = [address.stream(step, query) for query in range(self.directions)]
        return [Probe(batch, stream, amount) for stream in streams for amount in (eps, -eps)]

    def scalars(self, losses: Sequence[float]) -> tuple[float, ...] | None:
        """The projected gradient g of each direction."""
        if not all_finite(losses):
            return None
        return tuple(map(self.settings.to_scalar, self.differences(losses)))

    def differences(self, losses: Sequence[float]) -> tuple[float, ...]:
        """The projected gradient g of each direction before it is clipped and rounded."""
        width = 2 * self.settings.step_size
        return tuple((plus - minus) / width for plus, minus in zip(losses[::2], losses[1::2], strict=True))

    def train_loss(self, losses: Sequence[float]) -> float:
        """The mean of all losses."""
        return sum(plus + minus for plus, minus in zip(losses[::2], losses[1::2], strict=True)) / len(losses)

    def moves(self, pace: Pace, scalars: Sequence[float], address: Address, from_step: int = 0) -> list[Move]:
        """Theta -= rate g_j z_j / q for each direction."""
        scale_free = self.settings.scale_free
        return linear_moves(pace, scalars, address, self.directions, from_step, scale_free=scale_free)
