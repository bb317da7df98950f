"""A tunable model small enough to compute by hand: a quadratic around a point that each example sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedmezo.records import Batch, Segment
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint
from fedmezo.zo.local import FlatThetas, LocalThetas
from fedmezo.zo.noise import Directions, Noise

SHAPES = ((2, 3), (4,))
SIZE = 10


def toy_segments() -> tuple[Segment, ...]:
    return (Segment("a", SHAPES[0], 0), Segment("b", SHAPES[1], 6))


def two_point(eps: float = 1e-3, queries: int = 1, noise: Directions | None = None, clip: float = 0.0) -> TwoPoint:
    return TwoPoint(Settings(eps, queries, noise or Noise(), clip))


def toy_batch(*examples: int) -> Batch:
    ids = torch.tensor([[example] for example in examples])
    return Batch(ids, torch.ones_like(ids), ids)


@dataclass
class Quadratic:
    """L(theta; e) = 0.5 sum_i s_i (theta_i - t_i(e))^2, averaged over the batch: `Differentiable` and `Tunable`."""

    live: Tensor = field(default_factory=lambda: torch.zeros(SIZE, requires_grad=True))
    calls: list[int] = field(default_factory=list)  # lanes of each call of `losses`
    poison: set[int] = field(default_factory=set)  # examples whose loss is NaN

    scales = torch.linspace(0.5, 2.0, SIZE)
    segments = toy_segments()
    device = torch.device("cpu")

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        targets = torch.sin(batch.input_ids.to(theta.dtype) * torch.arange(1, SIZE + 1))  # (b, d)
        loss = 0.5 * (self.scales * (theta - targets) ** 2).sum(1).mean()
        bad = self.poison.intersection(batch.input_ids.flatten().tolist())
        return loss * float("nan") if bad else loss

    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        self.calls.append(len(thetas))
        return torch.stack([self.loss(theta, batch) for theta, batch in zip(thetas, batches, strict=True)]).detach()

    def local_thetas(self, theta: Tensor, members: int, noise: Directions, copies: int) -> LocalThetas:
        return FlatThetas(self, theta, members, noise, copies)

    def example_losses(self, theta: Tensor, batch: Batch) -> list[float]:
        return [float(self.loss(theta, toy_batch(int(row)))) for row in batch.input_ids]

    def parameters(self) -> list[Tensor]:
        return [self.live]

    def load(self, theta: Tensor) -> None:
        self.live.data.copy_(theta)

    def flat(self) -> Tensor:
        return self.live.detach().clone()

    def training_loss(self, batch: Batch) -> Tensor:
        return self.loss(self.live, batch)


@dataclass(frozen=True)
class ToyData:
    """Client c visits the examples 10 c, 10 c + 1, ... in batches of two."""

    client: int
    num_batches: int = 4
    num_examples: int = 8

    def batches(self, round_index: int) -> list[Batch]:
        first = 10 * self.client + round_index
        return [toy_batch(first + 2 * i, first + 2 * i + 1) for i in range(self.num_batches)]
