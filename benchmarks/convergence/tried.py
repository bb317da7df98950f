"""Methods that were measured and are not in the package: divisors as published, momentum and preconditioners.

Written anew from their formulas, with torch's own random numbers. AdaMeZO and HiSo have one theta, which all clients
move together after every local step: the form in which their state is that of the published algorithms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.convergence.peers import Estimate, averaging, generator_of, losses_of, rounds_of, two_point, weights_of
from benchmarks.convergence.task import Progress, Task
from fedmezo.records import Batch
from fedmezo.zo.estimators.per_example import row_of

QUERIES = 4
"""Directions of a one-sided step."""

WINDOW = 20
"""Steps that AdaMeZO's moments are sums over."""

KEPT, KEPT_SQUARE = 0.9, 0.99
"""Shares of AdaMeZO's moments that stay from one step to the next."""

KEPT_CURVATURE = 0.95
"""Share of HiSo's preconditioner that stays, as published."""

PERTURBATIONS = 5
"""P of HiSo, as of DeComFL."""

BYTES_A_SCALAR = 2


def fzoo(task: Task, rate: float) -> Iterator[Progress]:
    """FZOO (ICLR 2026): one-sided Rademacher directions, the differences over the standard deviation of the losses."""

    def step(locals_: Tensor, batches: Sequence[Batch], generator: torch.Generator) -> tuple[Tensor, int]:
        clients, size = locals_.shape
        z = torch.randint(0, 2, (clients, QUERIES, size), generator=generator).float() * 2 - 1
        thetas = torch.cat([locals_[:, None], locals_[:, None] + task.config.train.zo.scale * z], dim=1)
        repeated = [batch for batch in batches for _ in range(QUERIES + 1)]
        losses = losses_of(task, thetas.flatten(0, 1), repeated).view(clients, -1)
        scalars = (losses[:, 1:] - losses[:, :1]) / losses[:, 1:].std(dim=1, keepdim=True)
        return torch.einsum("nq,nqd->nd", scalars, z) / QUERIES, (QUERIES + 1) * clients

    return averaging(task, rate, step, BYTES_A_SCALAR * QUERIES)


def grzo(task: Task, rate: float) -> Iterator[Progress]:
    """GRZO (arXiv 2606.02857): a direction for each row, the differences over their standard deviation."""
    return averaging(task, rate, _per_row(task, lambda d: d / d.std(dim=1, keepdim=True)), BYTES_A_SCALAR * _rows(task))


def adamezo(task: Task, rate: float) -> Iterator[Progress]:
    """AdaMeZO (ICML 2026) over two-point estimates."""
    return _windowed(task, rate, two_point(task), 1)


def adamezo_per_example(task: Task, rate: float) -> Iterator[Progress]:
    """AdaMeZO's moments over per-example estimates."""
    return _windowed(task, rate, _per_row(task, _over_root_mean_square), _rows(task))


def hiso(task: Task, rate: float) -> Iterator[Progress]:
    """HiSo (ICLR 2026): DeComFL's shared directions, scaled by a diagonal preconditioner from the global scalars."""
    theta, generator, eps = task.start, generator_of(task), task.config.train.zo.scale
    weights, passes, sent = weights_of(task), 0, 0
    square = torch.ones_like(theta)
    for steps in rounds_of(task):
        for batches in steps:
            u = torch.randn(PERTURBATIONS, len(theta), generator=generator) / square.sqrt()
            thetas = torch.cat([theta[None], theta + eps * u]).repeat_interleave(len(batches), dim=0)
            losses = losses_of(task, thetas, [*batches] * (PERTURBATIONS + 1)).view(PERTURBATIONS + 1, -1)
            g = ((losses[1:] - losses[0]) / eps) @ weights  # (P,)
            average = g @ u / PERTURBATIONS
            theta = theta - rate * average
            square = KEPT_CURVATURE * square + (1 - KEPT_CURVATURE) * average.square()
            passes += (PERTURBATIONS + 1) * len(batches)
        sent += len(weights) * 2 * BYTES_A_SCALAR * PERTURBATIONS * len(steps)
        yield Progress(passes, sent, theta)


def _windowed(task: Task, rate: float, estimate: Estimate, scalars: int) -> Iterator[Progress]:
    """Theta -= rate m / sqrt(v), m and v being weighted sums over the last estimates and their squares."""
    theta, generator = task.start, generator_of(task)
    weights, passes, sent = weights_of(task), 0, 0
    window: deque[Tensor] = deque(maxlen=WINDOW)  # newest first
    for steps in rounds_of(task):
        for batches in steps:
            estimates, taken = estimate(theta.repeat(len(weights), 1), batches, generator)
            window.appendleft(weights @ estimates)
            past = torch.stack(tuple(window))
            first, second = _recent_mean(past, KEPT), _recent_mean(past.square(), KEPT_SQUARE)
            theta = theta - rate * first / (second + 1e-12).sqrt()
            passes += taken
        sent += len(weights) * 2 * BYTES_A_SCALAR * scalars * len(steps)
        yield Progress(passes, sent, theta)


def _recent_mean(past: Tensor, kept: float) -> Tensor:
    """The mean of (h, d), newest first, each weighing `kept` times as much as the one after it."""
    shares = kept ** torch.arange(len(past))
    return shares @ past / shares.sum()


def _per_row(task: Task, normalise: Callable[[Tensor], Tensor]) -> Estimate:
    """The mean over rows of normalised differences times their directions."""
    eps, rows = task.config.train.zo.scale, _rows(task)

    def estimate(locals_: Tensor, batches: Sequence[Batch], generator: torch.Generator) -> tuple[Tensor, int]:
        clients, size = locals_.shape
        z = torch.randn(clients, rows, size, generator=generator)
        thetas = torch.stack([locals_[:, None] + eps * z, locals_[:, None] - eps * z], dim=2)  # (N, rows, 2, d)
        probes = [row_of(batch, row) for batch in batches for row in range(rows) for _ in range(2)]
        losses = losses_of(task, thetas.flatten(0, 2), probes).view(clients, rows, 2)
        scalars = normalise(losses[..., 0] - losses[..., 1])
        return torch.einsum("nr,nrd->nd", scalars, z) / rows, 2 * clients

    return estimate


def _over_root_mean_square(differences: Tensor) -> Tensor:
    return differences / differences.square().mean(dim=1, keepdim=True).sqrt()


def _rows(task: Task) -> int:
    return task.config.dataloader.batch_size
