"""How the examples of a category are shared out among the clients: iid, lda, meta.

A splitter is a rule for shares: a row per category, a column per client, each row adding up to 1. The shares are drawn
once and used for train, val and test alike. To add a splitter, write its class and name it in `make_splitter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmezo.errors import DataError

DEFAULT_ALPHA = 0.5


class Splitter(Protocol):
    """A rule for the shares of every category."""

    @property
    def by_category(self) -> bool:
        """Whether categories are shared out one by one; otherwise all examples count as one category."""
        ...

    def shares(
        self, train_counts: NDArray[np.int64], num_clients: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw the shares (k, n) of n clients in k categories with `train_counts` (k,) training examples."""
        ...

    def __str__(self) -> str:
        """Name the rule with its settings, as the user gave them."""
        ...


@dataclass(frozen=True, slots=True)
class Iid:
    """Every client gets an equal, random share of everything."""

    by_category = False

    def shares(
        self, train_counts: NDArray[np.int64], num_clients: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Give 1/n to each client."""
        return np.full((len(train_counts), num_clients), 1 / num_clients)

    def __str__(self) -> str:
        """Return "iid"."""
        return "iid"


@dataclass(frozen=True, slots=True)
class Lda:
    """Client i gets the share p_ki of category k, with p_k ~ Dirichlet(alpha, ..., alpha), one entry per client.

    The smaller alpha, the less alike the clients: E p_ki = 1/n, Var p_ki = (1/n)(1 - 1/n)/(n alpha + 1). Latent
    Dirichlet allocation after Hsu et al. 2019 (arXiv 1909.06335), in the form of the reference code and of Yurochkin
    et al. 2019 (arXiv 1905.12022): one draw per category, over clients; Hsu et al. draw per client, over categories.
    """

    alpha: float = DEFAULT_ALPHA
    by_category = True

    def __post_init__(self) -> None:
        if not (isfinite(self.alpha) and self.alpha > 0):
            raise DataError(f"data.splitter_args: alpha is {self.alpha}; lda needs a finite number above 0")

    def shares(
        self, train_counts: NDArray[np.int64], num_clients: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw a Dirichlet vector per category."""
        return rng.dirichlet(np.full(num_clients, self.alpha), size=len(train_counts))

    def __str__(self) -> str:
        """Return the name with alpha."""
        return f"lda(alpha={self.alpha:g})"


@dataclass(frozen=True, slots=True)
class Meta:
    """Categories stay whole and are dealt out in random order, in turn.

    With more clients than categories a category is divided evenly among several clients; each further client joins
    the category whose clients have the most training examples (the reference fails there).
    """

    by_category = True

    def shares(
        self, train_counts: NDArray[np.int64], num_clients: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Give each category to its client, or 1/m to each of its m clients."""
        num_categories = len(train_counts)
        holds = np.zeros((num_categories, num_clients))
        order = rng.permutation(num_categories)
        holds[order, np.arange(num_categories) % num_clients] = 1
        for client in range(num_categories, num_clients):
            holds[np.argmax(train_counts / holds.sum(axis=1)), client] = 1
        return np.asarray(holds / holds.sum(axis=1, keepdims=True))

    def __str__(self) -> str:
        """Return "meta"."""
        return "meta"


def make_splitter(name: str, alpha: float = DEFAULT_ALPHA) -> Splitter:
    """Return the splitter called `name`: iid, lda (the only one that reads `alpha`) or meta. Raises DataError."""
    splitters: dict[str, Splitter] = {"iid": Iid(), "lda": Lda(alpha), "meta": Meta()}
    if name not in splitters:
        raise DataError(f"data.splitter {name!r}: there is no such splitter. Allowed: {', '.join(splitters)}")
    return splitters[name]
