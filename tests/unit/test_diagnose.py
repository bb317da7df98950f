"""The diagnosis of quadratics whose constants are known, and the gradients it takes of a language model."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from fedmezo.errors import RunError
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.loading import load_base
from fedmezo.records import Batch
from fedmezo.results.plots import png
from fedmezo.results.plots_theory import draw_diagnosis
from fedmezo.studies.diagnose import (
    BATCHES_PER_CLIENT,
    Bench,
    Diagnosis,
    diagnose,
    gradient_of,
    measure,
    rate_in_words,
    show,
)
from tests.runs import make_base
from tests.toy import toy_batch

SIZE = 40
SCALES = torch.cat([torch.tensor([-0.5, 4.0]), torch.full((SIZE - 2,), 0.25)])
THETA = torch.linspace(-1, 1, SIZE)
NOISE = 3.0  # variance of a batch's gradient


def shift_of(client: int) -> Tensor:
    """Two clients pull in opposite ways along the last element."""
    shift = torch.zeros(SIZE)
    shift[-1] = 2.0 if client else -2.0
    return shift


def gradient(theta: Tensor, batch: Batch) -> Tensor:
    """Of theta' A theta / 2 and a linear part that each example has of its own; below 1000 without noise."""
    example = int(batch.input_ids[0, 0])
    if example >= 1000:
        return SCALES * theta
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(example)) * math.sqrt(NOISE / SIZE)
    return SCALES * theta + shift_of(example % 2) + noise


@pytest.fixture(scope="module")
def bench() -> Bench:
    batches = tuple(tuple(toy_batch(2 * i + client) for i in range(BATCHES_PER_CLIENT)) for client in range(2))
    return Bench(gradient, batches, (toy_batch(1000), toy_batch(1001, 1002)), seed=0, cohort_size=2, local_steps=5)


@pytest.fixture(scope="module")
def found(bench: Bench) -> Diagnosis:
    return measure(bench, 7, THETA, Console(file=io.StringIO()))


def test_the_curvature_of_a_quadratic(found: Diagnosis) -> None:
    assert found.product_error < 1e-4  # a quadratic has no higher derivatives; float32
    # a diagonal Hessian and signs: the trace has no variance
    assert found.spectrum.trace.value == pytest.approx(float(SCALES.sum()), rel=1e-4)
    assert found.spectrum.absolute_trace.value == pytest.approx(float(SCALES.abs().sum()), rel=1e-3)
    assert (found.spectrum.largest, found.spectrum.smallest) == pytest.approx((4.0, -0.5), rel=1e-3)
    assert found.spectrum.effective_rank.value == pytest.approx(float(SCALES.sum()) / 4, rel=1e-3)


def test_noise_and_heterogeneity_of_its_clients(found: Diagnosis) -> None:
    common = float((SCALES * THETA).square().sum())
    moments = found.moments
    assert moments.global_square.value == pytest.approx(common, abs=4 * moments.global_square.error)
    assert moments.client_square.value == pytest.approx(common + 4, abs=4 * moments.client_square.error)
    assert moments.noise == pytest.approx(NOISE, rel=0.1)  # 128 gradients of 40 elements: 2 % standard error
    assert moments.heterogeneity == pytest.approx(4.0, abs=4 * moments.client_square.error)
    assert moments.noise_factor == pytest.approx((common + 4 + NOISE) / (common + 4), rel=0.1)


def test_the_bounds_are_the_theorems(found: Diagnosis) -> None:
    assert found.bound_without_noise.dimension == pytest.approx(1 / (3 * 5 * 4 * math.sqrt(SIZE)), rel=1e-3)
    assert found.bound_without_noise.clients == pytest.approx(2 / (3 * 5 * 4), rel=1e-3)
    assert found.bound.dimension == pytest.approx(
        found.bound_without_noise.dimension / math.sqrt(found.moments.noise_factor)
    )
    assert found.bound.steps == 1 / 25


def test_what_is_printed_says_what_the_rate_means(found: Diagnosis, bench: Bench) -> None:
    text = io.StringIO()
    show(Console(file=text, width=120), 1.0, bench, [found])
    assert "Curvature of 3 examples, gradients of 64 batches of 2 clients" in text.getvalue()
    assert "before round 7" in text.getvalue()
    assert "the theorem does not cover the run" in text.getvalue()
    assert "fulfils the theorem's condition with" in rate_in_words([found], found.bound.value)
    between = (found.bound.value + found.bound_without_noise.value) / 2
    assert "only if a batch's noise counts as sigma_g" in rate_in_words([found], between)


def test_the_picture_is_drawn_also_of_a_single_state(found: Diagnosis) -> None:
    picture = png(draw_diagnosis([found.spectrum], [7], [found.bound], [found.bound_without_noise], 0.01))
    assert picture.startswith(b"\x89PNG")


def test_gradients_of_a_language_model_are_the_slopes_of_its_loss(tmp_path: Path) -> None:
    base, _ = load_base(str(make_base(tmp_path / "base")), "", torch.float32, torch.device("cpu"))
    model = CausalLM(base, {"adapter_method": "lora", "r": 4, "lora_dropout": 0.5}, seed=1)
    generator = torch.Generator().manual_seed(0)
    theta = model.flat() + 0.1 * torch.randn(model.segments[-1].stop, generator=generator)
    ids = torch.randint(4, 100, (3, 9), generator=generator)
    batch = Batch(ids, torch.ones_like(ids), ids)
    slope = gradient_of(model)(theta, batch)
    torch.testing.assert_close(gradient_of(model)(theta, batch), slope, rtol=0, atol=0)  # dropout is off
    z = torch.randn(len(theta), generator=generator)
    plus, minus = losses(model, [theta + 1e-3 * z, theta - 1e-3 * z], batch)
    # two losses of float32: 1e-7 of 4.6 in 2e-3
    assert (plus - minus) / 2e-3 == pytest.approx(float(slope @ z), rel=1e-2, abs=1e-3)


def losses(model: CausalLM, thetas: Sequence[Tensor], batch: Batch) -> list[float]:
    return model.losses(thetas, [batch] * len(thetas)).tolist()


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.yaml: no such file; is .* the folder of a run\?"):
        diagnose(tmp_path)
