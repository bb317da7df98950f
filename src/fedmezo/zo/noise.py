"""Every random number of a run: Philox4x32-10 addressed by counters, the same bits on every device.

A draw is a pure function of its `Stream`: there is no generator whose state could be lost, reseeded or shared. All
arithmetic is on torch int64 tensors, so one implementation serves the CPU and every accelerator.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import torch
from torch import Tensor

SERVER = 0xFFFF_FFFF
"""Client word of the draws that belong to no client."""

MAX_ROUNDS = 1 << 28
MAX_STEPS = 1 << 24
MAX_QUERIES = 1 << 8
MAX_SEED = (1 << 64) - 1

GAUSSIAN = "gaussian"
RADEMACHER = "rademacher"
NORMALS_PER_BLOCK = 8
SIGNS_PER_BLOCK = 128
WORDS_PER_BLOCK = 4

CHUNK = 1 << 17
"""Elements generated at a time: the int64 intermediates of one chunk stay in the CPU's second-level cache."""

_MASK = 0xFFFF_FFFF
_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_WEYL = (0x9E37_79B9, 0xBB67_AE85)
_PHILOX_ROUNDS = 10


class Purpose(IntEnum):
    """What a stream of draws is for; no two purposes share a counter."""

    DIRECTION = 0
    ADAPTER = 1
    DATA_ORDER = 2
    COHORT = 3
    RATE = 4
    PARTITION = 5
    DROPOUT = 6


@dataclass(frozen=True, slots=True)
class Stream:
    """The address of one sequence of draws.

    Args:
        seed: run seed, below 2^64: the key.
        purpose: what the draws are for.
        round: below 2^28.
        client: below 2^32; `SERVER` for draws that belong to no client.
        step: below 2^24.
        query: below 2^8.
    """

    seed: int
    purpose: Purpose
    round: int = 0
    client: int = SERVER
    step: int = 0
    query: int = 0

    def __post_init__(self) -> None:
        for name, value, limit in (
            ("seed", self.seed, MAX_SEED + 1),
            ("round", self.round, MAX_ROUNDS),
            ("client", self.client, _MASK + 1),
            ("step", self.step, MAX_STEPS),
            ("query", self.query, MAX_QUERIES),
        ):
            if not 0 <= value < limit:
                raise ValueError(f"{name} {value} is out of range: 0 <= {name} < {limit}")

    @property
    def key(self) -> tuple[int, int]:
        """The seed's low and high word."""
        return self.seed & _MASK, self.seed >> 32

    @property
    def counter(self) -> tuple[int, int, int]:
        """Counter words 1 to 3; word 0 is the block index."""
        return self.step | self.query << 24, self.client, self.round | int(self.purpose) << 28


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of int64 tensors of one shape that hold 32-bit words; returns four such tensors.

    The product of two 32-bit words overflows a signed 64-bit integer, yet its low word and, once masked, its high word
    are those of the unsigned product. Low words are masked only when they become a factor: two passes a round saved.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        p0 = x0 * _MULTIPLIERS[0]
        p1 = x2 * _MULTIPLIERS[1]
        x0 = (p1 >> 32).bitwise_xor_(x1).bitwise_xor_(k0).bitwise_and_(_MASK)
        x2 = (p0 >> 32).bitwise_xor_(x3).bitwise_xor_(k1).bitwise_and_(_MASK)
        x1, x3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return x0, x1 & _MASK, x2, x3 & _MASK


