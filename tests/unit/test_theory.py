"""The theorem's constants from gradients whose means and variances are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedmezo.zo.theory import gradient_moments, rate_bound


def gram(gradients: Tensor) -> Tensor:
    """(N, m, d) to (N, m, N, m)."""
    return torch.einsum("iad,jbd->iajb", gradients, gradients)


def clients(count: int, d: int, apart: float) -> Tensor:
    """Means f_i (N, d): a common gradient of square 4, and parts of square `apart`^2 that sum to 0."""
    generator = torch.Generator().manual_seed(count)
    own = torch.randn(count, d, dtype=torch.float64, generator=generator)
    own -= own.mean(0)
    own *= apart / own.square().sum(1).mean().sqrt()
    common = torch.zeros(d, dtype=torch.float64)
    common[0] = 2.0
    return common + own


def test_without_noise_the_moments_are_exact() -> None:
    means = clients(4, 50, apart=3.0)
    moments = gradient_moments(gram(means[:, None].expand(4, 5, 50)))
    assert moments.global_square.value == pytest.approx(4.0)
    assert moments.client_square.value == pytest.approx(4.0 + 9.0)
    assert moments.heterogeneity == pytest.approx(9.0)
    assert moments.heterogeneity_factor == pytest.approx(9 / 4)
    assert moments.noise == pytest.approx(0.0, abs=1e-9)
    assert moments.noise_factor == pytest.approx(1.0)
    assert moments.global_square.error == pytest.approx(0.0, abs=1e-9)


def test_noise_ten_times_the_gradient_leaves_the_moments_unbiased_and_the_errors_right() -> None:
    means, sigma2, d, m = clients(3, 400, apart=1.0), 500.0, 400, 12
    found = []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(3, m, d, dtype=torch.float64, generator=generator) * math.sqrt(sigma2 / d)
        found.append(gradient_moments(gram(means[:, None] + noise)))
    for estimates, exact in (
        ([one.global_square for one in found], 4.0),
        ([one.client_square for one in found], 5.0),
        ([one.batch_square for one in found], 5.0 + sigma2),
    ):
        values = torch.tensor([estimate.value for estimate in estimates])
        spread = float(values.std())
        assert float(values.mean()) == pytest.approx(exact, abs=4 * spread / 10)
        stated = math.sqrt(sum(estimate.error**2 for estimate in estimates) / len(estimates))
        assert stated == pytest.approx(spread, rel=0.35)  # jackknife over 12; 100 draws give the spread to 7 %
    noise_found = sum(one.noise for one in found) / len(found)
    assert noise_found == pytest.approx(sigma2, rel=0.01)


def test_one_client_has_no_heterogeneity() -> None:
    gradients = torch.randn(1, 8, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = gradient_moments(gram(gradients))
    assert moments.heterogeneity == pytest.approx(0.0, abs=1e-9)


def test_a_gradient_lost_in_noise_gives_infinite_constants() -> None:
    opposite = torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]]], dtype=torch.float64)
    moments = gradient_moments(gram(opposite))
    assert moments.client_square.value < 0
    assert moments.noise_factor == math.inf


def test_the_bound_is_the_smallest_of_its_three_terms() -> None:
    bound = rate_bound(smoothness=2.0, noise_factor=4.0, dimension=100, clients=3, steps=5)
    assert bound.dimension == pytest.approx(1 / (3 * 5 * 2 * 20))
    assert bound.clients == pytest.approx(3 / (3 * 4 * 5 * 2))
    assert bound.steps == 1 / 25
    assert bound.value == bound.dimension
    assert bound.binding == "1/(3HL sqrt(c_g d))"
    flat = rate_bound(smoothness=0.0, noise_factor=1.0, dimension=100, clients=3, steps=5)
    assert (flat.value, flat.binding) == (1 / 25, "1/H^2")
    noisy = rate_bound(smoothness=2.0, noise_factor=math.inf, dimension=100, clients=3, steps=5)
    assert noisy.value == 0.0


def test_what_sharing_costs_is_the_second_moment_of_the_mean_over_shared_directions() -> None:
    """Closed form: the mean of B scalars along one z, squared, beside B along directions of their own."""
    means, sigma2, d, m = clients(6, 60, apart=2.0), 5.0, 60, 400
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(6, m, d, dtype=torch.float64, generator=generator) * math.sqrt(sigma2 / d)
    moments = gradient_moments(gram(means[:, None] + noise))
    pair = (36 * 4.0 - 6 * 8.0) / 30  # of the sum of all, 6 x 2, without each with itself
    rho = pair / (4.0 + 4.0 + sigma2)
    assert moments.correlation.value == pytest.approx(rho, abs=5 * moments.correlation.error)
    assert moments.sharing_cost(1).value == 1
    mean_of_all = (4.0 + sigma2 / 6) / ((4.0 + 4.0 + sigma2) / 6)  # six on one direction, beside six of their own
    assert moments.sharing_cost(6).value == pytest.approx(mean_of_all, rel=0.02)


def test_one_client_alone_shares_with_nobody() -> None:
    gradients = torch.randn(1, 8, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert math.isnan(gradient_moments(gram(gradients)).pair_product.value)
