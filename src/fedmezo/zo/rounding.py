"""Rounding theta to bfloat16 at random: up or down, the nearer the likelier, so that nothing is lost on average.

Rounded to the nearest, a weight of 0.05 moves by 0.0002 or not at all, and most steps of a fine-tune are smaller. The
random bits are those of a stream, so that whoever replays a round rounds alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmezo.zo.noise import Stream, halves

DROPPED_BITS = 16
"""Of a float32's significand, by bfloat16."""

ELEMENTS_AT_ONCE = 1 << 17
"""The random bits of so many elements stay in the cache of a CPU core."""


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
