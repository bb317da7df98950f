"""Every random number of a run: Philox4x32-10 addressed by counters, the same bits on every device.

A draw is a pure function of its `Stream`: there is no generator whose state could be lost, reseeded or shared. All
arithmetic is on torch int64 tensors, so one implementation serves the CPU and every accelerator, eager and compiled.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Protocol, TypeAlias

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

WORTH_COMPILING = 1 << 32
"""Elements from which a compiled generator makes up for its compilation, some 15 seconds the first time on a machine
and 2 later: a CPU core makes 110 million elements a second eagerly and 400 million compiled."""

_MASK = 0xFFFF_FFFF
_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_WEYL = (0x9E37_79B9, 0xBB67_AE85)
_PHILOX_ROUNDS = 10

Counter: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""The four counter words of some blocks: int64 tensors of one shape that hold 32-bit words."""

Expand: TypeAlias = Callable[[Counter, Tensor, Tensor], Tensor]
"""From counters, key and a table of values to elements of directions."""


class Purpose(IntEnum):
    """What a stream of draws is for; no two purposes share a counter."""

    DIRECTION = 0
    ADAPTER = 1
    DATA_ORDER = 2
    COHORT = 3
    RATE = 4
    PARTITION = 5
    DROPOUT = 6
    GROUPS = 7
    ROUNDING = 8


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


def philox(counter: Counter, key: tuple[Tensor, Tensor]) -> Counter:
    """Philox4x32-10 of each counter under one key of two words.

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
    packed = _packed(*_addresses([stream], first, last, torch.device(device)))  # (1, blocks, 4)
    return (
        packed.flatten()
        .to(torch.int64)
        .bitwise_and_(_MASK)[start - first * WORDS_PER_BLOCK : stop - first * WORDS_PER_BLOCK]
    )


def halves(stream: Stream, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """16-bit halves [start, stop) of the words of a stream, the low one first: int32 values from 0 to 2^16 - 1."""
    first, last = start // NORMALS_PER_BLOCK, -(-stop // NORMALS_PER_BLOCK)
    packed = _packed(*_addresses([stream], first, last, torch.device(device))).view(torch.uint16).flatten()
    return packed[start - first * NORMALS_PER_BLOCK : stop - first * NORMALS_PER_BLOCK].to(torch.int32)


def permutation(stream: Stream, n: int) -> Tensor:
    """A random order of 0 .. n-1 (int64, on the CPU): the indices that sort n words, ties kept in order."""
    return torch.sort(words(stream, 0, n), stable=True).indices


def uniform(stream: Stream) -> float:
    """One number in (0, 1), from 32 bits."""
    return (float(words(stream, 0, 1)) + 0.5) / (_MASK + 1)


def sign_octets(streams: Sequence[Stream], first: int, last: int, device: torch.device | str = "cpu") -> Tensor:
    """Blocks [first, last) of each stream as packed signs, low bit first: (len(streams), 16 (last - first)) uint8."""
    packed = _packed(*_addresses(streams, first, last, torch.device(device)))
    return packed.view(torch.uint8).flatten(1)


def unpack_signs(octets: Tensor) -> Tensor:
    """The signs of packed bits (..., n) uint8, low bit first, 0 is +1: (..., 8 n) float32."""
    table = _octet_signs(octets.device, torch.float32)
    return table.index_select(0, octets.flatten().to(torch.int32)).view(*octets.shape[:-1], -1)


def chunk_of(device: torch.device, *, compiled: bool) -> int:
    """Elements to generate at a time on a device.

    On a CPU, the int64 intermediates of a chunk stay in the second-level cache; a compiled kernel has none but the
    counters. A GPU is kept busy for longer than it takes to launch an operation; the intermediates take some 32 MiB.
    """
    if device.type != "cpu":
        return 1 << 22
    return 1 << 20 if compiled else 1 << 17


class Directions(Protocol):
    """A distribution of directions, and how they are generated."""

    @property
    def name(self) -> str:
        """Of the distribution."""
        ...

    @property
    def compiled(self) -> bool:
        """Whether a compiled kernel generates them."""
        ...

    def directions(
        self, streams: Sequence[Stream], start: int, stop: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Elements [start, stop) of the direction z of each stream: (len(streams), stop - start) bfloat16.

        Any sub-range can be had alone and has the bits it has in the whole. All streams share one seed.

        Args:
            streams: which directions.
            start: first element.
            stop: one past the last element.
            device: where the result is made.
        """
        ...


