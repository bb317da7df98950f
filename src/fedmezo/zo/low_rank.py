"""Directions of low rank for matrices: z = S T' / sqrt(r), of random signs S (m, r) and T (n, r).

Their elements have mean 0 and identity covariance, and cost (m + n) r bits where a dense direction takes m n. What they
leave out is what makes them useful: theta + amount z never has to be made, since (W + amount z) x is
W x + amount S (T' x) / sqrt(r). Vectors take plain signs.

With r = 4^p, sqrt(r) is a power of two and an element of S T' a whole number up to r in size and, from r = 4 on, even:
half of it is at most 2^(2p - 1), and so has at most 2p - 1 significant bits, 7 where r is 256. A coefficient has 16,
and the product of the two fits the 24 of a float32: c z is exact, and theta - c z rounds once, as with any direction.
With r = 1024 it would take 25.

A matrix has r rows of m signs, then r rows of n; a vector has one row. Each row begins at a block of the stream of its
own, in the order of the tensors, so that any row, and any part of it, can be had alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fedmezo.records import Segment
from fedmezo.zo.noise import SIGNS_PER_BLOCK, Directions, Stream, noise_for, sign_octets, unpack_signs

LOW_RANK = "low-rank"
RANKS = (1, 4, 16, 64, 256)
"""Powers of four up to the largest whose directions have no more than 8 significant bits."""

OCTETS_PER_BLOCK = SIGNS_PER_BLOCK // 8

ELEMENTS_AT_ONCE = 1 << 18
"""Of a matrix that all moves go over while it is in the cache of a CPU core: 1 MiB of float32."""
SIGNS_AT_ONCE = 1 << 22
"""Signs of the rows of a matrix that are generated at a time."""


@dataclass(frozen=True, slots=True)
class SignRows:
    """Where the signs of one tensor are in a stream.

    Args:
        segment: the tensor.
        first: its first block.
        m: rows of the matrix, or elements of the vector.
        n: columns of the matrix; 0 for a vector.
        rank: r; 1 for a vector.
    """

    segment: Segment
    first: int
    m: int
    n: int
    rank: int

    @property
    def last(self) -> int:
        """One past the last block."""
        return self.first + self.rank * (_blocks(self.m) + _blocks(self.n))

    @property
    def s_block(self) -> int:
        """The block of the first row of S', which has m signs."""
        return self.first

    @property
    def t_block(self) -> int:
        """The block of the first row of T', which has n signs."""
        return self.first + self.rank * _blocks(self.m)

    def s_of(self, octets: Tensor, start: int = 0) -> Tensor:
        """S' from packed blocks of streams, (..., bytes) uint8 from block `start` on: (..., r, m) float32."""
        return unpack_signs(self.s_octets(octets, start))[..., : self.m]

    def t_of(self, octets: Tensor, start: int = 0) -> Tensor:
        """T' likewise, (..., r, n)."""
        return unpack_signs(_rows(octets, self.t_block - start, self.rank, self.n))[..., : self.n]

    def s_octets(self, octets: Tensor, start: int = 0) -> Tensor:
        """The packed signs of S', (..., r, bytes) uint8."""
        return _rows(octets, self.s_block - start, self.rank, self.m)


