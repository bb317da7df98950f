"""The Hessian of a loss through its products with vectors: trace, norm and effective rank, each with its error.

Nothing here knows a model: a Hessian is a function from v (d,) to A v (d,), exact or from two gradients. Lanczos'
recurrence on random vectors gives the largest eigenvalues and, as a quadrature of the spectrum, the trace of any
function of the Hessian. Sources: Golub, Meurant, "Matrices, Moments and Quadrature", 2010; Hutchinson 1990; Ubaru,
Chen, Saad, SIAM J. Matrix Anal. Appl. 2017.

Legend: d elements of theta, n steps of the recurrence, k random vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]
"""From theta (d,) to the gradient (d,)."""
Product = Callable[[Tensor], Tensor]
"""From v (d,) to A v (d,)."""

STEPS_TRIED = tuple(2.0**-i for i in range(12, 0, -2))
"""Sizes |h v| of the step between two gradients, in units of 1 + |theta|."""

BREAKDOWN = 100
"""A remainder so many units of rounding in size is nothing but rounding."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error; NaN where it was measured once."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3g} +/- {self.error:.1g}"


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What k runs of the recurrence say about a symmetric matrix A.

    Args:
        trace: tr A.
        absolute_trace: tr |A|, the sum of the sizes of the eigenvalues; equal to the trace if A has no negative one.
        positive_trace: the sum of the positive eigenvalues.
        largest: the largest eigenvalue.
        smallest: the smallest.
        norm_error: within this distance of each extreme value there is an eigenvalue for certain.
    """

    trace: Estimate
    absolute_trace: Estimate
    positive_trace: Estimate
    largest: float
    smallest: float
    norm_error: float

    @property
    def norm(self) -> float:
        """Largest size of an eigenvalue."""
        return max(abs(self.largest), abs(self.smallest))

    @property
    def effective_rank(self) -> Estimate:
        """tr A / |A|, the local effective rank of the theory."""
        return self.per_norm(self.trace)

    def per_norm(self, trace: Estimate) -> Estimate:
        """A trace in units of the norm; the errors of both are independent."""
        if self.norm == 0:
            return Estimate(0.0, 0.0)
        value = trace.value / self.norm
        return Estimate(value, math.hypot(trace.error, value * self.norm_error) / self.norm)


@dataclass(frozen=True, slots=True, eq=False)
class _Quadrature:
    """One run of the recurrence: eigenvalues of the small matrix and the weights of the start vector on them."""

    nodes: Tensor  # (n,) float64, ascending
    weights: Tensor  # (n,) float64, summing to |start|^2
    errors: Tensor  # (n,) float64, how far from each node an eigenvalue is at most

    def integral(self, function: Callable[[Tensor], Tensor]) -> float:
        """start' f(A) start."""
        return float((function(self.nodes) * self.weights).sum())


def spectrum(product: Product, starts: Sequence[Tensor], steps: int) -> Spectrum:
    """Trace, norm and effective rank of A.

    The trace is exact in each run of the recurrence, whatever the number of steps, but for the random start; the other
    traces also have the quadrature's error, which falls fast with the steps.

    Args:
        product: v to A v.
        starts: k vectors (d,) of independent elements with mean 0 and variance 1; signs give the smallest error.
        steps: of the recurrence, n, at most d.
    """
    runs = [lanczos(product, start, steps) for start in starts]
    top = max(runs, key=lambda run: float(run.nodes[-1]))
    bottom = min(runs, key=lambda run: float(run.nodes[0]))
    largest, smallest = float(top.nodes[-1]), float(bottom.nodes[0])
    return Spectrum(
        trace=_mean([run.integral(_same) for run in runs]),
        absolute_trace=_mean([run.integral(torch.abs) for run in runs]),
        positive_trace=_mean([run.integral(torch.relu) for run in runs]),
        largest=largest,
        smallest=smallest,
        norm_error=float(top.errors[-1] if abs(largest) >= abs(smallest) else bottom.errors[0]),
    )


def lanczos(product: Product, start: Tensor, steps: int) -> _Quadrature:
    """The recurrence from one vector, which keeps three vectors only.

    Without reorthogonalisation eigenvalues that have converged come again, which splits weights but changes neither the
    extreme values nor an integral.
    """
    v, before = start / start.norm(), torch.zeros_like(start)
    diagonal: list[float] = []
    beside: list[float] = []  # beside[i] couples i and i + 1
    for _ in range(min(steps, len(start))):
        w = product(v)
        diagonal.append(float(w @ v))
        w = w - diagonal[-1] * v - (beside[-1] if beside else 0.0) * before
        beside.append(float(w.norm()))
        if beside[-1] <= BREAKDOWN * torch.finfo(start.dtype).eps * max(map(abs, diagonal)):
            break  # the start has no further part; what is left is rounding
        before, v = v, w / beside[-1]
    small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside[:-1], dtype=torch.float64)
    nodes, vectors = torch.linalg.eigh(small + torch.diag(off, 1) + torch.diag(off, -1))
    weights = vectors[0].square() * float(start.double().square().sum())
    return _Quadrature(nodes, weights, beside[-1] * vectors[-1].abs())


def product_by_differences(gradient: Gradient, theta: Tensor, step: float) -> Product:
    """A v from two gradients: (grad(theta + h v) - grad(theta - h v)) / (2 h), h |v| = step.

    The error is O(step^2) from fourth derivatives of the loss and O(1 / step) from rounding.
    """

    def product(v: Tensor) -> Tensor:
        h = step / float(v.norm())
        return (gradient(theta + h * v) - gradient(theta - h * v)) / (2 * h)

    return product


def choose_step(gradient: Gradient, theta: Tensor, v: Tensor) -> tuple[float, float]:
    """The step of `product_by_differences` whose product differs least from that of twice the step.

    Returns the step and that difference in units of the product: an estimate of the product's relative error.
    """
    scale = 1 + float(theta.norm())
    found = []
    for share in STEPS_TRIED:
        small, large = (product_by_differences(gradient, theta, k * share * scale)(v) for k in (1, 2))
        found.append((float((small - large).norm() / small.norm().clamp_min(1e-30)), share * scale))
    error, step = min(found)
    return step, error


def _same(x: Tensor) -> Tensor:
    return x


def _mean(values: Sequence[float]) -> Estimate:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, math.nan)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)))
