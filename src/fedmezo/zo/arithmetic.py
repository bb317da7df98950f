"""The rounding rules that make replay exact on every device.

A coefficient has 16 significant bits and a direction 8, so their product fits the 24 bits of a float32 and is exact:
theta + c z then rounds once, with or without a fused multiply-add, on any device.
"""

import hashlib
import math
import struct
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

COEFFICIENT_BITS = 16
SMALLEST_COEFFICIENT = 2.0**-100
"""Below it a coefficient is 0, so that no product with a direction is subnormal in float32."""

LARGEST_FACTOR = 2.0**127
"""Of a rate, a scalar, and a rate times a scalar: what moves theta must fit float32."""


def round_coefficient(value: float) -> float:
    """`value` rounded to 16 significant bits, ties to even; 0 where it is smaller than 2^-100 in size.

    Raises:
        ValueError: `value` is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"a coefficient must be finite, not {value}")
    if abs(value) < SMALLEST_COEFFICIENT:
        return 0.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, COEFFICIENT_BITS)), exponent - COEFFICIENT_BITS)


def largest(scalars: Sequence[float]) -> float:
    """The largest size among some scalars, infinity where one is not finite; 0 of none."""
    return max((abs(g) if math.isfinite(g) else math.inf for g in scalars), default=0.0)


def factor_fault(rate: float, weight: float, largest_scalar: float) -> str | None:
    """What keeps a client's rate, weight and scalars, whoever sent them, from moving theta; None if nothing does."""
    for name, value, most in (("rate", rate, LARGEST_FACTOR), ("weight", weight, 1.0)):
        if not 0 <= value <= most:
            return f"its {name} is {value:g}; needs 0 to {most:g}"
    if not largest_scalar <= LARGEST_FACTOR or rate * largest_scalar > LARGEST_FACTOR:
        return "its rate and scalars are too large to move theta, or not finite"
    return None


def round_scalar(value: float) -> float:
    """`value` rounded to bfloat16, ties to even."""
    return float(torch.tensor(value, dtype=torch.float32).to(torch.bfloat16))


def encode_scalars(scalars: Sequence[float]) -> bytes:
    """Two bytes a scalar: little-endian bfloat16, the high half of the float32.

    Raises:
        ValueError: a scalar is not exactly representable in bfloat16.
    """
    packed = struct.pack(f"<{len(scalars)}f", *scalars)
    if any(packed[0::4]) or any(packed[1::4]):
        raise ValueError("only scalars rounded to bfloat16 can be encoded")
    return bytes(byte for i in range(0, len(packed), 4) for byte in packed[i + 2 : i + 4])


def decode_scalars(data: bytes) -> tuple[float, ...]:
    """The inverse of `encode_scalars`.

    Raises:
        ValueError: an odd number of bytes.
    """
    if len(data) % 2:
        raise ValueError(f"scalars are 2 bytes each, but {len(data)} bytes were given")
    return tuple(map(_bfloat16_numbers().__getitem__, struct.unpack(f"<{len(data) // 2}H", data)))


@cache
def _bfloat16_numbers() -> tuple[float, ...]:
    """All of them by their bits, so that many scalars take no more memory than references to these."""
    return struct.unpack(f"<{1 << 16}f", struct.pack(f"<{1 << 16}I", *(bits << 16 for bits in range(1 << 16))))


def state_hash(theta: Tensor, *moments: Tensor) -> str:
    """SHA-256, in hexadecimal, of theta (d,), and of moments after it, as little-endian float32."""
    digest = hashlib.sha256()
    for vector in (theta, *moments):
        digest.update(vector.detach().cpu().contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
