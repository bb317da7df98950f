"""The measured noise of g is that which was put into the losses, and the advice names an eps that does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fedmezo.errors import TrainingError
from fedmezo.records import Batch
from fedmezo.zo import signal
from fedmezo.zo.noise import Noise
from fedmezo.zo.signal import Signal, describe, find_sound_eps, larger_steps, measure_signal
from tests.toy import SIZE, Quadratic, toy_batch

BATCHES = [toy_batch(1, 2), toy_batch(3, 4)]
THETA = torch.zeros(SIZE)


@dataclass
class Rounding(Quadratic):
    """The quadratic with losses rounded to a multiple of `resolution`, as a half-precision base would."""

    resolution: float = 0.0

    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        exact = super().losses(thetas, batches)
        return (exact / self.resolution).round() * self.resolution if self.resolution else exact


def measured(eps: float, resolution: float) -> Signal:
    return measure_signal(Rounding(resolution=resolution), THETA, BATCHES, seed=3, noise=Noise("gaussian"), eps=eps)


def test_without_rounding_a_quadratic_has_no_noise_and_its_slope_is_the_signal() -> None:
    found = measured(1e-2, 0.0)
    gradients = []
    for batch in BATCHES:
        point = THETA.clone().requires_grad_()
        gradients.append(torch.autograd.grad(Quadratic().loss(point, batch), point)[0])
    expected = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in gradients) / 2)
    assert found.noise_to_signal < 1e-3  # float32 losses near 1: 1e-7 / 1e-2
    assert found.signal == pytest.approx(expected, rel=0.5)  # a standard deviation from 16 draws
    assert found.is_sound
    assert found.forward_passes == 4 * signal.DIRECTIONS


@pytest.mark.parametrize("eps", [3e-3, 1e-2, 3e-2])
def test_noise_is_that_of_the_rounded_losses(eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "DIRECTIONS", 400)
    resolution = eps / 3  # the losses move by several times as much, so that their errors are independent
    # two losses, each off by a uniform error of standard deviation resolution / sqrt(12)
    expected = math.sqrt(2 / 12) * resolution / (2 * eps)
    assert measured(eps, resolution).noise == pytest.approx(expected, rel=0.15)  # 5 % from 400 draws, times three


def test_a_larger_step_is_found_where_rounding_hides_the_signal() -> None:
    signals = find_sound_eps(Rounding(resolution=0.02), THETA, BATCHES, seed=3, noise=Noise("gaussian"), eps=1e-3)
    assert [found.eps for found in signals] == [1e-3, *larger_steps(1e-3)][: len(signals)]
    assert [found.is_sound for found in signals] == [False] * (len(signals) - 1) + [True]
    assert len(signals) > 1


def test_steps_to_try() -> None:
    assert larger_steps(1e-3) == [2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]
    assert larger_steps(3e-2) == [5e-2, 0.1, 0.2, 0.5, 1.0, 2.0]


def test_advice() -> None:
    bad, worse, good = Signal(1e-3, 0.5, 1.0, 64), Signal(2e-3, 0.0, 1.0, 64), Signal(5e-3, 1.0, 0.25, 64)
    assert describe([good]) == (
        "train.zo.eps 0.005: rounding makes up 25% of the size of a true g (measured with 64 forward passes)"
    )
    assert describe([bad, worse, good]) == (
        "train.zo.eps 0.001: rounding makes up 200% of the size of a true g, so that steps follow mostly noise; "
        "at 0.005 it is 25%: set train.zo.eps to that, or model.dtype to float32 (measured with 192 forward passes)"
    )
    assert "no eps up to 0.002 does better than that: set model.dtype to float32" in describe([bad, worse])


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(TrainingError, match="not finite"):
        measure_signal(Quadratic(poison={1}), THETA, BATCHES, seed=3, noise=Noise("gaussian"), eps=1e-2)
