"""Shares of the rate over the rounds, against values worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmezo.federation.rates import ClientHistory, RateStrategy, client_rates, known_size
from fedmezo.federation.schedule import CONSTANT, RateSchedule
from fedmezo.zo.arithmetic import round_coefficient

NAMES = ["constant", "linear", "cosine", "step"]


def shares(name: str, rounds: int = 4, **options: float) -> list[float]:
    schedule = RateSchedule(name, rounds, **options)  # type: ignore[arg-type]  # numbers by name
    return [schedule.share(round_index) for round_index in range(rounds)]


def test_the_shapes() -> None:
    assert shares("constant") == [1, 1, 1, 1]
    assert shares("linear") == [1, 0.75, 0.5, 0.25]
    assert shares("cosine") == pytest.approx([1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2])
    assert shares("step", step_rounds=2, step_factor=0.1) == [1, 1, 0.1, 0.1]
    assert shares("linear", floor=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert shares("linear", 6, warmup_rounds=2) == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])


@given(st.sampled_from(NAMES), st.integers(1, 50), st.integers(0, 49), st.floats(0, 1))
def test_every_round_has_a_share_above_zero_and_none_above_one(
    name: str, rounds: int, warmup: int, floor: float
) -> None:
    found = shares(name, rounds, warmup_rounds=min(warmup, rounds - 1), floor=floor)
    assert all(0 < share <= 1 for share in found)


def test_a_share_scales_what_any_strategy_says() -> None:
    histories = {0: ClientHistory((1.0,)), 1: ClientHistory((3.0,))}
    for name in ("frozen", "random", "round-wise", "scale-free"):
        strategy = RateStrategy(name, 0.01, 0.004)
        whole = client_rates(strategy, 7, 3, (0, 1), histories)
        assert client_rates(strategy, 7, 3, (0, 1), histories, CONSTANT.share(3)) == whole
        half = client_rates(strategy, 7, 3, (0, 1), histories, 0.5)
        assert half == pytest.approx([rate / 2 for rate in whole], rel=2**-15)


def test_the_size_of_scalars_is_the_mean_square_over_those_who_have_one() -> None:
    assert known_size({}) == known_size({0: ClientHistory()}) == 0.0
    assert known_size(
        {0: ClientHistory(size=3.0), 1: ClientHistory(size=4.0), 2: ClientHistory()}
    ) == round_coefficient(12.5**0.5)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="one of constant, linear, cosine, step"):
        RateSchedule("triangle")
