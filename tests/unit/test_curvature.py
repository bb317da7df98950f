"""Curvature of quadratics whose spectrum is known, and of a small network against double back-propagation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedmezo.zo.curvature import Estimate, Spectrum, choose_step, lanczos, product_by_differences, spectrum

EIGENVALUES = torch.cat([torch.tensor([-3.0, -1.0, 8.0, 5.0]), torch.linspace(0.01, 0.5, 196)])


def rotated(eigenvalues: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator(0))).Q
    return basis @ torch.diag(eigenvalues) @ basis.T


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signs(count: int, size: int) -> list[Tensor]:
    return list(torch.randint(2, (count, size), generator=generator(1)).mul(2).sub(1).float())


def test_the_spectrum_of_a_known_matrix() -> None:
    matrix = rotated(EIGENVALUES)
    found = spectrum(lambda v: matrix @ v, signs(30, 200), steps=20)
    for estimate, exact in (
        (found.trace, EIGENVALUES.sum()),
        (found.absolute_trace, EIGENVALUES.abs().sum()),
        (found.positive_trace, EIGENVALUES.relu().sum()),
    ):
        assert estimate.value == pytest.approx(float(exact), abs=4 * estimate.error)
        # signs: variance 2 (|A|^2 - |diagonal|^2) at most, over 30 vectors; a standard error from 30 is right to 13 %
        assert 0 < estimate.error < 1.5 * math.sqrt(2 * float(EIGENVALUES.square().sum()) / 30)
    assert found.largest == pytest.approx(8.0, rel=1e-4)
    assert found.smallest == pytest.approx(-3.0, rel=1e-4)
    assert found.norm == found.largest
    rank = found.effective_rank
    assert rank.value == pytest.approx(float(EIGENVALUES.sum()) / 8, abs=4 * rank.error)


def test_the_stated_error_of_the_norm_holds_however_few_the_steps() -> None:
    matrix = rotated(EIGENVALUES)
    for steps in (1, 2, 4, 8):
        run = lanczos(lambda v: matrix @ v, signs(1, 200)[0], steps)
        for node, error in zip(run.nodes, run.errors, strict=True):
            # 1e-4: the matrix itself is rounded to float32
            assert float((EIGENVALUES - float(node)).abs().min()) <= float(error) + 1e-4


def test_the_trace_is_exact_for_a_diagonal_matrix_and_signs() -> None:
    found = spectrum(lambda v: EIGENVALUES * v, signs(3, 200), steps=3)
    assert found.trace.value == pytest.approx(float(EIGENVALUES.sum()), rel=1e-5)  # float32
    assert found.trace.error < 1e-3


def test_few_eigenvalues_end_the_recurrence_early_and_exactly() -> None:
    values = torch.cat([torch.full((10,), 2.0), torch.zeros(30)])
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return values * v

    run = lanczos(product, torch.ones(40), steps=30)
    assert len(calls) <= 4
    assert float(run.nodes.max()) == pytest.approx(2.0, rel=1e-5)
    assert run.integral(torch.square) == pytest.approx(10 * 2**2, rel=1e-4)


def test_the_zero_matrix_has_no_rank() -> None:
    found = spectrum(torch.zeros_like, signs(2, 5), steps=4)
    assert (found.norm, found.trace.value, found.effective_rank.value) == (0.0, 0.0, 0.0)


def test_the_error_of_a_rank_holds_those_of_trace_and_norm() -> None:
    one = Estimate(0.0, 0.0)
    found = Spectrum(Estimate(20.0, 3.0), one, one, largest=10.0, smallest=-1.0, norm_error=2.0)
    assert found.effective_rank == Estimate(2.0, math.hypot(3.0, 2 * 2.0) / 10)


def network(theta: Tensor) -> Tensor:
    """A loss with derivatives of every order: two layers on fixed data."""
    first, second = theta[:60].view(10, 6), theta[60:].view(6)
    inputs = torch.randn(20, 10, generator=generator(2)).to(theta.dtype)
    return torch.nn.functional.softplus(torch.tanh(inputs @ first) @ second).mean()


def network_gradient(theta: Tensor) -> Tensor:
    live = theta.detach().requires_grad_()
    return torch.autograd.grad(network(live), live)[0]


def exact_product(theta: Tensor, v: Tensor) -> Tensor:
    live = theta.requires_grad_()
    [gradient] = torch.autograd.grad(network(live), live, create_graph=True)
    return torch.autograd.grad(gradient @ v, live)[0]


def test_products_by_differences_are_those_of_double_back_propagation() -> None:
    theta = torch.randn(66, generator=generator(3))
    [v, other] = signs(2, 66)
    step, stated = choose_step(network_gradient, theta, v)
    product = product_by_differences(network_gradient, theta, step)
    for vector in (v, other):
        exact = exact_product(theta.double(), vector.double())
        error = float((product(vector).double() - exact).norm() / exact.norm())
        # a difference of two steps says the size of the error, not its digits
        assert error < 3 * stated + 1e-4
    assert stated < 0.01


def test_the_step_suits_the_precision_of_the_gradient() -> None:
    theta = torch.randn(66, generator=generator(3))
    [v] = signs(1, 66)

    def coarse(at: Tensor) -> Tensor:
        return network_gradient(at).to(torch.bfloat16).float()

    assert choose_step(coarse, theta, v)[0] > choose_step(network_gradient, theta, v)[0]


def test_the_product_of_a_quadratic_is_exact_at_any_step() -> None:
    matrix = rotated(EIGENVALUES)
    _, error = choose_step(lambda theta: matrix @ theta, torch.zeros(200), signs(1, 200)[0])
    assert error < 1e-5  # float32
