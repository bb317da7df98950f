"""Formulas of a calibration against quadratics and cubics whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fedmezo.records import Batch, Segment
from fedmezo.zo.calibration import (
    MAX_BURSTS,
    Burst,
    GradientError,
    best_eps,
    choose_rate,
    largest_rate,
    search_rate,
    split_errors,
    step_moments,
)
from fedmezo.zo.local import FlatThetas, LocalThetas
from fedmezo.zo.noise import GAUSSIAN, SERVER, Directions, Noise, Purpose, Stream
from fedmezo.zo.signal import DIRECTIONS, Signal, measure_signal
from tests.toy import toy_batch

EPS = [1e-3 * 2.0**i for i in range(8)]


@dataclass(frozen=True)
class Cubic:
    """L(theta) = sum_i theta_i + c theta_i^3 / 6, in float64 and rounded to multiples of `grain`."""

    third: float
    grain: float = 0.0
    size: int = 50
    device = torch.device("cpu")

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (Segment("theta", (self.size,), 0),)

    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        exact = torch.stack([(x.double() + self.third * x.double() ** 3 / 6).sum() for x in thetas])
        return (exact / self.grain).round() * self.grain if self.grain else exact

    def local_thetas(self, theta: Tensor, members: int, noise: Directions, copies: int) -> LocalThetas:
        return FlatThetas(self, theta, members, noise, copies)


def measured(model: Cubic) -> list[GradientError]:
    theta = torch.zeros(model.size)
    return split_errors([measure_signal(model, theta, [toy_batch(0)], seed=5, noise=Noise(), eps=eps) for eps in EPS])


def test_noise_and_bias_are_told_apart_exactly_where_they_follow_their_laws() -> None:
    def signal(eps: float) -> Signal:
        noise, bias = 3e-4 / eps, 20 * eps**2
        # what measure_signal calls noise: (g - g')^2 / (1 + 1/4), with g - g' = noise apart and 3 biases
        return Signal(eps, 2.0, math.sqrt(noise**2 + 9 * bias**2 / 1.25), 64)

    errors = split_errors([signal(eps) for eps in EPS])
    assert [error.eps for error in errors] == EPS[:-1]
    for error in errors:
        # relative to the larger of the two: the smaller is a difference of squares
        size = math.hypot(3e-4 / error.eps, 20 * error.eps**2)
        assert error.noise == pytest.approx(3e-4 / error.eps, abs=1e-6 * size)
        assert error.bias == pytest.approx(20 * error.eps**2, abs=1e-6 * size)
        assert error.relative == pytest.approx(size / 2)


def test_the_bias_of_a_cubic_is_its_third_derivative() -> None:
    streams = [Stream(5, Purpose.DIRECTION, client=SERVER, step=i) for i in range(DIRECTIONS)]
    z = Noise(GAUSSIAN).directions(streams, 0, 50).double()
    bias = 30.0 / 6 * z.pow(3).sum(1).square().mean().sqrt()
    for error in measured(Cubic(third=30.0)):
        # theta +/- eps z is rounded to float32, 6e-8 of its size, which is the error of the slope too
        assert error.bias == pytest.approx(float(bias) * error.eps**2, rel=1e-3, abs=1e-5)
        assert error.noise < 0.01 * error.signal


def test_the_noise_of_rounded_losses_is_that_of_their_grain() -> None:
    grain = 1e-3
    for error in measured(Cubic(third=0.0, grain=grain)):
        expected = grain / math.sqrt(12) / error.eps  # a loss that is odd in z: both errors are opposite
        # chi-squared with 16 degrees of freedom, 1 in 1000 on either side: 0.49 to 1.58 in size
        assert 0.49 * expected < error.noise < 1.58 * expected
    assert best_eps(measured(Cubic(third=0.0, grain=grain))).eps == EPS[-2]


def test_the_best_eps_balances_noise_and_bias() -> None:
    grain, third = 1e-4, 30.0
    errors = measured(Cubic(third, grain))
    noise = grain / math.sqrt(12)  # times 1 / eps
    bias = third / 6 * math.sqrt(15 * 50)  # E z^6 = 15; times eps^2
    ideal = (noise**2 / (2 * bias**2)) ** (1 / 6)
    assert ideal / 2 <= best_eps(errors).eps <= 2 * ideal  # the grid's spacing


def test_without_a_signal_the_error_is_infinite() -> None:
    assert GradientError(1e-3, 0.0, 1.0, 0.0).relative == math.inf


class Noisy:
    """m examples with L_e(theta) = theta' A theta / 2 + b_e' theta, A diagonal, at a theta that is not its minimum."""

    def __init__(self, size: int, examples: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.scales = torch.linspace(0.2, 2.0, size, dtype=torch.float64)
        self.offsets = torch.randn(examples, size, dtype=torch.float64, generator=generator)
        self.theta = torch.randn(size, dtype=torch.float64, generator=generator)

    def losses(self, theta: Tensor) -> Tensor:
        """(k, d) to (k, m)."""
        return 0.5 * (self.scales * theta**2).sum(-1, keepdim=True) + theta @ self.offsets.T

    @property
    def gradients(self) -> Tensor:
        return self.scales * self.theta + self.offsets  # (m, d)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_moments_of_a_noisy_quadratic_are_their_closed_forms(batch_size: int) -> None:
    toy, k, eps = Noisy(size=30, examples=40), 20_000, 1e-3
    z = torch.randn(k, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moments = step_moments(
        toy.losses(toy.theta + eps * z),
        toy.losses(toy.theta - eps * z),
        toy.losses(toy.theta[None])[0],
        eps,
        batch_size,
    )
    gradients, trace = toy.gradients, toy.scales.sum()
    gram = gradients @ gradients.T
    m = len(gram)
    slope = (gram.sum() - gram.trace()) / (m * (m - 1))
    power = slope + (gram.trace() / m - slope) / batch_size
    bent = (toy.scales * gradients**2).sum(1).mean()
    across = ((gradients @ (toy.scales * gradients).T).sum() - m * bent) / (m * (m - 1))
    along = across + (bent - across) / batch_size
    # 20,000 directions: standard errors of 1 % (slope: as stated) and below; five of them
    assert moments.slope == pytest.approx(float(slope), abs=5 * moments.slope_error)
    assert moments.power == pytest.approx(float(power), rel=0.05)
    assert moments.curvature == pytest.approx(float(trace), rel=0.02)
    assert moments.resistance == pytest.approx(float(power * trace + 2 * along), rel=0.05)


def test_a_step_at_the_best_rate_lowers_the_loss_as_predicted() -> None:
    toy, k, eps = Noisy(size=30, examples=40), 20_000, 1e-3
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(k, 30, dtype=torch.float64, generator=generator)
    plus, minus = toy.losses(toy.theta + eps * z), toy.losses(toy.theta - eps * z)
    moments = step_moments(plus, minus, toy.losses(toy.theta[None])[0], eps)
    best = moments.best_rate()
    assert best is not None
    drawn = torch.randint(40, (k,), generator=generator)
    g = ((plus - minus) / (2 * eps))[torch.arange(k), drawn]
    for factor in (0.5, 1.0, 2.0, 4.0):
        after = toy.losses(toy.theta - factor * best * g[:, None] * z).mean(1)
        change = after - toy.losses(toy.theta[None]).mean()
        standard_error = float(change.std()) / math.sqrt(k)
        assert float(change.mean()) == pytest.approx(moments.change(factor * best), abs=5 * standard_error)
    assert moments.change(2 * best) == pytest.approx(0.0, abs=1e-12)
    assert moments.best_rate(3) == pytest.approx(3 * best)


def test_without_curvature_or_slope_there_is_no_best_rate() -> None:
    flat = torch.ones(4, 3, dtype=torch.float64)
    moments = step_moments(flat, flat, flat[0], 0.1)
    assert moments.best_rate() is None


def burst(rate: float, after: float) -> Burst:
    if math.isinf(after):
        return Burst(rate, ((0, 1.0), (3, 9.0)), diverged=3)
    return Burst(rate, ((0, 1.0), (10, after)))


@pytest.mark.parametrize("start", [1.0, 0.01])
def test_the_search_brackets_the_best_rate_from_above_and_from_below(start: float) -> None:
    def run(rate: float) -> Burst:
        return burst(rate, math.inf if rate > 0.3 else 1 - rate + 4 * rate**2)  # best at 1/8

    bursts = list(search_rate(run, start))
    best = min(bursts, key=lambda one: one.after)
    assert best.rate == pytest.approx(1 / 8, rel=0.5)
    rates = {one.rate for one in bursts}
    assert {best.rate / 2, 2 * best.rate} <= rates
    assert len(rates) == len(bursts) <= 8


def test_a_search_without_success_ends() -> None:
    assert len(list(search_rate(lambda rate: burst(rate, math.inf), 1.0))) == MAX_BURSTS


def test_the_chosen_rate_keeps_its_distance_from_the_largest_that_holds() -> None:
    bursts = [burst(1.0, 1.1), burst(2.0, 0.8), burst(4.0, 0.5), burst(8.0, math.inf), burst(16.0, 0.4)]
    assert largest_rate(bursts) == 4.0  # the success above a failure is luck
    assert choose_rate(bursts[:4], margin=1.5) == 4 / 1.5
    assert choose_rate([burst(1.0, 0.5), burst(4.0, 0.6)], margin=1.5) == 1.0
    assert choose_rate([burst(1.0, 1.5), burst(2.0, math.inf)], margin=1.5) is None
