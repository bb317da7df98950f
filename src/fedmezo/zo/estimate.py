"""The two-point zeroth-order estimator (MeZO): one scalar for each random direction.

Source: Ling et al., KDD 2024, section 3; Malladi et al., NeurIPS 2023, definition 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedmezo.zo.arithmetic import round_coefficient, round_scalar
from fedmezo.zo.noise import MAX_QUERIES, Noise


@dataclass(frozen=True, slots=True)
class Estimator:
    """How a client estimates its gradient.

    Args:
        eps: size of the perturbation, the paper's mu.
        queries: directions per step, q; the paper uses 1.
        noise: distribution of the directions.
        clip: largest size of a projected gradient; 0 for no limit.
    """

    eps: float = 1e-3
    queries: int = 1
    noise: Noise = field(default_factory=Noise)
    clip: float = 0.0

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


def perturb(theta: Tensor, z: Tensor, amount: float, out: Tensor | None = None) -> Tensor:
    """Theta + amount z (d,), in `out` or a new tensor; theta is float32, z bfloat16, and the product is exact."""
    return torch.add(theta, z, alpha=amount, out=out)


def projected_gradient(loss_plus: float, loss_minus: float, estimator: Estimator) -> float | None:
    """Return g = (L+ - L-) / (2 eps), clipped if asked and rounded to bfloat16; None where a loss is not finite."""
    if not (math.isfinite(loss_plus) and math.isfinite(loss_minus)):
        return None
    g = (loss_plus - loss_minus) / (2 * estimator.step_size)
    if estimator.clip:
        g = max(-estimator.clip, min(estimator.clip, g))
    return round_scalar(g)