def words(stream: Stream, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """Words [start, stop) of a stream: int64 values from 0 to 2^32 - 1, four a block."""
    first, last = start // WORDS_PER_BLOCK, -(-stop // WORDS_PER_BLOCK)
    block = torch.stack(_blocks([stream], first, last, torch.device(device)), dim=-1)  # (1, blocks, 4)
    return block.flatten()[start - first * WORDS_PER_BLOCK : stop - first * WORDS_PER_BLOCK]


def permutation(stream: Stream, n: int) -> Tensor:
    """A random order of 0 .. n-1 (int64, on the CPU): the indices that sort n words, ties kept in order."""
    return torch.sort(words(stream, 0, n), stable=True).indices


def uniform(stream: Stream) -> float:
    """One number in (0, 1), from 32 bits."""
    return (float(words(stream, 0, 1)) + 0.5) / (_MASK + 1)


def directions(
    noise: str, streams: Sequence[Stream], start: int, stop: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Elements [start, stop) of the direction z of each stream: (len(streams), stop - start) bfloat16.

    Any sub-range can be had alone and has the bits it has in the whole. All streams share one seed.

    Args:
        noise: `gaussian`, the standard normal quantile of 16 bits rounded to bfloat16, or `rademacher`, +1 or -1.
        streams: which directions.
        start: first element.
        stop: one past the last element.
        device: where the result is made.

    Raises:
        ValueError: `noise` is neither of the two.
    """
    device = torch.device(device)
    rows_at_once = max(1, CHUNK // max(1, stop - start))
    z = torch.empty(len(streams), stop - start, dtype=torch.bfloat16, device=device)
    for row in range(0, len(streams), rows_at_once):
        some = streams[row : row + rows_at_once]
        for a in range(start, stop, CHUNK):
            b = min(a + CHUNK, stop)
            z[row : row + rows_at_once, a - start : b - start] = _generate(noise, some, a, b, device)
    return z


def _generate(noise: str, streams: Sequence[Stream], start: int, stop: int, device: torch.device) -> Tensor:
    if noise == GAUSSIAN:
        per_block, expand = NORMALS_PER_BLOCK, _normals
    elif noise == RADEMACHER:
        per_block, expand = SIGNS_PER_BLOCK, _signs
    else:
        raise ValueError(f"noise {noise!r} is unknown; it is {GAUSSIAN!r} or {RADEMACHER!r}")
    first, last = start // per_block, -(-stop // per_block)
    packed = torch.empty(len(streams), last - first, WORDS_PER_BLOCK, dtype=torch.int32, device=device)
    for i, word in enumerate(_blocks(streams, first, last, device)):
        packed[:, :, i] = word
    return expand(packed)[:, start - first * per_block : stop - first * per_block]


def _blocks(
    streams: Sequence[Stream], first: int, last: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of blocks [first, last) of each stream, each (len(streams), last - first) int64."""
    key = streams[0].key
    if any(stream.key != key for stream in streams):
        raise ValueError("streams of different seeds cannot be drawn together")
    index = torch.arange(first, last, device=device)
    c1, c2, c3 = torch.tensor([stream.counter for stream in streams], device=device).unsqueeze(-1).unbind(1)
    shape = (len(streams), last - first)
    return philox((index.expand(shape), c1.expand(shape), c2.expand(shape), c3.expand(shape)), key)


def _normals(packed: Tensor) -> Tensor:
    """Quantile of each 16-bit half, low half first: (n, blocks, 4) int32 to (n, blocks * 8) bfloat16."""
    halves = (
        packed.view(torch.uint16).flatten().to(torch.int32)
    )  # a view of a little-endian word starts with its low half
    return _quantiles(packed.device).index_select(0, halves).view(len(packed), -1)


def _signs(packed: Tensor) -> Tensor:
    """Sign of each bit, low bit first, 0 is +1: (n, blocks, 4) int32 to (n, blocks * 128) bfloat16."""
    octets = packed.view(torch.uint8).flatten().to(torch.int32)
    return _octet_signs(packed.device).index_select(0, octets).view(len(packed), -1)


@cache
def _quantiles(device: torch.device) -> Tensor:
    """Entry i is the standard normal quantile at (i + 0.5) / 65536, rounded to bfloat16; (65536,).

    Made on the CPU and copied, so that no device's own `ndtri` can differ.
    """
    p = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles: Tensor = torch.special.ndtri(p)
    return quantiles.to(torch.bfloat16).to(device)


@cache
def _octet_signs(device: torch.device) -> Tensor:
    """Row i holds the signs of the eight bits of i, low bit first; (256, 8)."""
    bits = torch.arange(256).unsqueeze(-1).bitwise_right_shift(torch.arange(8)).bitwise_and(1)
    return bits.mul(-2).add(1).to(torch.bfloat16).to(device)
