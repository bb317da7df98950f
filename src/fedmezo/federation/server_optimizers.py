"""What the server does with the average of the updates: take it as it is, or as a gradient for an optimiser of its own.

Every optimiser is a pure step over explicit moments. With Delta the weighted mean of the clients' updates:

- FedAvg (McMahan et al. 2017): theta += Delta.
- FedAvgM (Hsu et al. 2019): v = momentum v + Delta; theta += lr v.
- FedAdam (Reddi et al. 2021, algorithm 2): m = momentum m + (1 - momentum) Delta; v = beta2 v + (1 - beta2) Delta^2;
  theta += lr m / (sqrt(v) + tau). Without bias correction, and v starts at tau^2.
- FedYogi (the same): but v -= (1 - beta2) Delta^2 sign(v - Delta^2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FEDAVG = "FedAvg"

Moments = Mapping[str, Tensor]
"""What an optimiser remembers between rounds, by name, each (d,) float32."""


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """Which optimiser, and its settings.

    Args:
        method: `FedAvg`, `FedAvgM`, `FedAdam` or `FedYogi`.
        lr: the server's rate; FedAvg has none.
        momentum: of FedAvgM; beta_1 of the others.
        beta2: how much of the second moment stays.
        tau: added to its root.
    """

    method: str = FEDAVG
    lr: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3


PLAIN_AVERAGE = ServerOptimizer()


def server_step_(theta: Tensor, delta: Tensor, moments: Moments, optimizer: ServerOptimizer) -> dict[str, Tensor]:
    """Move theta (d,) in place by the average update delta (d,); returns the moments for the next round."""
    if optimizer.method == FEDAVG:
        theta.add_(delta)
        return {}
    if optimizer.method == "FedAvgM":
        velocity = moments.get("velocity", torch.zeros_like(theta)) * optimizer.momentum + delta
        theta.add_(velocity, alpha=optimizer.lr)
        return {"velocity": velocity}
    first = moments.get("first", torch.zeros_like(theta)).lerp(delta, 1 - optimizer.momentum)
    second = _SECOND_MOMENTS[optimizer.method](
        moments.get("second", torch.full_like(theta, optimizer.tau**2)), delta.square(), optimizer.beta2
    )
    theta.addcdiv_(first, second.sqrt().add_(optimizer.tau), value=optimizer.lr)
    return {"first": first, "second": second}


def _adam(second: Tensor, squared: Tensor, beta2: float) -> Tensor:
    return second.lerp(squared, 1 - beta2)


def _yogi(second: Tensor, squared: Tensor, beta2: float) -> Tensor:
    return second - (1 - beta2) * squared * torch.sign(second - squared)


_SECOND_MOMENTS = {"FedAdam": _adam, "FedYogi": _yogi}
