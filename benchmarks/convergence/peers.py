"""Other methods as their authors publish them, written anew from their formulas, with torch's own random numbers.

Clients take part in every round, with as many local steps and the same batches as ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.convergence.task import Progress, Task
from fedmezo.records import Batch

SEEDS = 4096
"""K of FedKSeed, as published."""

PERTURBATIONS = 5
"""P of DeComFL, as its tables."""

BYTES_A_WEIGHT = 4

Estimate = Callable[[Tensor, Sequence[Batch], torch.Generator], tuple[Tensor, int]]
"""From thetas (N, d) and a batch of each client to gradient estimates (N, d), and the forward passes they took."""


def mezo_fedavg(task: Task, rate: float) -> Iterator[Progress]:
    """MeZO steps on each client, FedAvg of the weights (FedMeZO without scalars; 4 bytes a parameter each way)."""
    return averaging(task, rate, two_point(task), BYTES_A_WEIGHT * len(task.start), once=True)


def averaging(task: Task, rate: float, estimate: Estimate, size: int, *, once: bool = False) -> Iterator[Progress]:
    """FedAvg of clients that follow their own estimates.

    Args:
        task: as in any method.
        rate: of the clients.
        estimate: of their gradients.
        size: bytes of what a client sends, and is sent of each: of a step, or `once` a round.
        once: see there.
    """
    theta, generator, weights, passes, sent = task.start, generator_of(task), weights_of(task), 0, 0
    for steps in rounds_of(task):
        locals_ = theta.repeat(len(weights), 1)  # (N, d)
        for batches in steps:
            estimates, taken = estimate(locals_, batches, generator)
            locals_ -= rate * estimates
            passes += taken
        theta = weights @ locals_
        sent += 2 * len(weights) * size * (1 if once else len(steps))
        yield Progress(passes, sent, theta)


def fedkseed(task: Task, rate: float) -> Iterator[Progress]:
    """FedKSeed (Qin et al., ICML 2024): directions from K seeds; what travels is the sum of g for each seed."""
    theta, generator, eps = task.start, generator_of(task), task.config.train.zo.scale
    weights, passes, sent = weights_of(task), 0, 0
    for steps in rounds_of(task):
        locals_ = theta.repeat(len(weights), 1)
        sums: dict[int, float] = {}  # of weight x g, by seed
        for batches in steps:
            seeds = torch.randint(SEEDS, (len(weights),), generator=generator).tolist()
            z = torch.stack([_direction(seed, len(theta)) for seed in seeds])
            g = _slopes(task, locals_, z, batches, eps)
            locals_ -= rate * g[:, None] * z
            for seed, value in zip(seeds, (weights * g).tolist(), strict=True):
                sums[seed] = sums.get(seed, 0.0) + value
            passes += 2 * len(batches)
        for seed, value in sums.items():
            theta = theta - rate * value * _direction(seed, len(theta))
        sent += len(weights) * (8 * len(steps) + 4 * SEEDS)  # pairs of seed and g up, K sums down
        yield Progress(passes, sent, theta)


def decomfl(task: Task, rate: float) -> Iterator[Progress]:
    """DeComFL (Li et al., ICLR 2025): all clients share P directions a step; what travels is g, averaged and back."""
    theta, generator, eps = task.start, generator_of(task), task.config.train.zo.scale
    weights, passes, sent = weights_of(task), 0, 0
    for steps in rounds_of(task):
        locals_ = theta.repeat(len(weights), 1)
        for batches in steps:
            z = torch.randn(PERTURBATIONS, len(theta), generator=generator)
            here = losses_of(task, locals_, batches)
            g = torch.stack([(losses_of(task, locals_ + eps * one, batches) - here) / eps for one in z])  # (P, N)
            locals_ -= rate / PERTURBATIONS * g.mT @ z
            theta = theta - rate / PERTURBATIONS * (g @ weights) @ z
            passes += (PERTURBATIONS + 1) * len(batches)
        sent += len(weights) * 2 * 4 * PERTURBATIONS * len(steps)
        yield Progress(passes, sent, theta)


def two_point(task: Task) -> Estimate:
    """The estimate of MeZO: g z, with one direction for each client."""

    def estimate(locals_: Tensor, batches: Sequence[Batch], generator: torch.Generator) -> tuple[Tensor, int]:
        z = torch.randn(locals_.shape, generator=generator)
        return _slopes(task, locals_, z, batches, task.config.train.zo.scale)[:, None] * z, 2 * len(batches)

    return estimate


def rounds_of(task: Task) -> Iterator[list[list[Batch]]]:
    """For each round, for each step, a batch of every client."""
    index = 0
    while True:
        drawn = [shard.batches(index) for shard in task.shards.values()]
        yield [[batches[step] for batches in drawn] for step in range(len(drawn[0]))]
        index += 1


def weights_of(task: Task) -> Tensor:
    """The weight of each client (N,): equal, since all take as many steps of as many examples."""
    return torch.full((len(task.shards),), 1 / len(task.shards))


def losses_of(task: Task, thetas: Tensor, batches: Sequence[Batch]) -> Tensor:
    """The loss of each theta (n, d) on its batch, (n,)."""
    return task.model.losses(thetas, batches).clone()


def generator_of(task: Task) -> torch.Generator:
    """Random numbers of a run's seed."""
    return torch.Generator().manual_seed(task.config.seed + 1)


def _slopes(task: Task, thetas: Tensor, z: Tensor, batches: Sequence[Batch], eps: float) -> Tensor:
    """The two-point g of each client (N,) along its z (N, d)."""
    plus, minus = losses_of(task, torch.cat([thetas + eps * z, thetas - eps * z]), [*batches, *batches]).chunk(2)
    return (plus - minus) / (2 * eps)


def _direction(seed: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))
