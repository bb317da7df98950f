"""How much of the projected gradient g is signal, and how much is rounding in the model's own arithmetic.

A base in half precision rounds every activation, so that losses carry errors, which need no reference to be seen: on
the same directions, g at eps and g' at a larger eps' have the same signal s and errors of their own,

    g = s + e / eps,    g' = s + e' / eps',    e and e' of equal size.

So the mean of (g - g')^2 is that of the errors, and the mean of g g' that of s^2. The error of g falls as 1 / eps until
at a large eps the curvature of the loss takes its place, which shows in g - g' too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedmezo.errors import TrainingError
from fedmezo.records import Batch
from fedmezo.zo.arithmetic import round_coefficient
from fedmezo.zo.local import LocalThetas, Probe, Tunable
from fedmezo.zo.noise import SERVER, Directions, Purpose, Stream

DIRECTIONS = 16
"""Directions of a measurement: a standard deviation from so many is right to about a fifth."""

STEP_RATIO = 2.0
"""eps' / eps. Closer together, large errors are alike; further apart, the curvature counts as noise too early."""

LARGEST_NOISE = 0.5
"""Noise of g, in units of its signal, above which a run is told: the correlation with the true g is then below 0.9."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What g consists of at one eps.

    Args:
        eps: size of the perturbation.
        signal: standard deviation over directions of g without its error; 0 where none can be told from the error.
        noise: standard deviation of g's error.
        forward_passes: what the measurement cost.
    """

    eps: float
    signal: float
    noise: float
    forward_passes: int

    @property
    def noise_to_signal(self) -> float:
        """The noise in units of the signal; infinite where there is no signal."""
        return self.noise / self.signal if self.signal > 0 else math.inf

    @property
    def is_sound(self) -> bool:
        """Whether steps of this eps follow the loss rather than its rounding."""
        return self.noise_to_signal <= LARGEST_NOISE


def measure_signal(
    model: Tunable,
    theta: Tensor,
    batches: Sequence[Batch],
    *,
    seed: int,
    noise: Directions,
    eps: float,
    directions: int = DIRECTIONS,
) -> Signal:
    """Measure g's signal and noise at one eps, by four losses for each of some directions.

    The directions are the same for every eps and belong to no client.

    Args:
        model: what is tuned.
        theta: (d,) float32; left as it is.
        batches: at least one; direction j uses batch j modulo their number.
        seed: run seed.
        noise: distribution of the directions.
        eps: size of the perturbation.
        directions: how many.

    Raises:
        TrainingError: a loss is not finite.
    """
    small, large = round_coefficient(eps), round_coefficient(STEP_RATIO * eps)
    pairs = []
    thetas = model.local_thetas(theta, 1, noise, 1)
    for index in range(directions):
        stream = Stream(seed, Purpose.DIRECTION, client=SERVER, step=index)
        batch = batches[index % len(batches)]
        at = [_difference(thetas, stream, batch, step) / (2 * step) for step in (small, large)]
        pairs.append((at[0], at[1]))
    return _separate(eps, pairs)


def find_sound_eps(
    model: Tunable, theta: Tensor, batches: Sequence[Batch], *, seed: int, noise: Directions, eps: float
) -> list[Signal]:
    """Measure at `eps` and, while g is not sound there, at larger and larger steps; see `measure_signal`.

    Returns the measurements in the order they were made, so that the last one alone may be sound.
    """
    signals: list[Signal] = []
    for value in [eps, *larger_steps(eps)]:
        signals.append(measure_signal(model, theta, batches, seed=seed, noise=noise, eps=value))
        if signals[-1].is_sound:
            break
    return signals


def describe(signals: Sequence[Signal], otherwise: str = "model.dtype to float32") -> str:
    """What `find_sound_eps` found, in a sentence or two for the user; `otherwise` can be set in place of eps."""
    first, last = signals[0], signals[-1]
    cost = f"measured with {sum(signal.forward_passes for signal in signals)} forward passes"
    found = f"train.zo.eps {first.eps:g}: rounding makes up {first.noise_to_signal:.0%} of the size of a true g"
    if first.is_sound:
        return f"{found} ({cost})"
    if last.is_sound:
        remedy = f"at {last.eps:g} it is {last.noise_to_signal:.0%}: set train.zo.eps to that, or {otherwise}"
    else:
        remedy = f"no eps up to {last.eps:g} does better than that: set {otherwise}"
    return f"{found}, so that steps follow mostly noise; {remedy} ({cost})"


def larger_steps(eps: float) -> list[float]:
    """What to try where `eps` is too small: 1, 2 and 5 times powers of ten above it, up to a hundred times as large."""
    decade = math.floor(math.log10(eps))
    steps = [float(f"{digit}e{decade + i}") for i in range(4) for digit in (1, 2, 5)]
    return [step for step in steps if 1.01 * eps < step <= 100 * eps]


def _difference(thetas: LocalThetas, stream: Stream, batch: Batch, step: float) -> float:
    """L(theta + step z) - L(theta - step z)."""
    plus, minus = thetas.losses([0, 0], [Probe(batch, stream, amount) for amount in (step, -step)]).tolist()
    if not (math.isfinite(plus) and math.isfinite(minus)):
        raise TrainingError(f"the loss is not finite at theta +/- eps z with eps {step:g} (train.zo.eps)")
    return float(plus - minus)


def _separate(eps: float, pairs: Sequence[tuple[float, float]]) -> Signal:
    """Signal and noise from (g, g') of each direction."""
    n = len(pairs)
    errors = sum((g - other) ** 2 for g, other in pairs) / n  # their mean is known to be 0
    noise = errors / (1 + STEP_RATIO**-2)  # the error of g' is smaller by the ratio
    signal = sum(g * other for g, other in pairs) / n  # so is the mean of g over random directions
    return Signal(eps, math.sqrt(max(signal, 0.0)), math.sqrt(noise), forward_passes=4 * n)
