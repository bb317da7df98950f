"""How the rate changes over the rounds, whatever the strategy says of a client: a share of its rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateSchedule:
    """The share of the rate in each round, from 1 down to `floor`, after a straight rise.

    Args:
        name: `constant`, `linear`, `cosine` or `step`.
        rounds: of the run.
        warmup_rounds: of the rise from 0 to 1; the first round already has a share.
        floor: what is left at the end.
        step_rounds: between two falls of `step`.
        step_factor: what each of them leaves.
    """

    name: str = "constant"
    rounds: int = 1
    warmup_rounds: int = 0
    floor: float = 0.0
    step_rounds: int = 10
    step_factor: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in _SHARES:
            raise ValueError(f"schedule {self.name!r} is unknown; it is one of {', '.join(_SHARES)}")

    def share(self, round_index: int) -> float:
        """The share in a round; above 0 in every round of the run."""
        if round_index < self.warmup_rounds:
            return (round_index + 1) / (self.warmup_rounds + 1)
        return _SHARES[self.name](self, round_index - self.warmup_rounds)

    def falling(self, shape: float) -> float:
        """Between 1 and the floor, for a shape between 1 and 0."""
        return self.floor + (1 - self.floor) * shape

    def progress(self, since: int) -> float:
        """How much of the fall lies behind, from 0 to below 1, so many rounds after the rise."""
        return min(since / max(1, self.rounds - self.warmup_rounds), 1.0)


_SHARES: dict[str, Callable[[RateSchedule, int], float]] = {
    "constant": lambda schedule, since: 1.0,
    "linear": lambda schedule, since: schedule.falling(1 - schedule.progress(since)),
    "cosine": lambda schedule, since: schedule.falling((1 + math.cos(math.pi * schedule.progress(since))) / 2),
    "step": lambda schedule, since: schedule.step_factor ** (since // schedule.step_rounds),
}

CONSTANT = RateSchedule()
"""The strategy's rate in every round."""
