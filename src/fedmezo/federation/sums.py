"""A client's report as whole numbers that can be added up, and what their sum says.

A report becomes a vector of signed 64-bit words: for each direction its weight times its scalar, then its weight, its
weight times its loss, its skipped steps, and 1. Scalars and losses are in fixed point, of a unit so chosen that no sum
over a cohort can overflow. Whole numbers have one sum, in whatever order they are added, and added masked, modulo 2^64
or of fewer bits where no sum needs more, they have the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmezo.errors import ConfigError
from fedmezo.federation.rates import LARGEST_LOSS
from fedmezo.records import Report

Words: TypeAlias = NDArray[np.int64]
"""(scalars + 4,) words of a report, or of a sum of reports."""

MOST_BYTES = 8
"""Of a word."""

SPARE_BITS = 2
"""Of a word: its sign, and what rounding adds to a sum."""

FINE_UNIT = 2.0**-24
"""Of a scalar: far below what its 8 significant bits leave open, unless it hardly moves theta at all."""

COARSEST_UNIT = 2.0**-16
"""Of a scalar: a coarser one would round away scalars that matter."""

_BESIDES = 4  # weight, weight x loss, skipped steps, 1


@dataclass(frozen=True, slots=True)
class Tally:
    """What a sum of reports says.

    Args:
        clients: that are in it.
        weight: of them together.
        scalars: of each direction, sum of weight x scalar.
        loss: sum of weight x loss.
        skipped_steps: of them together.
        clipped: share of the clients whose scalars were clipped, under noise; None where nothing is.
    """

    clients: int
    weight: int
    scalars: tuple[float, ...]
    loss: float
    skipped_steps: int
    clipped: float | None = None


class Coding(Protocol):
    """How reports become words that can be summed, and what a sum says."""

    @property
    def length(self) -> int:
        """Words of a report."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes that hold each word of any sum."""
        ...

    @property
    def fewest(self) -> int:
        """Reports that a sum needs."""
        ...

    def words(self, report: Report) -> Words:
        """A sound report, as `aggregate.report_fault` has it, as words."""
        ...

    def tally(self, total: Words) -> Tally:
        """What a sum says."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How reports become words.

    Args:
        scalars: of a report.
        clients: that can be in a sum at most.
        examples: that a client can process in a round at most.
        largest: size of a scalar.
        equal: every report has the weight 1; else as many as its examples.

    Raises:
        ConfigError: with units that cannot overflow, scalars would be too coarse.
    """

    scalars: int
    clients: int
    examples: int
    largest: float
    equal: bool

    def __post_init__(self) -> None:
        if self.scalar_unit > COARSEST_UNIT or self.loss_unit > COARSEST_UNIT:
            raise ConfigError(
                f"the scalars of {self.clients} clients, each up to {self.largest:g} in size and counted for "
                f"{self._most_weight} examples, cannot be summed in 64 bits with a unit of {COARSEST_UNIT:g} or finer; "
                "set train.zo.clip to a size that scalars do not reach, or federate.ignore_weight: True"
            )

    @property
    def length(self) -> int:
        """Words of a report."""
        return self.scalars + _BESIDES

    @property
    def scalar_unit(self) -> float:
        """What 1 stands for in the words of scalars, a power of two."""
        return self._unit(self.largest, self.word_bytes)

    @property
    def loss_unit(self) -> float:
        """What 1 stands for in the word of the loss, a power of two."""
        return self._unit(LARGEST_LOSS, self.word_bytes)

    @property
    def word_bytes(self) -> int:
        """Bytes of the words of scalars and of the loss: as few as leave their units fine."""
        return next(
            (
                size
                for size in range(4, MOST_BYTES)
                if self._unit(self.largest, size) <= FINE_UNIT and self._unit(LARGEST_LOSS, size) <= COARSEST_UNIT
            ),
            MOST_BYTES,
        )

    @property
    def fewest(self) -> int:
        """One: nothing is hidden in a sum as it is."""
        return 1

    @property
    def widths(self) -> tuple[int, ...]:
        """See `Coding`."""
        counts = (self.clients * self._most_weight, self.clients * self.scalars, self.clients)
        weight, skipped, one = ((count.bit_length() + 8) // 8 for count in counts)
        return (*(self.word_bytes,) * self.scalars, weight, self.word_bytes, skipped, one)

    def words(self, report: Report) -> Words:
        """See `Coding`."""
        weight = 1 if self.equal else report.num_examples
        scalars = np.rint(np.array(report.scalars or (), dtype=np.float64) / self.scalar_unit).astype(np.int64)
        loss = round(report.train_loss / self.loss_unit)
        return np.concatenate([weight * scalars, np.array([weight, weight * loss, report.skipped_steps, 1], np.int64)])

    def tally(self, total: Words) -> Tally:
        """See `Coding`."""
        weight, loss, skipped, clients = total[self.scalars :].tolist()
        scalars = total[: self.scalars].astype(np.float64) * self.scalar_unit
        return Tally(clients, weight, tuple(scalars.tolist()), loss * self.loss_unit, skipped)

    @property
    def _most_weight(self) -> int:
        return 1 if self.equal else self.examples

    def _unit(self, largest: float, size: int) -> float:
        """The smallest power of two by which no sum of numbers up to `largest` overflows words of `size` bytes."""
        bound = self.clients * self._most_weight * largest
        return 2.0 ** (math.ceil(math.log2(bound)) + SPARE_BITS - 8 * size)


def total_of(parts: Iterable[Words]) -> Words:
    """The sum of some reports' words, of one at least."""
    first, *others = parts
    return sum(others, start=first)
