"""Theta that is bfloat16, rounded at random: up or down, the nearer the likelier, so that nothing is lost on average.

Rounded to the nearest, a weight of 0.05 moves by 0.0002 or not at all, and most steps of a fine-tune are smaller. The
random bits are those of a stream, so that whoever replays a round rounds alike. All moves of a round are made in
float32, chunk by chunk, and the chunk is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmezo.zo.noise import Directions, Stream, halves
from fedmezo.zo.replay import Move, apply_range_

DROPPED_BITS = 16
"""Of a float32's significand, by bfloat16."""

ELEMENTS_AT_ONCE = 1 << 17
"""The random bits of so many elements stay in the cache of a CPU core."""

CHUNK = 1 << 22
"""Elements that are in float32 at a time: 16 MiB."""


def apply_rounded_(theta: Tensor, moves: Sequence[Move], noise: Directions, stream: Stream) -> Tensor:
    """Make the moves of a round in order, in float32, and round what they come to; theta (d,) bfloat16, in place."""
    for a in range(0, len(theta), CHUNK):
        part = theta[a : a + CHUNK]
        wide = apply_range_(part.float(), moves, noise, a)
        part.copy_(round_randomly_(wide, stream, a))
    return theta


def round_randomly_(part: Tensor, stream: Stream, start: int) -> Tensor:
    """Round elements [start, start + len(part)) of theta, given as `part`, to values that bfloat16 has, in place.

    They are float32 and finite; one that is such a value already stays as it is.
    """
    bits = part.view(torch.int32)  # sign and size: adding to it makes the size larger
    for a in range(0, len(part), ELEMENTS_AT_ONCE):
        some = bits[a : a + ELEMENTS_AT_ONCE]
        some.add_(halves(stream, start + a, start + a + len(some), part.device))
        some.bitwise_and_(-1 << DROPPED_BITS)
    return part
