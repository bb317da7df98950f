"""What measured losses say about eps and the rate: formulas alone, whoever took the measurements.

Legend: k directions, m examples; s = z' grad the derivative along a direction z, g its two-point estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from fedmezo.zo.signal import STEP_RATIO, Signal

FACTOR = 2.0
"""Between two rates that are tried."""

MAX_BURSTS = 16
"""A search over so many powers of `FACTOR` that finds no best rate is given up."""


@dataclass(frozen=True, slots=True)
class GradientError:
    """How far g is from the derivative along its direction at one eps, as root mean squares over directions.

    Args:
        eps: size of the perturbation.
        signal: of the derivative; 0 where it cannot be told from the noise.
        noise: of the error from rounded losses; falls as 1 / eps.
        bias: of the error from the curvature of the slope, third derivatives of the loss; grows as eps^2.
    """

    eps: float
    signal: float
    noise: float
    bias: float

    @property
    def relative(self) -> float:
        """The whole error in units of the signal; infinite without a signal."""
        return math.hypot(self.noise, self.bias) / self.signal if self.signal > 0 else math.inf


def split_errors(signals: Sequence[Signal]) -> list[GradientError]:
    """Tell rounding noise from curvature bias by measurements at eps that grow by `STEP_RATIO`, k.

    What a measurement calls noise, from g at eps and at k eps, holds the bias b = c eps^2 too:

        E(eps)^2 = n^2 + h b^2,   E(k eps)^2 = n^2 / k^2 + h k^4 b^2,   h = (k^2 - 1)^2 / (1 + k^-2),

    so that two neighbours give both. The last measurement has no neighbour and serves the one before it alone.
    """
    k = STEP_RATIO
    share = (k**2 - 1) ** 2 / (1 + k**-2)
    errors = []
    for here, above in pairwise(signals):
        bias2 = max(0.0, (above.noise**2 - here.noise**2 / k**2) / (share * (k**4 - k**-2)))
        noise2 = max(0.0, here.noise**2 - share * bias2)
        errors.append(GradientError(here.eps, here.signal, math.sqrt(noise2), math.sqrt(bias2)))
    return errors


def best_eps(errors: Sequence[GradientError]) -> GradientError:
    """The measurement with the smallest error in units of its signal; the smallest eps of equals."""
    return min(errors, key=lambda error: (error.relative, error.eps))


@dataclass(frozen=True, slots=True)
class StepMoments:
    """Expected values that decide what one step does to the loss, each example a batch of its own.

    A step theta - rate g z changes the loss by -rate slope + rate^2 / 2 resistance on average. On a quadratic of
    Hessian A whose examples have gradients G, slope = |grad|^2 and, for Gaussian z,
    resistance = E|G|^2 tr A + 2 E[G' A G].

    Args:
        slope: E[s g], the square of the gradient's norm, from pairs of different examples.
        slope_error: its standard error.
        power: E[g^2] of a batch.
        curvature: E[z' A z], the trace of the Hessian.
        resistance: E[g^2 z' A z].
        noise: E[g^2] of a single example, less the slope: the variance of its gradient.
    """

    slope: float
    slope_error: float
    power: float
    curvature: float
    resistance: float
    noise: float

    @property
    def critical_batch(self) -> float | None:
        """The batch whose noise equals the gradient's square; None where the gradient cannot be told from the noise.

        Up to it, twice the batch takes half the steps; far beyond it, a larger batch saves none.
        """
        return self.noise / self.slope if self.slope > 2 * self.slope_error else None

    def gain(self, batch: int, larger: int) -> float:
        """How many times as far a step of the best length goes with a larger batch: slope^2 / power on average.

        That is with one direction for all rows: b of them then do the work of `gain(1, b)` steps of one row. With a
        direction for each row they do the work of b.
        """
        return (self.slope + self.noise / batch) / (self.slope + self.noise / larger)

    def change(self, rate: float, directions: int = 1) -> float:
        """Expected change of the loss by a step whose update averages over independent directions and batches.

        The curvature along the gradient itself is left out, which is small beside its trace.
        """
        return -rate * self.slope + rate**2 / 2 * self.resistance / directions

    def best_rate(self, directions: int = 1) -> float | None:
        """The rate of the largest expected decrease; None where no slope or no curvature was found."""
        if self.slope <= 0 or self.resistance <= 0:
            return None
        return directions * self.slope / self.resistance


def step_moments(plus: Tensor, minus: Tensor, base: Tensor, eps: float, batch_size: int = 1) -> StepMoments:
    """The moments from losses of m examples at theta + eps z, theta - eps z and theta.

    Args:
        plus: (k, m) float64, a row for each direction.
        minus: (k, m) float64.
        base: (m,) float64.
        eps: size of the perturbation.
        batch_size: examples that a step averages over.
    """
    k, m = plus.shape
    g = (plus - minus) / (2 * eps)  # (k, m)
    along = (plus + minus - 2 * base).mean(1) / eps**2  # (k,) z' A z
    single = g.square().mean(1)  # (k,) of one example
    pairs = (m * g.mean(1).square() - single) / (m - 1)  # (k,) mean of g g' over pairs of different examples
    power = pairs + (single - pairs) / batch_size  # (k,)
    return StepMoments(
        slope=float(pairs.mean()),
        slope_error=float(pairs.std()) / math.sqrt(k),
        power=float(power.mean()),
        curvature=float(along.mean()),
        resistance=float((power * along).mean()),
        noise=max(0.0, float((single - pairs).mean())),
    )


def useful_batch(critical: float, present: int, most: int) -> int:
    """The present batch, doubled as long as it stays within the critical one and what there is."""
    rows = present
    while 2 * rows <= min(critical, most):
        rows *= 2
    return rows


@dataclass(frozen=True, slots=True)
class Burst:
    """A stretch of training at one rate.

    Args:
        rate: the rate.
        points: (rounds done, loss), from before the first round to the last that was evaluated.
        diverged: the round in which it was given up; None where it went to its end.
    """

    rate: float
    points: tuple[tuple[int, float], ...]
    diverged: int | None = None

    @property
    def before(self) -> float:
        """The loss it started from."""
        return self.points[0][1]

    @property
    def after(self) -> float:
        """The loss it came to; infinite if it diverged."""
        return math.inf if self.diverged is not None else self.points[-1][1]

    @property
    def lowers(self) -> bool:
        """Whether it ended below its start."""
        return self.after < self.before


def search_rate(run: Callable[[float], Burst], start: float) -> Iterator[Burst]:
    """Try rates, a factor apart, until the best has a worse one on either side; yields each burst as it ends.

    From above, since a rate that is too large shows it soon.
    """
    bursts = {0: run(FACTOR * start)}
    yield bursts[0]
    while len(bursts) < MAX_BURSTS:
        best = min(bursts, key=lambda i: (bursts[i].after, i))
        untried = [i for i in (best - 1, best + 1) if i not in bursts]
        if not untried:
            return
        bursts[untried[0]] = run(FACTOR ** (untried[0] + 1) * start)
        yield bursts[untried[0]]


def largest_rate(bursts: Sequence[Burst]) -> float | None:
    """The largest rate below every one that failed to lower the loss; None where all failed."""
    largest = None
    for burst in sorted(bursts, key=lambda burst: burst.rate):
        if not burst.lowers and largest is not None:
            break
        if burst.lowers:
            largest = burst.rate
    return largest


def choose_rate(bursts: Sequence[Burst], margin: float) -> float | None:
    """The rate of the lowest loss, yet at most the largest that lowers it divided by `margin`; None where none does."""
    largest = largest_rate(bursts)
    if largest is None:
        return None
    best = min(bursts, key=lambda burst: (burst.after, burst.rate))
    return min(best.rate, largest / margin)
