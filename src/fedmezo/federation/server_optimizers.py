"""What the server does with the average of the updates: take it as it is, or as a gradient for an optimiser of its own.

Every optimiser is a pure step over explicit moments. With Delta the weighted mean of the clients' updates:

- FedAvg (McMahan et al. 2017): theta += Delta.
- FedAvgM (Hsu et al. 2019): v = momentum v + Delta; theta += lr v.
- FedAdam (Reddi et al. 2021, algorithm 2): m = momentum m + (1 - momentum) Delta; v = beta2 v + (1 - beta2) Delta^2;
  theta += lr m / (sqrt(v) + tau). Without bias correction, and v starts at tau^2.
- FedYogi (the same): but v -= (1 - beta2) Delta^2 sign(v - Delta^2).

Every product, sum, root and quotient is an operation of its own, rounded once, and every constant has 16 significant
bits: so all devices get the same bits, and whoever regenerates Delta has the server's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmezo.zo.arithmetic import round_coefficient

FEDAVG = "FedAvg"

Moments = Mapping[str, Tensor]
"""What an optimiser remembers between rounds, by name, each (d,) float32."""

NO_MOMENTS: Moments = {}
"""What it remembers before the first."""


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
    rate, momentum = round_coefficient(optimizer.lr), round_coefficient(optimizer.momentum)
    if optimizer.method == "FedAvgM":
        velocity = moments.get("velocity", torch.zeros_like(theta)).mul(momentum).add_(delta)
        theta.add_(velocity.mul(rate))
        return {"velocity": velocity}
    tau = round_coefficient(optimizer.tau)
    first = moments.get("first", torch.zeros_like(theta)).mul(momentum)
    first.add_(delta.mul(round_coefficient(1 - optimizer.momentum)))
    before = moments.get("second", torch.full_like(theta, round_coefficient(tau**2)))
    second = _SECOND_MOMENTS[optimizer.method](before, delta.mul(delta), optimizer.beta2)
    theta.add_(first.div(second.sqrt().add_(tau)).mul_(rate))
    return {"first": first, "second": second}


def _adam(second: Tensor, squared: Tensor, beta2: float) -> Tensor:
    return second.mul(round_coefficient(beta2)).add_(squared.mul(round_coefficient(1 - beta2)))


def _yogi(second: Tensor, squared: Tensor, beta2: float) -> Tensor:
    return second - squared.mul(round_coefficient(1 - beta2)).mul_(torch.sign(second - squared))


_SECOND_MOMENTS = {"FedAdam": _adam, "FedYogi": _yogi}

_MOMENT_NAMES = {"FedAvgM": ("velocity",), "FedAdam": ("first", "second"), "FedYogi": ("first", "second")}


def moment_names(optimizer: ServerOptimizer) -> tuple[str, ...]:
    """What an optimiser remembers, in the order of the names."""
    return _MOMENT_NAMES.get(optimizer.method, ())
