"""Moving theta along directions that anyone can regenerate. A run is a list of such moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmezo.zo.arithmetic import round_coefficient
from fedmezo.zo.low_rank import LowRankNoise
from fedmezo.zo.noise import Directions, Purpose, Stream, chunk_of

DIRECTIONS_AT_ONCE = 256
"""Bounds the memory of short vectors, where many directions are generated in one call."""

KEPT_OF_SIZE = 0.95
"""How much of the running mean square of the scalars stays from one step to the next."""

LARGEST_SHARE = 128.0
"""No scalar is larger in units of its running size, which holds its square: sqrt(255 / (1 - KEPT_OF_SIZE)) is 71."""


@dataclass(frozen=True, slots=True)
class Move:
    """Theta <- theta - coefficient z, with the z of `stream`; the coefficient has 16 significant bits."""

    stream: Stream
    coefficient: float


@dataclass(frozen=True, slots=True)
class Address:
    """Where the directions of a client's round are.

    Args:
        seed: run seed.
        round: the round.
        owner: whose directions they are: the streams' client word.
    """

    seed: int
    round: int
    owner: int

    def stream(self, step: int, query: int = 0) -> Stream:
        """The direction of one query of a step."""
        return Stream(self.seed, Purpose.DIRECTION, self.round, self.owner, step, query)


@dataclass(frozen=True, slots=True)
class Pace:
    """How far a client goes along a direction for a scalar of 1.

    Args:
        rate: of its own steps; weight x rate for its share in the average.
        size: with a scale-free rate, the root mean square of the scalars before the round; 0 if there were none.
    """

    rate: float
    size: float = 0.0


def linear_moves(
    pace: Pace,
    scalars: Sequence[float],
    address: Address,
    directions: int,
    from_step: int = 0,
    *,
    scale_free: bool = False,
) -> list[Move]:
    """Moves along the directions of each step in proportion to its scalars, in the order step, query.

    The coefficient is c = round16(rate s / n), or with a scale-free rate round16(rate s / n / size of that step).

    Args:
        pace: how far to go.
        scalars: of the client's round so far, step by step.
        address: where the directions are.
        directions: of a step, n.
        from_step: leave out the moves of the steps before it.
        scale_free: divide every scalar by the running root mean square of all up to its step.
    """
    sizes = running_sizes(pace.size, scalars, directions) if scale_free else None
    moves = []
    for i in range(from_step * directions, len(scalars)):
        step, query = divmod(i, directions)
        value = pace.rate * scalars[i] / directions
        if sizes is not None:
            value = value / sizes[step] if sizes[step] else 0.0
        moves.append(Move(address.stream(step, query), round_coefficient(value)))
    return moves


def running_sizes(size: float, scalars: Sequence[float], directions: int) -> list[float]:
    """The running root mean square of the scalars after each step, in float64: v <- b v + (1 - b) mean s^2.

    Source: MEAZO (arXiv 2605.03869). What comes first, `size` or else the first step, stands for all before it.
    """
    square = size * size
    sizes = []
    for first in range(0, len(scalars), directions):
        own = sum(s * s for s in scalars[first : first + directions]) / directions
        square = KEPT_OF_SIZE * square + (1 - KEPT_OF_SIZE) * own if square else own
        sizes.append(math.sqrt(square))
    return sizes


def perturb(theta: Tensor, z: Tensor, amount: float, out: Tensor | None = None) -> Tensor:
    """Theta + amount z (d,), in `out` or a new tensor; theta is float32, z bfloat16, and the product is exact."""
    return torch.add(theta, z, alpha=amount, out=out)


def apply_(theta: Tensor, moves: Sequence[Move], noise: Directions) -> Tensor:
    """Make every move in order, each subtracted on its own; theta (d,) float32 is changed in place and returned.

    One pass over theta: all moves of a chunk are made while it is in cache.
    """
    return apply_range_(theta, moves, noise, 0)


def apply_range_(part: Tensor, moves: Sequence[Move], noise: Directions, start: int) -> Tensor:
    """`apply_` for the elements [start, start + len(part)) of theta, given as `part`."""
    effective = [move for move in moves if move.coefficient != 0.0]
    if isinstance(noise, LowRankNoise):
        for i in range(0, len(effective), DIRECTIONS_AT_ONCE):
            some = effective[i : i + DIRECTIONS_AT_ONCE]
            noise.subtract_(part, [move.stream for move in some], [move.coefficient for move in some], start)
        return part
    size = chunk_of(part.device, compiled=noise.compiled)
    for a in range(0, len(part), size):
        chunk = part[a : a + size]
        at_once = max(1, min(size // len(chunk), DIRECTIONS_AT_ONCE))
        for i in range(0, len(effective), at_once):
            some = effective[i : i + at_once]
            z = noise.directions([move.stream for move in some], start + a, start + a + len(chunk), part.device)
            for move, row in zip(some, z, strict=True):
                chunk.sub_(row, alpha=move.coefficient)
    return part


def update_from_zero(moves: Sequence[Move], noise: Directions, start: int, stop: int, device: torch.device) -> Tensor:
    """Elements [start, stop) of the sum of the moves on their own: what a client's steps add to theta."""
    return apply_range_(torch.zeros(stop - start, device=device), moves, noise, start)
