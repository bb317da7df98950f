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

BYTES_PER_COEFFICIENT = 3

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


def are_scalars(values: Sequence[float]) -> bool:
    """Whether all of some finite numbers are exactly representable in bfloat16."""
    bits = f"<{len(values)}f"
    try:
        packed = struct.pack(bits, *values)
    except OverflowError:
        return False
    return not any(packed[0::4]) and not any(packed[1::4]) and struct.unpack(bits, packed) == tuple(values)


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


def encode_coefficients(coefficients: Sequence[float]) -> bytes:
    """Three bytes a coefficient: a little-endian float32 without its lowest byte, which 16 significant bits leave 0.

    Raises:
        ValueError: a coefficient has more.
    """
    packed = struct.pack(f"<{len(coefficients)}f", *coefficients)
    if any(packed[0::4]) or struct.unpack(f"<{len(coefficients)}f", packed) != tuple(coefficients):
        raise ValueError("only coefficients rounded to 16 significant bits can be encoded")
    return b"".join(packed[i + 1 : i + 4] for i in range(0, len(packed), 4))


def decode_coefficients(data: bytes) -> tuple[float, ...]:
    """The inverse of `encode_coefficients`.

    Raises:
        ValueError: not three bytes each, or one that is no coefficient.
    """
    if len(data) % BYTES_PER_COEFFICIENT:
        raise ValueError(f"coefficients are {BYTES_PER_COEFFICIENT} bytes each, but {len(data)} bytes were given")
    count = len(data) // BYTES_PER_COEFFICIENT
    packed = b"".join(b"\0" + data[i : i + 3] for i in range(0, len(data), BYTES_PER_COEFFICIENT))
    coefficients: tuple[float, ...] = struct.unpack(f"<{count}f", packed)
    if fault := coefficients_fault(coefficients):
        raise ValueError(fault)
    return coefficients


def coefficients_fault(coefficients: Sequence[float]) -> str | None:
    """What keeps numbers, whoever sent them, from moving theta; None if nothing does."""
    for c in coefficients:
        if not abs(c) <= LARGEST_FACTOR:
            return f"a coefficient is {c:g}; needs a size of at most {LARGEST_FACTOR:g}"
        if round_coefficient(c) != c:
            return f"a coefficient is {c!r}; needs 16 significant bits, or 0 below {SMALLEST_COEFFICIENT:g}"
    return None


HASHED_AT_ONCE = 1 << 22
"""Elements of theta that are widened at a time, where it is bfloat16."""


def state_hash(theta: Tensor, *moments: Tensor) -> str:
    """SHA-256, in hexadecimal, of theta (d,), and of moments after it, as little-endian float32."""
    digest = hashlib.sha256()
    for vector in (theta, *moments):
        for part in torch.split(vector.detach().cpu().contiguous(), HASHED_AT_ONCE):
            digest.update(part.float().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