@dataclass(frozen=True, slots=True)
class Noise:
    """Implements `Directions` with independent elements. The bits are those of the distribution alone.

    Args:
        name: `gaussian`, the standard normal quantile of 16 bits rounded to bfloat16, or `rademacher`, +1 or -1.
        compiled: by a kernel that `torch.compile` makes of the same code; see `compiles`.

    Raises:
        ValueError: `name` is neither of the two.
    """

    name: str = GAUSSIAN
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.name not in (GAUSSIAN, RADEMACHER):
            raise ValueError(f"noise {self.name!r} is unknown; it is {GAUSSIAN!r} or {RADEMACHER!r}")

    def directions(
        self, streams: Sequence[Stream], start: int, stop: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """See `Directions`."""
        device = torch.device(device)
        chunk = chunk_of(device, compiled=self.compiled)
        rows_at_once = max(1, chunk // max(1, stop - start))
        z = torch.empty(len(streams), stop - start, dtype=torch.bfloat16, device=device)
        for row in range(0, len(streams), rows_at_once):
            some = streams[row : row + rows_at_once]
            for a in range(start, stop, chunk):
                b = min(a + chunk, stop)
                z[row : row + rows_at_once, a - start : b - start] = self._generate(some, a, b, device)
        return z

    def _generate(self, streams: Sequence[Stream], start: int, stop: int, device: torch.device) -> Tensor:
        per_block = NORMALS_PER_BLOCK if self.name == GAUSSIAN else SIGNS_PER_BLOCK
        first, last = start // per_block, -(-stop // per_block)
        counter, key = _addresses(streams, first, last, device)
        expand: Expand = _normals if self.name == GAUSSIAN else _signs
        table = _quantiles(device) if self.name == GAUSSIAN else _octet_signs(device, torch.bfloat16)
        if self.compiled:
            expand = _compiled(expand)
        z = expand(counter, key, table).view(len(streams), -1)
        return z[:, start - first * per_block : stop - first * per_block]


def noise_for(name: str, elements: int, device: torch.device) -> Noise:
    """The noise, compiled where so many elements are to be generated that it pays, and where a compiler works."""
    return Noise(name, compiled=elements >= WORTH_COMPILING and compiles(name, device))


@cache
def compiles(name: str, device: torch.device) -> bool:
    """Whether the generator of this noise can be compiled here and gives the bits of the eager one. Takes seconds.

    A compiler may be wrong for some sizes alone, so several are tried: a full chunk, short vectors together, a tail.
    """
    compiled, eager = Noise(name, compiled=True), Noise(name)
    streams = [Stream(1, Purpose.DIRECTION, round=2, client=3, step=step) for step in range(3)]
    for number, start, stop in ((1, 0, chunk_of(device, compiled=True)), (3, 5, 5000), (2, 130, 1000), (1, 3, 4)):
        try:
            found = compiled.directions(streams[:number], start, stop, device)
        except RuntimeError:  # no compiler, or one that does not work: each kind of failure is a RuntimeError
            return False
        if not torch.equal(found, eager.directions(streams[:number], start, stop, device)):
            return False
    return True


@cache
def _compiled(expand: Expand) -> Expand:
    """One kernel for any number of blocks, which are laid in a row for it."""

    def expand_flat(counter: Tensor, key: Tensor, table: Tensor) -> Tensor:
        c0, c1, c2, c3 = counter.unbind(0)
        return expand((c0, c1, c2, c3), key, table)

    kernel: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.compile(expand_flat, dynamic=True)

    def compiled(counter: Counter, key: Tensor, table: Tensor) -> Tensor:
        if counter[0].numel() == 1:  # another kernel would be made for it
            return expand(counter, key, table)
        flat = torch.empty(len(counter), counter[0].numel(), dtype=torch.int64, device=key.device)
        for row, word in zip(flat.view(len(counter), *counter[0].shape), counter, strict=True):
            row.copy_(word)
        return kernel(flat, key, table)

    return compiled


def _addresses(streams: Sequence[Stream], first: int, last: int, device: torch.device) -> tuple[Counter, Tensor]:
    """Counters of blocks [first, last) of each stream, and their key (2,) int64."""
    key = streams[0].key
    if any(stream.key != key for stream in streams):
        raise ValueError("streams of different seeds cannot be drawn together")
    shape = (len(streams), last - first)
    own = torch.tensor([stream.counter for stream in streams]).to(device, non_blocking=True)
    c1, c2, c3 = own.unsqueeze(-1).unbind(1)
    c0 = torch.arange(first, last, device=device)
    counter = (c0.expand(shape), c1.expand(shape), c2.expand(shape), c3.expand(shape))
    return counter, torch.tensor(key).to(device, non_blocking=True)


def _packed(counter: Counter, key: Tensor) -> Tensor:
    """The four words of each block, (..., 4) int32, under a key (2,)."""
    k0, k1 = key.unbind(0)
    packed = torch.empty(*counter[0].shape, WORDS_PER_BLOCK, dtype=torch.int32, device=key.device)
    for i, word in enumerate(philox(counter, (k0, k1))):
        packed[..., i] = word
    return packed


def _normals(counter: Counter, key: Tensor, quantiles: Tensor) -> Tensor:
    """Quantile of each 16-bit half of each word, low half first: (8 blocks,) bfloat16."""
    halves = _packed(counter, key).view(torch.uint16)  # a little-endian word starts with its low half
    return quantiles.index_select(0, halves.flatten().to(torch.int32))


def _signs(counter: Counter, key: Tensor, octet_signs: Tensor) -> Tensor:
    """Sign of each bit of each word, low bit first, 0 is +1: (128 blocks,) bfloat16."""
    octets = _packed(counter, key).view(torch.uint8)
    return octet_signs.index_select(0, octets.flatten().to(torch.int32)).flatten()


@cache
def _quantiles(device: torch.device) -> Tensor:
    """Entry i is the standard normal quantile at (i + 0.5) / 65536, rounded to bfloat16; (65536,).

    Made on the CPU and copied, so that no device's own `ndtri` can differ.
    """
    p = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles: Tensor = torch.special.ndtri(p)
    return quantiles.to(torch.bfloat16).to(device)


@cache
def _octet_signs(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Row i holds the signs of the eight bits of i, low bit first; (256, 8)."""
    bits = torch.arange(256).unsqueeze(-1).bitwise_right_shift(torch.arange(8)).bitwise_and(1)
    return bits.mul(-2).add(1).to(dtype).to(device)