@dataclass(frozen=True, slots=True)
class LowRankNoise:
    """Directions of rank r over the matrices of a model, and of signs over its vectors; see `Noise` for the others.

    Args:
        rank: r, one of `RANKS`.
        segments: the trainable tensors in canonical order; of more than two dimensions, the first is that of rows.

    Raises:
        ValueError: another rank.
    """

    rank: int
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if self.rank not in RANKS:
            raise ValueError(f"rank {self.rank} must be one of {', '.join(map(str, RANKS))}")

    @property
    def name(self) -> str:
        """Of the distribution."""
        return LOW_RANK

    @property
    def compiled(self) -> bool:
        """Never: signs are few."""
        return False

    @property
    def sign_rows(self) -> tuple[SignRows, ...]:
        """Where each tensor's signs are."""
        return _sign_rows(self.rank, self.segments)

    @property
    def num_octets(self) -> int:
        """Bytes of a direction's packed signs."""
        return OCTETS_PER_BLOCK * self.sign_rows[-1].last

    def octets(self, streams: Sequence[Stream], device: torch.device | str = "cpu") -> Tensor:
        """All signs of the direction of each stream, packed: (len(streams), bytes) uint8."""
        return sign_octets(streams, 0, self.sign_rows[-1].last, device)

    def directions(
        self, streams: Sequence[Stream], start: int, stop: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Elements [start, stop) of the direction z of each stream: (len(streams), stop - start) bfloat16."""
        z = torch.empty(len(streams), stop - start, dtype=torch.bfloat16, device=device)
        at_once = max(1, ELEMENTS_AT_ONCE // max(1, len(streams)))
        for rows, begin, end in self._parts(start, stop):
            for a in range(begin, end, at_once):
                b, offset = min(a + at_once, end), rows.segment.start
                z[:, a - start : b - start] = _elements(rows, streams, a - offset, b - offset, z.device)
        return z

    def subtract_(self, part: Tensor, streams: Sequence[Stream], coefficients: Sequence[float], start: int) -> None:
        """Subtract c z for each stream in turn from elements [start, start + len(part)) of theta, given as `part`.

        One pass over theta: all directions are subtracted from a block of rows while it is in cache.
        """
        for rows, a, b in self._parts(start, start + len(part)):
            some, first, last = part[a - start : b - start], a - rows.segment.start, b - rows.segment.start
            if rows.n == 0:
                signs = _signs(streams, rows.first, first, last, part.device)
                for row, c in zip(signs, coefficients, strict=True):
                    some.sub_(row, alpha=c)
                continue
            top, bottom = -(-first // rows.n), last // rows.n  # rows that are whole
            if top >= bottom:
                self._subtract_ragged_(some, rows, streams, coefficients, first)
                continue
            body = some[top * rows.n - first : bottom * rows.n - first]
            _subtract_outer_(body.view(-1, rows.n), rows, streams, coefficients, top)
            self._subtract_ragged_(some[: top * rows.n - first], rows, streams, coefficients, first)
            self._subtract_ragged_(some[bottom * rows.n - first :], rows, streams, coefficients, bottom * rows.n)

    def _subtract_ragged_(
        self, part: Tensor, rows: SignRows, streams: Sequence[Stream], coefficients: Sequence[float], first: int
    ) -> None:
        """`subtract_` for elements of a matrix from `first` on that are no whole rows."""
        if len(part):
            z = _elements(rows, streams, first, first + len(part), part.device)
            for row, c in zip(z, coefficients, strict=True):
                part.sub_(row, alpha=c)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[SignRows, int, int]]:
        """The tensors that elements [start, stop) of theta belong to, and which elements are theirs."""
        for rows in self.sign_rows:
            a, b = max(start, rows.segment.start), min(stop, rows.segment.stop)
            if a < b:
                yield rows, a, b


def directions_for(name: str, rank: int, segments: Sequence[Segment], number: int, device: torch.device) -> Directions:
    """The distribution of this name over a model's tensors.

    Args:
        name: `gaussian`, `rademacher` or `low-rank`.
        rank: of the last.
        segments: the trainable tensors.
        number: of directions that will be generated, which decides whether to compile.
        device: where.
    """
    if name == LOW_RANK:
        return LowRankNoise(rank, tuple(segments))
    return noise_for(name, number * segments[-1].stop, device)


def _subtract_outer_(
    matrix: Tensor, rows: SignRows, streams: Sequence[Stream], coefficients: Sequence[float], top: int
) -> None:
    """Subtract c S T' / sqrt(r) for each stream in turn from rows `top` and following of a matrix, (k, n)."""
    root = math.isqrt(rows.rank)
    t = rows.t_of(sign_octets(streams, rows.t_block, rows.last, matrix.device), rows.t_block)  # (moves, r, n)
    at_once = max(1, SIGNS_AT_ONCE // (len(streams) * rows.rank))
    height = max(1, ELEMENTS_AT_ONCE // rows.n) if matrix.device.type == "cpu" else len(matrix)
    for a in range(0, len(matrix), at_once):
        b = min(a + at_once, len(matrix))
        s = _s_rows(rows, streams, top + a, top + b, matrix.device)  # (moves, r, b - a)
        for block, signs in zip(torch.split(matrix[a:b], height), torch.split(s, height, dim=2), strict=True):
            for left, right, c in zip(signs, t, coefficients, strict=True):
                if rows.rank == 1:
                    block.addcmul_(left.mT, right, value=-c)
                else:
                    block.sub_(left.mT @ right, alpha=c / root)


def _elements(rows: SignRows, streams: Sequence[Stream], start: int, stop: int, device: torch.device) -> Tensor:
    """Elements [start, stop) of one tensor's directions, (len(streams), stop - start) float32."""
    if rows.n == 0:
        return _signs(streams, rows.first, start, stop, device)
    top, bottom = start // rows.n, -(-stop // rows.n)
    s = _s_rows(rows, streams, top, bottom, device)
    t = rows.t_of(sign_octets(streams, rows.t_block, rows.last, device), rows.t_block)  # (moves, r, n)
    z = (s.mT @ t) / math.isqrt(rows.rank)  # whole numbers before: any order of addition is exact
    return z.flatten(1)[:, start - top * rows.n : stop - top * rows.n]


def _s_rows(rows: SignRows, streams: Sequence[Stream], top: int, bottom: int, device: torch.device) -> Tensor:
    """Rows [top, bottom) of S of each stream, as (len(streams), r, bottom - top) float32."""
    firsts = [rows.s_block + j * _blocks(rows.m) for j in range(rows.rank)]
    return torch.stack([_signs(streams, first, top, bottom, device) for first in firsts], dim=1)


def _signs(streams: Sequence[Stream], block: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Signs [start, stop) of the row that begins at a block: (len(streams), stop - start) float32."""
    first, last = start // SIGNS_PER_BLOCK, _blocks(stop)
    signs = unpack_signs(sign_octets(streams, block + first, block + last, device))
    return signs[:, start - first * SIGNS_PER_BLOCK : stop - first * SIGNS_PER_BLOCK]


def _rows(octets: Tensor, block: int, rank: int, size: int) -> Tensor:
    """`rank` rows of `size` packed signs, the first of which begins at a block of the streams: (..., rank, bytes)."""
    width = OCTETS_PER_BLOCK * _blocks(size)
    start = OCTETS_PER_BLOCK * block
    some = octets[..., start : start + rank * width]
    return some.view(*some.shape[:-1], rank, width)[..., : -(-size // 8)]


def _blocks(signs: int) -> int:
    return -(-signs // SIGNS_PER_BLOCK)


@cache
def _sign_rows(rank: int, segments: tuple[Segment, ...]) -> tuple[SignRows, ...]:
    found: list[SignRows] = []
    for segment in segments:
        first = found[-1].last if found else 0
        size = segment.stop - segment.start
        if len(segment.shape) < 2:
            found.append(SignRows(segment, first, size, 0, 1))
        else:
            found.append(SignRows(segment, first, segment.shape[0], size // segment.shape[0], rank))
    return tuple(found)
