"""What an estimator is: the losses a step asks for, the scalars that follow from them, and where these lead.

Everything that an estimator decides follows from the losses it asked for, so it knows no model, no theta and no device.
What a client reports are its scalars; moves are a pure function of them, which client, server, replay, catch-up and the
model-diff strategy share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedmezo.records import Batch
from fedmezo.zo.arithmetic import round_coefficient, round_scalar
from fedmezo.zo.local import Probe
from fedmezo.zo.noise import MAX_QUERIES, Directions, Noise
from fedmezo.zo.replay import Address, Move, Pace


@dataclass(frozen=True, slots=True)
class Settings:
    """What all estimators take.

    Args:
        eps: size of the perturbation, the paper's mu.
        queries: directions per step, or per row of the batch where an estimator gives each row its own; the paper
            uses 1.
        noise: distribution of the directions.
        clip: largest size of a scalar; 0 for no limit.
        scale_free: a move goes as far as its scalar is large beside the scalars before it.
    """

    eps: float = 1e-3
    queries: int = 1
    noise: Directions = field(default_factory=Noise)
    clip: float = 0.0
    scale_free: bool = False

    def __post_init__(self) -> None:
        if not (self.eps > 0 and round_coefficient(self.eps) > 0):
            raise ValueError(f"eps {self.eps} must be positive")
        if not 1 <= self.queries < MAX_QUERIES:
            raise ValueError(f"queries {self.queries} must be from 1 to {MAX_QUERIES - 1}")
        if self.clip < 0:
            raise ValueError(f"clip {self.clip} must not be negative")

    @property
    def step_size(self) -> float:
        """`eps` as it is applied: of 16 significant bits."""
        return round_coefficient(self.eps)

    def to_scalar(self, value: float) -> float:
        """A value as it is used and sent: clipped if asked, and rounded to bfloat16."""
        if self.clip:
            value = max(-self.clip, min(self.clip, value))
        return round_scalar(value)


class Estimator(Protocol):
    """A way to estimate a gradient."""

    @property
    def settings(self) -> Settings:
        """Eps, queries, noise and clip."""
        ...

    @property
    def directions(self) -> int:
        """Directions of each step, and so its scalars; from 1 to 255."""
        ...

    @property
    def losses_per_step(self) -> int:
        """Losses that a step asks for: what can share a forward pass."""
        ...

    @property
    def passes(self) -> int:
        """Forward passes over a whole batch that a step costs."""
        ...

    @property
    def largest(self) -> float:
        """No honest scalar is larger in size."""
        ...

    def probes(self, address: Address, step: int, batch: Batch) -> list[Probe]:
        """The losses that a step asks for; all at the theta that the client has before it."""
        ...

    def scalars(self, losses: Sequence[float]) -> tuple[float, ...] | None:
        """What the losses of a step's probes, in their order, say about each direction; None if one is not finite.

        Each is exactly representable in bfloat16.
        """
        ...

    def train_loss(self, losses: Sequence[float]) -> float:
        """The loss of a step, as it is reported, from the losses of its probes."""
        ...

    def moves(self, pace: Pace, scalars: Sequence[float], address: Address, from_step: int = 0) -> list[Move]:
        """Where the scalars of a client's round so far lead.

        A pure function in float64: the same on every party, whatever computed the losses.

        Args:
            pace: how far to go.
            scalars: of the client's round so far, step by step; zeros for steps that were skipped.
            address: where the directions are.
            from_step: leave out the moves of the steps before it.
        """
        ...


def all_finite(losses: Sequence[float]) -> bool:
    """Whether every loss is finite."""
    return all(map(math.isfinite, losses))
