"""One round of FedMeZO from first principles: nothing but numpy, and a loss that takes a flat vector.

    python examples/one_round.py

Every rule that makes replay exact is here in its plainest form; the package does the same, faster. The test of this
file holds the two against each other to the bit.
"""

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
LOW = np.uint64(0xFFFFFFFF)

# ---- Directions: Philox4x32-10 in counter mode, 16 bits to a normal number in bfloat16.


def philox(counter: list[NDArray[np.uint64]], key: tuple[int, int]) -> list[NDArray[np.uint64]]:
    """Ten rounds over four 32-bit words held in uint64 (Salmon et al. 2011)."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1 = (p1 >> np.uint64(32)) ^ x1 ^ np.uint64(k0), p1 & LOW
        x2, x3 = (p0 >> np.uint64(32)) ^ x3 ^ np.uint64(k1), p0 & LOW
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [x0, x1, x2, x3]


def bfloat16(value: float) -> float:
    """The nearest number with 8 significant bits, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


QUANTILES = np.array([bfloat16(NormalDist().inv_cdf((i + 0.5) / 65536)) for i in range(65536)], dtype=np.float32)


def direction(seed: int, round_index: int, client: int, step: int, size: int) -> Vector:
    """z of one local step: the same everywhere, so it is never sent."""
    blocks = -(-size // 8)  # a block of four words gives eight normals
    words = [np.full(blocks, word, dtype=np.uint64) for word in (0, step, client, round_index)]
    words[0] = np.arange(blocks, dtype=np.uint64)
    block = np.stack(philox(words, (seed % 2**32, seed >> 32)), axis=1)  # (blocks, 4)
    halves = np.stack([block & np.uint64(0xFFFF), block >> np.uint64(16)], axis=2).reshape(-1)
    return QUANTILES[halves[:size]]


# ---- Arithmetic: a coefficient of 16 bits times a z of 8 bits is exact in float32, so theta - c z rounds once.


def coefficient(value: float) -> float:
    """16 significant bits, ties to even; 0 below 2^-100."""
    if abs(value) < 2.0**-100:
        return 0.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 65536), exponent - 16)


def moved(theta: Vector, amount: float, z: Vector) -> Vector:
    """Theta minus amount times z."""
    return theta - np.float32(amount) * z


def state_hash(theta: Vector) -> str:
    """What every party checks after a round."""
    return hashlib.sha256(theta.astype("<f4").tobytes()).hexdigest()


# ---- The round.


def local_steps(
    loss: Callable[[Vector, Any], float],
    theta: Vector,
    batches: Sequence[Any],
    seed: int,
    round_index: int,
    client: int,
    rate: float,
    eps: float,
) -> list[float]:
    """A client: two losses per step give one scalar, and the scalars are all that it reports."""
    scalars = []
    for step, batch in enumerate(batches):
        z = direction(seed, round_index, client, step, len(theta))
        plus, minus = (loss(moved(theta, amount, z), batch) for amount in (-coefficient(eps), coefficient(eps)))
        g = bfloat16((plus - minus) / (2 * coefficient(eps)))
        theta = moved(theta, coefficient(rate * g), z)
        scalars.append(g)
    return scalars


def one_round(
    loss: Callable[[Vector, Any], float],
    theta: Vector,
    batches_of: Sequence[Sequence[Any]],
    seed: int,
    round_index: int,
    rate: float,
    eps: float,
) -> tuple[Vector, list[list[float]]]:
    """All clients start from theta; the server repeats their steps, each weighed by the client's share."""
    rate = coefficient(rate)
    reports = [
        local_steps(loss, theta, batches, seed, round_index, client, rate, eps)
        for client, batches in enumerate(batches_of)
    ]
    weight = coefficient(1 / len(reports))  # the clients have as many examples each
    for client, scalars in enumerate(reports):
        for step, g in enumerate(scalars):
            z = direction(seed, round_index, client, step, len(theta))
            theta = moved(theta, coefficient(weight * rate * g), z)
    return theta, reports


def main() -> None:
    """Three clients pull theta towards three points; the best for all is their mean, at a loss of 4 / 3."""
    size = 20
    points = [np.full(size, value, dtype=np.float32) for value in (-1.0, 1.0, 3.0)]

    def loss(theta: Vector, point: Vector) -> float:
        return float(np.mean((theta - point).astype(np.float64) ** 2) / 2)

    theta = np.zeros(size, dtype=np.float32)
    for round_index in range(61):
        if round_index % 20 == 0:
            mean = sum(loss(theta, point) for point in points) / 3
            print(f"round {round_index:2}  mean loss {mean:.4f}  state {state_hash(theta)[:16]}")
        theta, reports = one_round(loss, theta, [[point] * 10 for point in points], 42, round_index, 0.15, 1e-3)
    print(f"each client sent {2 * len(reports[0])} bytes of scalars per round; theta itself has {4 * size}")


if __name__ == "__main__":
    main()
