"""The arithmetic contract: one rounding per move, whatever the operation, the chunk or the company."""

import hashlib
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedmezo.zo import replay
from fedmezo.zo.arithmetic import decode_scalars, encode_scalars, round_coefficient, round_scalar, state_hash
from fedmezo.zo.noise import Noise
from fedmezo.zo.replay import (
    Address,
    Move,
    Pace,
    apply_,
    apply_range_,
    linear_moves,
    perturb,
    running_sizes,
    update_from_zero,
)

finite = st.floats(-1e30, 1e30, allow_subnormal=False)


@given(finite)
def test_coefficients_keep_sixteen_bits_ties_to_even(value: float) -> None:
    rounded = round_coefficient(value)
    if abs(value) < 2.0**-100:
        assert rounded == 0.0
        return
    exponent = math.frexp(value)[1] - 16
    assert rounded == round(value * 2.0**-exponent) * 2.0**exponent  # Python rounds ties to even
    assert abs(rounded - value) <= 2.0 ** (exponent - 1)
    assert round_coefficient(rounded) == rounded


def test_coefficients_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        round_coefficient(math.inf)


@given(st.lists(st.floats(width=16, allow_nan=False)))
def test_scalars_take_two_bytes_and_read_back(values: list[float]) -> None:
    scalars = [round_scalar(value) for value in values]
    data = encode_scalars(scalars)
    assert len(data) == 2 * len(scalars)
    assert decode_scalars(data) == tuple(scalars)
    assert data == torch.tensor(scalars).to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()


def test_scalars_that_are_not_bfloat16_are_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        encode_scalars([0.1])
    with pytest.raises(ValueError, match="2 bytes each"):
        decode_scalars(b"abc")


def some_theta(size: int = 5000) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


def some_moves(noise_scale: float = 1e-3) -> list[Move]:
    g = torch.randn(12, generator=torch.Generator().manual_seed(2))
    return linear_moves(Pace(noise_scale), [round_scalar(float(x)) for x in g], Address(7, 2, 1), directions=3)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_every_way_to_write_a_move_gives_the_same_bits(kind: str) -> None:
    theta, move = some_theta(), some_moves()[0]
    z = Noise(kind).directions([move.stream], 0, len(theta))[0]
    c = move.coefficient
    expected = (theta.double() - c * z.double()).float()  # exact in float64, then one rounding
    assert torch.equal(apply_(theta.clone(), [move], Noise(kind)), expected)
    assert torch.equal(theta - c * z.float(), expected)
    assert torch.equal(torch.addcmul(theta, z.float(), torch.tensor(c), value=-1), expected)
    assert torch.equal(perturb(theta, z, -c), expected)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("chunk", [64, 999, 1 << 17])
def test_replay_is_the_moves_one_after_the_other(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theta = some_theta()
    expected = theta.clone()
    for move in some_moves():
        expected = expected - move.coefficient * Noise(kind).directions([move.stream], 0, len(theta))[0].float()
    monkeypatch.setattr(replay, "chunk_of", lambda device, compiled: chunk)
    assert torch.equal(apply_(theta.clone(), some_moves(), Noise(kind)), expected)


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_a_range_of_theta_is_replayed_alone(a: int, b: int) -> None:
    start, stop = min(a, b), max(a, b)
    whole = apply_(some_theta(), some_moves(), Noise("rademacher"))
    part = apply_range_(some_theta()[start:stop].clone(), some_moves(), Noise("rademacher"), start)
    assert torch.equal(part, whole[start:stop])


def test_an_update_from_zero_is_the_sum_of_the_moves() -> None:
    total = torch.zeros(300, dtype=torch.float64)
    for move in some_moves():
        total -= move.coefficient * Noise("gaussian").directions([move.stream], 100, 400)[0].double()
    update = update_from_zero(some_moves(), Noise("gaussian"), 100, 400, torch.device("cpu"))
    assert torch.allclose(update.double(), total, rtol=1e-5, atol=1e-9)  # float32 sums against float64


def test_moves_carry_step_query_and_their_share() -> None:
    address = Address(5, 3, 2)
    moves = linear_moves(Pace(0.25), [1.0, -2.0, 0.5, 4.0], address, directions=2)
    assert [move.stream for move in moves] == [address.stream(s, q) for s, q in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert [move.coefficient for move in moves] == [0.125, -0.25, 0.0625, 0.5]
    assert linear_moves(Pace(0.25), [1.0, -2.0, 0.5, 4.0], address, directions=2, from_step=1) == moves[2:]


@pytest.mark.parametrize("size", [0.0, 0.25])
def test_a_scale_free_rate_knows_no_unit_of_the_scalars(size: float) -> None:
    """Scalars and what came before them in units 1024 times as large lead to the same place."""
    address, scalars = Address(5, 3, 2), [0.5, -2.0, 0.25, 4.0, 0.0, 0.0]
    larger = [1024 * g for g in scalars]
    moves = linear_moves(Pace(0.25, size), scalars, address, 2, scale_free=True)
    assert linear_moves(Pace(0.25, 1024 * size), larger, address, 2, scale_free=True) == moves
    assert (
        linear_moves(Pace(0.25, size), scalars[:4], address, 2, scale_free=True) == moves[:4]
    )  # the future has no say
    square = size**2
    for step in range(3):
        own = (scalars[2 * step] ** 2 + scalars[2 * step + 1] ** 2) / 2
        square = 0.95 * square + 0.05 * own if square else own
        expected = [round_coefficient(0.125 * g / math.sqrt(square)) for g in scalars[2 * step : 2 * step + 2]]
        assert [move.coefficient for move in moves[2 * step : 2 * step + 2]] == pytest.approx(expected, rel=2**-15)


def test_no_scalar_and_no_history_is_no_move() -> None:
    assert running_sizes(0.0, [0.0, 0.0], 1) == [0.0, 0.0]
    [move] = linear_moves(Pace(1.0), [0.0], Address(1, 0, 0), 1, scale_free=True)
    assert move.coefficient == 0.0


def test_a_zero_scalar_moves_nothing() -> None:
    moves = linear_moves(Pace(1.0), [0.0, -0.0], Address(1, 0, 0), directions=1)
    assert torch.equal(apply_(some_theta(), moves, Noise("gaussian")), some_theta())


def test_the_state_hash_is_over_little_endian_float32() -> None:
    theta = torch.tensor([1.0, -2.5, 3e-9])
    assert state_hash(theta) == hashlib.sha256(struct.pack("<3f", *theta.tolist())).hexdigest()
    assert state_hash(theta[::2]) == hashlib.sha256(struct.pack("<2f", *theta[::2].tolist())).hexdigest()
