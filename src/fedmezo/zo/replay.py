"""Moving theta along directions that anyone can regenerate. A run is a list of such moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmezo.zo.arithmetic import round_coefficient
from fedmezo.zo.noise import Noise, Purpose, Stream, chunk_of

DIRECTIONS_AT_ONCE = 256
"""Bounds the memory of short vectors, where many directions are generated in one call."""


@dataclass(frozen=True, slots=True)
class Move:
    """Theta <- theta - coefficient z, with the z of `stream`; the coefficient has 16 significant bits."""

    stream: Stream
    coefficient: float


def direction_stream(seed: int, round_index: int, client: int, step: int, query: int) -> Stream:
    """The address of one probe's direction."""
    return Stream(seed, Purpose.DIRECTION, round_index, client, step, query)


def local_moves(
    seed: int, round_index: int, client: int, scale: float, scalars: Sequence[float], queries: int, first_step: int = 0
) -> list[Move]:
    """The moves of one client's steps: coefficient c = round16(scale g / q), in the order step, query.

    Args:
        seed: run seed.
        round_index: the round.
        client: the client.
        scale: its rate for its own steps; weight x rate for its share in the average.
        scalars: g of each step and query, step by step.
        queries: directions per step, q.
        first_step: step of the first scalar.
    """
    return [
        Move(
            direction_stream(seed, round_index, client, first_step + i // queries, i % queries),
            round_coefficient(scale * g / queries),
        )
        for i, g in enumerate(scalars)
    ]


def apply_(theta: Tensor, moves: Sequence[Move], noise: Noise) -> Tensor:
    """Make every move in order, each subtracted on its own; theta (d,) float32 is changed in place and returned.

    One pass over theta: all moves of a chunk are made while it is in cache.
    """
    return apply_range_(theta, moves, noise, 0)


def apply_range_(part: Tensor, moves: Sequence[Move], noise: Noise, start: int) -> Tensor:
    """`apply_` for the elements [start, start + len(part)) of theta, given as `part`."""
    effective = [move for move in moves if move.coefficient != 0.0]
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


def update_from_zero(moves: Sequence[Move], noise: Noise, start: int, stop: int, device: torch.device) -> Tensor:
    """Elements [start, stop) of the sum of the moves on their own: what a client's steps add to theta."""
    return apply_range_(torch.zeros(stop - start, device=device), moves, noise, start)
