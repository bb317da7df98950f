"""Other methods as their authors publish them, written anew from their formulas, with torch's own random numbers.

Clients take part in every round, with as many local steps and the same batches as ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.convergence.task import Progress, Task
from fedmezo.records import Batch

SEEDS = 4096
"""K of FedKSeed, as published."""

PERTURBATIONS = 5
"""P of DeComFL, as its tables."""


def mezo_fedavg(task: Task, rate: float) -> Iterator[Progress]:
    """MeZO steps on each client, FedAvg of the weights (FedMeZO without scalars; 4 bytes a parameter each way)."""
    theta, generator, eps = task.start, _generator(task), task.config.train.zo.scale
    weights, passes, sent = _weights(task), 0, 0
    for steps in _rounds(task):
        locals_ = theta.repeat(len(weights), 1)  # (N, d)
        for batches in steps:
            z = torch.randn(locals_.shape, generator=generator)
            g = (_losses(task, locals_ + eps * z, batches) - _losses(task, locals_ - eps * z, batches)) / (2 * eps)
            locals_ -= rate * g[:, None] * z
            passes += 2 * len(batches)
        theta = weights @ locals_
        sent += 2 * len(weights) * 4 * len(theta)
        yield Progress(passes, sent, theta)


def fedkseed(task: Task, rate: float) -> Iterator[Progress]:
    """FedKSeed (Qin et al., ICML 2024): directions from K seeds; what travels is the sum of g for each seed."""
    theta, generator, eps = task.start, _generator(task), task.config.train.zo.scale
    weights, passes, sent = _weights(task), 0, 0
    for steps in _rounds(task):
        locals_ = theta.repeat(len(weights), 1)
        sums: dict[int, float] = {}  # of weight x g, by seed
        for batches in steps:
            seeds = torch.randint(SEEDS, (len(weights),), generator=generator).tolist()
            z = torch.stack([_direction(seed, len(theta)) for seed in seeds])
            g = (_losses(task, locals_ + eps * z, batches) - _losses(task, locals_ - eps * z, batches)) / (2 * eps)
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
    theta, generator, eps = task.start, _generator(task), task.config.train.zo.scale
    weights, passes, sent = _weights(task), 0, 0
    for steps in _rounds(task):
        locals_ = theta.repeat(len(weights), 1)
        for batches in steps:
            z = torch.randn(PERTURBATIONS, len(theta), generator=generator)
            here = _losses(task, locals_, batches)
            g = torch.stack([(_losses(task, locals_ + eps * one, batches) - here) / eps for one in z])  # (P, N)
            locals_ -= rate / PERTURBATIONS * g.mT @ z
            theta = theta - rate / PERTURBATIONS * (g @ weights) @ z
            passes += (PERTURBATIONS + 1) * len(batches)
        sent += len(weights) * 2 * 4 * PERTURBATIONS * len(steps)
        yield Progress(passes, sent, theta)


def _rounds(task: Task) -> Iterator[list[list[Batch]]]:
    """For each round, for each step, a batch of every client."""
    index = 0
    while True:
        drawn = [shard.batches(index) for shard in task.shards.values()]
        yield [[batches[step] for batches in drawn] for step in range(len(drawn[0]))]
        index += 1


def _weights(task: Task) -> Tensor:
    counts = torch.tensor([1.0] * len(task.shards))  # as many steps of as many examples each
    return counts / counts.sum()


def _losses(task: Task, thetas: Tensor, batches: Sequence[Batch]) -> Tensor:
    return task.model.losses(thetas, batches).clone()


def _generator(task: Task) -> torch.Generator:
    return torch.Generator().manual_seed(task.config.seed + 1)


def _direction(seed: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))
