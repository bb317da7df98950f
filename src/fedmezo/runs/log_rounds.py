"""The rounds of a published log as they are read: from columns of numbers to records, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fedmezo.config.schema import MAX_STEPS
from fedmezo.records import Contribution, GroupSum, RoundRecord
from fedmezo.runs.format import Header
from fedmezo.zo.arithmetic import LARGEST_FACTOR, coefficients_fault, decode_scalars
from fedmezo.zo.replay import LARGEST_SHARE


class Rounds(Sequence[RoundRecord]):
    """The rounds of a log, each made from the columns when it is asked for: as objects they need far more memory.

    Args:
        sizes: (rounds,) parts of each round.
        owners: (parts,) whose directions each goes along.
        counts: (parts,) numbers of each.
    """

    def __init__(self, sizes: NDArray[np.uint32], owners: NDArray[np.uint32], counts: NDArray[np.uint32]) -> None:
        self._stops = np.cumsum(sizes, dtype=np.int64)
        self._owners = owners
        self._number_stops = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._stops)

    @overload
    def __getitem__(self, index: int) -> RoundRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RoundRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> RoundRecord | tuple[RoundRecord, ...]:
        if isinstance(index, slice):
            return tuple(self._record(i) for i in range(*index.indices(len(self))))
        return self._record(range(len(self))[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(other) == len(self) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of any sequence that is compared by its items

    def _record(self, index: int) -> RoundRecord:
        raise NotImplementedError

    def _parts(self, index: int) -> range:
        """The parts of a round."""
        return range(int(self._stops[index - 1]) if index else 0, int(self._stops[index]))

    def _numbers(self, part: int) -> slice:
        """Where the numbers of a part are."""
        return slice(int(self._number_stops[part - 1]) if part else 0, int(self._number_stops[part]))

    def _require_few(self, header: Header, whose: str) -> None:
        """ValueError unless each owner has one part of a round, and no more numbers than steps allow."""
        rounds = np.repeat(np.arange(len(self), dtype=np.uint64), np.diff(self._stops, prepend=0))
        if len(np.unique(rounds << np.uint64(32) | self._owners)) < len(self._owners):
            raise ValueError(f"it holds two contributions of a {whose} to one round")
        counts = np.diff(self._number_stops, prepend=0)
        if counts.max(initial=0) > MAX_STEPS * header.directions:
            raise ValueError(f"it holds {counts.max()} scalars of a {whose}; needs at most {MAX_STEPS} steps")


class GroupRounds(Rounds):
    """The rounds of a log of group sums.

    Args:
        sizes: see `Rounds`, as for the next two.
        owners: the groups.
        counts: see there.
        coefficients: float32, of one group after the other.
    """

    def __init__(
        self,
        sizes: NDArray[np.uint32],
        owners: NDArray[np.uint32],
        counts: NDArray[np.uint32],
        coefficients: NDArray[np.float32],
    ) -> None:
        super().__init__(sizes, owners, counts)
        self._coefficients = coefficients

    def _record(self, index: int) -> RoundRecord:
        groups = tuple(
            GroupSum(int(self._owners[part]), 0, 0, 0.0, 0, tuple(self._coefficients[self._numbers(part)].tolist()))
            for part in self._parts(index)
        )
        return RoundRecord(index, (), (), (), "", groups)

    def require_sound(self, header: Header) -> None:
        """ValueError unless every number may stand in a journal of that header; see `format.GroupLine`."""
        self._require_few(header, "group")
        if self._owners.max(initial=0) >= header.direction_groups:
            raise ValueError(f"it holds a group {self._owners.max()}; needs one of {header.direction_groups}")
        if fault := coefficients_fault(self._coefficients.tolist()):
            raise ValueError(f"it holds what cannot be: {fault}")


class ClientRounds(Rounds):
    """The rounds of a log of clients' scalars.

    Args:
        sizes: (rounds,) contributions of each round.
        owners: (contributions,) who made them.
        counts: (contributions,) scalars of each.
        rates: (contributions,) float32.
        weights: (contributions,) float32.
        scale: (contributions,) float32, sizes of scalars before each.
        scalars: bfloat16 as uint16, of one contribution after the other.
    """

    def __init__(
        self,
        sizes: NDArray[np.uint32],
        owners: NDArray[np.uint32],
        counts: NDArray[np.uint32],
        rates: NDArray[np.float32],
        weights: NDArray[np.float32],
        scale: NDArray[np.float32],
        scalars: NDArray[np.uint16],
    ) -> None:
        super().__init__(sizes, owners, counts)
        self._rates, self._weights, self._scale, self._scalars = rates, weights, scale, scalars

    def _record(self, index: int) -> RoundRecord:
        parts = tuple(map(self._part, self._parts(index)))
        return RoundRecord(index, tuple(part.client for part in parts), parts, (), "")

    def _part(self, index: int) -> Contribution:
        scalars = decode_scalars(self._scalars[self._numbers(index)].tobytes())
        rate, weight = float(self._rates[index]), float(self._weights[index])
        size = float(self._scale[index])
        return Contribution(int(self._owners[index]), rate, weight, 0, 0.0, 0, scalars, size=size)

    def require_sound(self, header: Header) -> None:
        """ValueError unless every number may stand in a journal of that header; see `format.ContributionLine`."""
        columns = (
            ("rate", self._rates, LARGEST_FACTOR),
            ("weight", self._weights, 1.0),
            ("size", self._scale, LARGEST_FACTOR),
        )
        for name, column, largest in columns:
            with np.errstate(invalid="ignore"):
                sound = (column >= 0) & (column <= largest) & (column.view("<u4") & 0xFF == 0)
            if not sound.all():
                raise ValueError(f"it holds a {name} of {column[~sound][0]}; needs 0 to {largest:g} in 16 bits")
        self._require_few(header, "client")
        counts = np.diff(self._number_stops, prepend=0)
        sizes = self._scalars & 0x7FFF  # of bfloat16: the sign taken off, they are in order
        if sizes.max(initial=0) >= 0x7F80:
            raise ValueError("it holds scalars that are not finite")
        some = counts > 0
        greatest = np.maximum.reduceat(sizes, (self._number_stops - counts)[some]) if some.any() else sizes[:0]
        reach = (greatest.astype("<u4") << 16).view("<f4").astype(float)
        moved = np.maximum(reach, LARGEST_SHARE if header.scale_free else 0.0) * self._rates[some]
        if moved.max(initial=0.0) > LARGEST_FACTOR:
            raise ValueError("it holds rates and scalars that are too large to move theta")
