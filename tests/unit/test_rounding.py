"""Random rounding to bfloat16: only the two neighbours, unbiased, the same bits for any part of theta."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedmezo.zo import rounding
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.noise import Noise, Purpose, Stream, halves, words
from fedmezo.zo.replay import Move, apply_
from fedmezo.zo.rounding import apply_rounded_, round_randomly_

STREAM = Stream(5, Purpose.ROUNDING, round=3)


def numbers(size: int = 300_000) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).mul_(0.05)


def test_halves_are_those_of_the_words() -> None:
    whole = words(STREAM, 0, 40)
    expected = torch.stack([whole & 0xFFFF, whole >> 16], dim=1).flatten()
    assert torch.equal(halves(STREAM, 0, 80).long(), expected)
    assert torch.equal(halves(STREAM, 13, 71).long(), expected[13:71])


def test_a_number_becomes_one_of_its_neighbours_and_on_average_itself() -> None:
    theta = numbers()
    rounded = round_randomly_(theta.clone(), STREAM, 0)
    assert torch.equal(rounded.bfloat16().float(), rounded)
    assert bool(((rounded - theta).abs() < theta.abs() * 2.0**-7).all())
    value = torch.full((300_000,), -0.0501)
    up, down = sorted(set(round_randomly_(value.clone(), STREAM, 0).tolist()))
    assert up < -0.0501 < down
    mean = float(round_randomly_(value.clone(), STREAM, 0).double().mean())
    spread = (down - up) / 2 / 300_000**0.5  # largest standard deviation of the mean
    assert abs(mean + 0.0501) < 5 * spread


def test_any_part_can_be_rounded_alone_and_what_is_rounded_stays() -> None:
    theta = numbers()
    rounded = round_randomly_(theta.clone(), STREAM, 0)
    assert torch.equal(round_randomly_(theta[777:200_001].clone(), STREAM, 777), rounded[777:200_001])
    assert torch.equal(round_randomly_(rounded.clone(), Stream(5, Purpose.ROUNDING, round=4), 0), rounded)


@pytest.mark.parametrize("chunk", [1000, 1 << 22])
def test_a_round_is_made_in_float32_and_rounded_once(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(rounding, "CHUNK", chunk)
    theta = numbers(3500).bfloat16()
    moves = [Move(Stream(5, Purpose.DIRECTION, step=step), 2.0**-16) for step in range(5)]
    expected = round_randomly_(apply_(theta.float(), moves, Noise()), STREAM, 0)
    found = apply_rounded_(theta.clone(), moves, Noise(), STREAM)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), expected)
    assert state_hash(found) == state_hash(expected)
    still = float((found == theta).float().mean())
    assert 0.5 < still < 1, "most moves are too small to be seen at once"
