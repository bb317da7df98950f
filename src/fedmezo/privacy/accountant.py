"""What a run has spent of its privacy: epsilon at a given delta, from the noise and from how often it was drawn.

The accountant is Opacus's for the sum of privacy loss variables (PRV: Gopi, Lee and Wutschitz, NeurIPS 2021), which
bounds epsilon from above within a hundredth of it. A release without sampling is the Gaussian mechanism itself; one of
a Poisson sample is amplified by its sampling. Nothing else is: a batch that is dealt from a shuffled order is not.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmezo.errors import ConfigError

EPSILON_TOLERANCE = 0.01
LARGEST_EPSILON = 100.0
"""Nothing is hidden at such an epsilon, and no noise is worth finding for it."""
_MOST_NOISE = 1e6


@dataclass(frozen=True, slots=True)
class Accountant:
    """The privacy of one who takes part in every release.

    Args:
        noise_multiplier: standard deviation of the noise in units of what one part can change; 0 for none.
        delta: probability with which the bound may fail.
        sample_rate: probability with which a part is in a release; 1 without Poisson sampling.
    """

    noise_multiplier: float
    delta: float
    sample_rate: float = 1.0

    def epsilon(self, releases: int) -> float:
        """What so many releases have spent; infinite without noise, or beyond what can be computed."""
        if not releases:
            return 0.0
        if not self.noise_multiplier:
            return float("inf")
        rough = self._by_moments(releases)
        if rough > LARGEST_EPSILON:
            return rough
        return min(rough, self._by_loss_variables(releases))

    def _by_moments(self, releases: int) -> float:
        accountant = _opacus().RDPAccountant()
        accountant.history = [(self.noise_multiplier, self.sample_rate, releases)]
        with _quiet():
            return float(accountant.get_epsilon(self.delta))

    def _by_loss_variables(self, releases: int) -> float:
        accountant = _opacus().PRVAccountant()
        accountant.history = [(self.noise_multiplier, self.sample_rate, releases)]
        with _quiet():
            return float(accountant.get_epsilon(self.delta, eps_error=EPSILON_TOLERANCE))


def _opacus() -> Any:
    """Opacus's accountants; importing them gives the root logger a handler, which is taken away again."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    accountants = importlib.import_module("opacus.accountants")
    root.handlers[:] = handlers
    root.setLevel(level)
    return accountants


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Opacus says of orders at the end of its list, and numpy of log(0) of events that cannot be."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        yield


def noise_for(epsilon: float, delta: float, releases: int, sample_rate: float = 1.0) -> float:
    """The smallest noise multiplier, to a thousandth of it, with which so many releases spend no more than epsilon.

    Raises:
        ConfigError: no noise is enough.
    """
    low, high = 0.0, 1.0
    while Accountant(high, delta, sample_rate).epsilon(releases) > epsilon:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise ConfigError(f"no noise gives {releases} releases an epsilon of {epsilon:g} at a delta of {delta:g}")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if Accountant(middle, delta, sample_rate).epsilon(releases) > epsilon:
            low = middle
        else:
            high = middle
    return high
