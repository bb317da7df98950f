"""Constants of the convergence theorem of FedMeZO, estimated from gradients, and the bound on the rate they give.

The theorem (Ling et al., KDD 2024) assumes, for a batch's gradient G_i of client i, its mean f_i and the mean f of all:

    E|G_i|^2 <= c_g |f_i|^2 + sigma_g^2,        |f_i - f|^2 <= c_h |f|^2 + sigma_h^2.

At one theta the two constants of a line cannot be told apart, so each is given with the other at its smallest: c_g with
sigma_g = 0, and sigma_g^2 with c_g = 1; c_h with sigma_h = 0, and sigma_h^2 with c_h = 0.

Legend: N clients, m batches of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmezo.zo.curvature import Estimate


@dataclass(frozen=True, slots=True)
class GradientMoments:
    """Squares of gradients, free of the bias that the noise of few batches would give them.

    Args:
        global_square: |f|^2.
        client_square: mean over clients of |f_i|^2.
        batch_square: mean of |G_i|^2.
        pair_product: mean of f_i . f_j over two different clients; not a number of one client.
    """

    global_square: Estimate
    client_square: Estimate
    batch_square: Estimate
    pair_product: Estimate

    @property
    def correlation(self) -> Estimate:
        """Of two clients' scalars along a direction that they share: f_i . f_j over |G_i|^2."""
        size = self.batch_square.value
        if size <= 0:
            return Estimate(0.0, math.nan)
        rho = self.pair_product.value / size
        return Estimate(rho, math.hypot(self.pair_product.error, rho * self.batch_square.error) / size)

    def sharing_cost(self, members: float) -> Estimate:
        """How many times as large the second moment of a round's move is where so many clients share directions.

        The mean of B scalars along one direction has the second moment (1 + (B - 1) rho) / B of a single one, and B own
        directions have 1 / B. The best rate falls about so many times, and as many times the steps are needed.
        """
        rho = self.correlation
        return Estimate(1 + (members - 1) * rho.value, (members - 1) * rho.error)

    @property
    def noise(self) -> float:
        """sigma_g^2 with c_g = 1: the variance of a batch's gradient."""
        return max(0.0, self.batch_square.value - self.client_square.value)

    @property
    def noise_factor(self) -> float:
        """c_g with sigma_g = 0; infinite where no gradient was found in the noise."""
        return _ratio(self.batch_square.value, self.client_square.value)

    @property
    def heterogeneity(self) -> float:
        """sigma_h^2 with c_h = 0: mean of |f_i - f|^2."""
        return max(0.0, self.client_square.value - self.global_square.value)

    @property
    def heterogeneity_factor(self) -> float:
        """c_h with sigma_h = 0; infinite where no common gradient was found."""
        return _ratio(self.heterogeneity, self.global_square.value) if self.heterogeneity else 0.0


def gradient_moments(gram: Tensor) -> GradientMoments:
    """The moments from all inner products of gradients, (N, m, N, m) with N >= 1 and m >= 2.

    A product of two different batches has the mean f_i . f_j; one of a batch with itself holds its noise too. Errors
    are from leaving out each batch number in turn (jackknife).
    """
    whole = _squares(gram)
    count = gram.shape[1]
    if count < 3:  # one batch left of a client has no pair
        return GradientMoments(*(Estimate(value, math.nan) for value in whole))
    without = []
    for left_out in range(count):
        kept = [i for i in range(count) if i != left_out]
        without.append(_squares(gram[:, kept][:, :, :, kept]))
    spread = torch.tensor(without, dtype=torch.float64).var(0, unbiased=False) * (count - 1)
    return GradientMoments(*(Estimate(v, math.sqrt(float(s))) for v, s in zip(whole, spread, strict=True)))


def _squares(gram: Tensor) -> tuple[float, float, float, float]:
    """|f|^2, mean |f_i|^2, mean |G_i|^2 and mean f_i . f_j."""
    clients, batches = gram.shape[:2]
    own = torch.einsum("iaia->i", gram)  # of each batch with itself
    within = (torch.einsum("iaib->i", gram) - own) / (batches * (batches - 1))  # (N,) |f_i|^2
    across = (gram.sum() - torch.einsum("iaib->", gram)) / batches**2  # sum over i != j of f_i . f_j
    pairs = float(across) / (clients * (clients - 1)) if clients > 1 else math.nan
    return float((within.sum() + across) / clients**2), float(within.mean()), float(own.mean() / batches), pairs


@dataclass(frozen=True, slots=True)
class RateBound:
    """eta <= min{1 / (3 H L sqrt(c_g d)), N / (3 c_g H L), 1 / H^2}.

    Args:
        dimension: the first term.
        clients: the second.
        steps: the third.
    """

    dimension: float
    clients: float
    steps: float

    @property
    def value(self) -> float:
        """The smallest of the three."""
        return min(self.dimension, self.clients, self.steps)

    @property
    def binding(self) -> str:
        """Which of the three it is, as a formula."""
        terms = {"1/(3HL sqrt(c_g d))": self.dimension, "N/(3 c_g H L)": self.clients, "1/H^2": self.steps}
        return min(terms, key=lambda name: terms[name])


def rate_bound(*, smoothness: float, noise_factor: float, dimension: int, clients: int, steps: int) -> RateBound:
    """The theorem's condition on the rate.

    Args:
        smoothness: L.
        noise_factor: c_g, at least 1.
        dimension: d.
        clients: N of a round.
        steps: H local steps.
    """
    scale = 3 * steps * smoothness
    return RateBound(
        dimension=_inverse(scale * math.sqrt(noise_factor * dimension)),
        clients=clients * _inverse(scale * noise_factor),
        steps=1 / steps**2,
    )


def _inverse(x: float) -> float:
    return 1 / x if x > 0 else math.inf


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf
