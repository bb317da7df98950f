"""A direction for each row of the batch (GRZO), at the forward rows of one two-point step for all of them.

An update then averages over as many directions as there are rows, which costs nothing where the loss of every row is
computed anyway; in exchange each direction is judged by a single row.

Source: GRZO, arXiv 2606.02857. There the differences are divided by their standard deviation; here by their root mean
square, which is the same on average, since a symmetric difference has mean 0, and is defined for a single row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedmezo.records import Batch
from fedmezo.zo.estimators.one_sided import normalised
from fedmezo.zo.estimators.protocol import Settings, all_finite
from fedmezo.zo.local import Probe
from fedmezo.zo.noise import MAX_QUERIES
from fedmezo.zo.replay import Address, Move, Pace, linear_moves


@dataclass(frozen=True, slots=True)
class PerExample:
    """s_j = d_j / rms(d) with d_j = L(theta + eps z_j; x_j) - L(theta - eps z_j; x_j): a direction for each row x_j.

    Args:
        settings: `queries` is directions per row.
        rows: of a batch. A smaller one gives its rows more than one direction each, so that every step has as many.
    """

    settings: Settings = field(default_factory=Settings)
    rows: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.directions < MAX_QUERIES:
            raise ValueError(f"rows x queries must be from 1 to {MAX_QUERIES - 1}, not {self.directions}")

    @property
    def directions(self) -> int:
        """One for each row and query."""
        return self.rows * self.settings.queries

    @property
    def losses_per_step(self) -> int:
        """Two for each direction, each of one row."""
        return 2 * self.directions

    @property
    def passes(self) -> int:
        """Two for each query: every probe has one row."""
        return 2 * self.settings.queries

    @property
    def largest(self) -> float:
        """The clip, or that of as many numbers whose mean square is 1."""
        return self.settings.clip or math.sqrt(self.directions)

    def probes(self, address: Address, step: int, batch: Batch) -> list[Probe]:
        """Theta + eps z and theta - eps z on one row, direction by direction; the rows in turn."""
        eps, rows = self.settings.step_size, [row_of(batch, row) for row in range(batch.num_examples)]
        return [
            Probe(rows[query % len(rows)], address.stream(step, query), amount)
            for query in range(self.directions)
            for amount in (eps, -eps)
        ]

    def scalars(self, losses: Sequence[float]) -> tuple[float, ...] | None:
        """The normalised difference of each direction; zeros where no direction changes a loss."""
        if not all_finite(losses):
            return None
        differences = [plus - minus for plus, minus in zip(losses[::2], losses[1::2], strict=True)]
        return tuple(map(self.settings.to_scalar, normalised(differences)))

    def train_loss(self, losses: Sequence[float]) -> float:
        """The mean of all losses."""
        return sum(losses) / len(losses)

    def moves(self, pace: Pace, scalars: Sequence[float], address: Address, from_step: int = 0) -> list[Move]:
        """Theta -= rate s_j z_j / n for each of n directions."""
        scale_free = self.settings.scale_free
        return linear_moves(pace, scalars, address, self.directions, from_step, scale_free=scale_free)


def row_of(batch: Batch, row: int) -> Batch:
    """One row of a batch, as padded as it is there."""
    own = slice(row, row + 1)
    return Batch(batch.input_ids[own], batch.attention_mask[own], batch.labels[own])
