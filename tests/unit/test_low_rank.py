"""Directions of low rank: their bits, their moments, exact arithmetic, and rounds that close in blocks."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmezo.records import Segment
from fedmezo.zo import low_rank
from fedmezo.zo.arithmetic import round_coefficient
from fedmezo.zo.low_rank import RANKS, LowRankNoise
from fedmezo.zo.noise import RADEMACHER, Noise, Purpose, Stream
from fedmezo.zo.replay import Move, apply_, apply_range_

SHAPES = ((5, 7), (300,), (130, 3), (2, 3, 4), (1, 1), (9, 260))


def segments_of(shapes: tuple[tuple[int, ...], ...]) -> tuple[Segment, ...]:
    found: list[Segment] = []
    for index, shape in enumerate(shapes):
        found.append(Segment(str(index), shape, found[-1].stop if found else 0))
    return tuple(found)


def streams(count: int, seed: int = 3) -> list[Stream]:
    return [Stream(seed, Purpose.DIRECTION, round=1, client=2, step=step) for step in range(count)]


def by_hand(noise: LowRankNoise, stream: Stream) -> Tensor:
    """The direction from the plain signs of the stream, as the module's first lines say it."""
    signs = Noise(RADEMACHER).directions([stream], 0, 1 << 16)[0].double()
    at, z = 0, []

    def row(size: int) -> Tensor:
        nonlocal at
        found = signs[at : at + size]
        at += -(-size // 128) * 128
        return found

    for segment in noise.segments:
        size = segment.stop - segment.start
        if len(segment.shape) < 2:
            z.append(row(size))
            continue
        s = [row(segment.shape[0]) for _ in range(noise.rank)]
        t = [row(size // segment.shape[0]) for _ in range(noise.rank)]
        outer = sum(torch.outer(left, right) for left, right in zip(s, t, strict=True))
        assert isinstance(outer, Tensor)
        z.append((outer / math.sqrt(noise.rank)).flatten())
    return torch.cat(z)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_directions_are_outer_products_of_the_streams_signs_in_any_sub_range(rank: int) -> None:
    noise = LowRankNoise(rank, segments_of(SHAPES))
    expected = torch.stack([by_hand(noise, stream) for stream in streams(2)])
    d = noise.segments[-1].stop
    assert torch.equal(noise.directions(streams(2), 0, d).double(), expected)
    for start, stop in ((0, 1), (3, 37), (30, 340), (335, 336), (736, d), (750, 1011), (10, 10)):
        assert torch.equal(noise.directions(streams(2), start, stop).double(), expected[:, start:stop])


@pytest.mark.parametrize("rank", RANKS)
def test_a_coefficient_times_any_element_is_exact_in_float32(rank: int) -> None:
    root = math.isqrt(rank)
    assert root * root == rank
    elements = [k / root for k in range(-rank, rank + 1, 2)]
    z = torch.tensor(elements, dtype=torch.bfloat16)
    assert z.double().tolist() == elements, "and its elements are exact in bfloat16"
    for c in (65535 * 2.0**-30, 65521 * 2.0**-40, 2.0**-100, 43691 * 2.0**-90):
        assert round_coefficient(c) == c
        product = z.float() * torch.tensor(c, dtype=torch.float32)
        assert all(Fraction(p) == Fraction(c) * Fraction(e) for p, e in zip(product.tolist(), elements, strict=True))


def test_the_next_power_of_four_would_not_be_exact() -> None:
    c, element = 65535 * 2.0**-30, 1022 / 32  # 16 and 9 significant bits
    product = torch.tensor(c, dtype=torch.float32) * torch.tensor(element, dtype=torch.float32)
    assert Fraction(float(product)) != Fraction(c) * Fraction(element)
    with pytest.raises(ValueError, match="rank 1024 must be one of 1, 4, 16, 64, 256"):
        LowRankNoise(1024, segments_of(SHAPES))


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_elements_have_mean_0_and_identity_covariance(rank: int) -> None:
    number = 40_000
    noise = LowRankNoise(rank, segments_of(((3, 4), (2,))))
    z = noise.directions(streams(number), 0, 14).double()
    error = 1 / math.sqrt(number)  # of the mean of products of size about 1
    assert z.mean(0).abs().max() < 5 * error
    assert (z.T @ z / number - torch.eye(14, dtype=torch.float64)).abs().max() < 5 * math.sqrt(3) * error


def naive_(theta: Tensor, moves: list[Move], noise: LowRankNoise) -> Tensor:
    for move in moves:
        z = by_hand(noise, move.stream).float()
        theta = theta - torch.tensor(move.coefficient, dtype=torch.float32) * z
    return theta


@pytest.mark.parametrize("rank", [1, 4])
def test_closing_a_round_by_blocks_is_one_subtraction_after_the_other(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_rank, "ELEMENTS_AT_ONCE", 600)
    monkeypatch.setattr(low_rank, "SIGNS_AT_ONCE", 64)
    noise = LowRankNoise(rank, segments_of(SHAPES))
    theta = torch.linspace(-1, 1, noise.segments[-1].stop)
    coefficients = [round_coefficient(0.37 * (-0.9) ** i) for i in range(12)]
    moves = [Move(stream, c) for stream, c in zip(streams(12), coefficients, strict=True)]
    moves[4:4] = [Move(Stream(3, Purpose.DIRECTION, step=9), 0.0)]
    expected = naive_(theta.clone(), moves, noise)
    assert torch.equal(apply_(theta.clone(), moves, noise), expected)
    for cut in (1, 17, 35, 200, 337, 800, len(theta) - 1):
        parts = [
            apply_range_(theta[:cut].clone(), moves, noise, 0),
            apply_range_(theta[cut:].clone(), moves, noise, cut),
        ]
        assert torch.equal(torch.cat(parts), expected)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.one_of(st.tuples(st.integers(1, 200)), st.tuples(st.integers(1, 40), st.integers(1, 40))),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([1, 4, 64]),
    st.data(),
)
def test_any_shapes_and_ranges_agree(shapes: list[tuple[int, ...]], rank: int, data: st.DataObject) -> None:
    noise = LowRankNoise(rank, segments_of(tuple(shapes)))
    d = noise.segments[-1].stop
    start = data.draw(st.integers(0, d))
    stop = data.draw(st.integers(start, d))
    whole = noise.directions(streams(1), 0, d)
    assert torch.equal(noise.directions(streams(1), start, stop), whole[:, start:stop])
    moved = apply_range_(torch.zeros(stop - start), [Move(streams(1)[0], 0.25)], noise, start)
    assert torch.equal(moved, -0.25 * whole[0, start:stop].float())
