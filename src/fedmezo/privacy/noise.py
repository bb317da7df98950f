"""Discrete Gaussian noise on whole numbers, exactly, from the operating system's random numbers.

Algorithms 1 to 3 of Canonne, Kamath and Steinke (NeurIPS 2020), in whole numbers throughout: no rounding of a floating
number can betray what the noise hides. The sum of several clients' noise hides as much as one Gaussian of their
variances' sum but for a term below exp(-pi^2 sigma^2), sigma being one client's in units (Kairouz, Liu and Steinke,
ICML 2021): nothing from sigma 10 on, and less is refused.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fedmezo.federation.sums import Words

SMALLEST_SIGMA = 10.0


@dataclass(frozen=True, slots=True)
class DistributedNoise:
    """What one client adds to its words so that the sum of enough clients has the noise that it needs.

    Args:
        sigma: standard deviation of the noise on each word of the sum, in the words' units; 0 for none.
        clients: whose parts are in the sum at least: each adds its share of the variance.

    Raises:
        ValueError: so little noise on words of so large a unit that whole numbers cannot hold it.
    """

    sigma: float
    clients: int

    def __post_init__(self) -> None:
        if 0 < self.sigma_of_share < SMALLEST_SIGMA:
            raise ValueError(f"noise of {self.sigma_of_share:g} units is too little for whole numbers")

    @property
    def sigma_of_share(self) -> float:
        """Standard deviation of one client's noise, in units."""
        return self.sigma / math.sqrt(self.clients)

    def draw(self, words: int) -> Words:
        """A client's noise for so many words."""
        if not self.sigma:
            return np.zeros(words, np.int64)
        variance = Fraction(self.sigma_of_share) ** 2
        return np.array([discrete_gaussian(variance) for _ in range(words)], np.int64)


def discrete_gaussian(variance: Fraction) -> int:
    """A whole number k with a probability in proportion to exp(-k^2 / (2 variance))."""
    scale = math.isqrt(math.floor(variance)) + 1
    while True:
        candidate = _discrete_laplace(scale)
        distance = abs(candidate) - variance / scale
        if _bernoulli_exp(distance * distance / (2 * variance)):
            return candidate


def _discrete_laplace(scale: int) -> int:
    """A whole number k with a probability in proportion to exp(-abs(k) / scale)."""
    while True:
        fine = secrets.randbelow(scale)
        if not _bernoulli_exp(Fraction(fine, scale)):
            continue
        coarse = 0
        while _bernoulli_exp(Fraction(1)):
            coarse += 1
        size, negative = fine + scale * coarse, secrets.randbelow(2)
        if size or not negative:
            return -size if negative else size


def _bernoulli_exp(gamma: Fraction) -> bool:
    """True with probability exp(-gamma), gamma at least 0."""
    while gamma > 1:
        if not _bernoulli_exp_below_one(Fraction(1)):
            return False
        gamma -= 1
    return _bernoulli_exp_below_one(gamma)


def _bernoulli_exp_below_one(gamma: Fraction) -> bool:
    k = 1
    while secrets.randbelow(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1
