"""The five strategies against tables worked out by hand, for any number of clients."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmezo.federation.rates import ClientHistory, RateStrategy, client_rates, remember, spread
from fedmezo.records import Contribution, RoundRecord
from fedmezo.zo.arithmetic import round_coefficient
from tests.toy import two_point

RATE, WIDTH = 1e-5, 5e-6


def rates(name: str, histories: dict[int, ClientHistory], cohort: tuple[int, ...] = (0, 1, 2)) -> tuple[float, ...]:
    return client_rates(RateStrategy(name, RATE, WIDTH), 7, 3, cohort, histories)


def expected(*phis: float) -> tuple[float, ...]:
    return tuple(round_coefficient(RATE + WIDTH * phi) for phi in phis)


def test_frozen_rates_are_all_the_same() -> None:
    assert rates("frozen", {0: ClientHistory((3.0,))}) == expected(0, 0, 0)


def test_round_wise_follows_the_last_loss() -> None:
    histories = {c: ClientHistory(losses) for c, losses in enumerate([(9.0, 1.0), (9.0, 2.0), (9.0, 6.0)])}
    assert rates("round-wise", histories) == expected(-2 / 3, -1 / 3, 1.0)  # mean 3, largest distance 3


def test_five_round_needs_five_rounds_of_a_client() -> None:
    histories = {
        0: ClientHistory((1.0,) * 5),
        1: ClientHistory((3.0,) * 4),
        2: ClientHistory((1.0, 2.0, 3.0, 4.0, 5.0)),
    }
    assert rates("five-round", histories) == expected(-1.0, 0.0, 1.0)  # means 1 and 3 around 2; client 1 has none


def test_model_diff_follows_the_drift() -> None:
    histories = {c: ClientHistory(drift=drift) for c, drift in enumerate([0.1, 0.2, 0.6])}
    assert rates("model-diff", histories) == pytest.approx(expected(-2 / 3, -1 / 3, 1.0), rel=1e-4)


@pytest.mark.parametrize("name", ["round-wise", "five-round", "model-diff"])
def test_without_history_every_rate_is_the_middle(name: str) -> None:
    assert rates(name, {}) == expected(0, 0, 0)


@pytest.mark.parametrize("num_clients", [1, 2, 4, 9, 40])
def test_equal_losses_leave_the_rates_alone(num_clients: int) -> None:
    histories = {client: ClientHistory((2.5,)) for client in range(num_clients)}
    assert rates("round-wise", histories, tuple(range(num_clients))) == expected(*[0] * num_clients)


def test_random_rates_are_drawn_anew_for_client_and_round_within_the_width() -> None:
    strategy = RateStrategy("random", RATE, WIDTH)
    drawn = {rate for round_index in range(200) for rate in client_rates(strategy, 1, round_index, (0, 1, 2), {})}
    assert len(drawn) > 500
    assert min(drawn) >= RATE - WIDTH * 1.001
    assert max(drawn) <= RATE + WIDTH * 1.001
    assert max(drawn) - min(drawn) > 1.9 * WIDTH


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=12))
def test_spread_is_bounded_and_reaches_a_bound(values: list[float | None]) -> None:
    phis = spread(values)
    assert len(phis) == len(values)
    assert all(abs(phi) <= 1 for phi in phis)
    assert all(phi == 0 for phi, value in zip(phis, values, strict=True) if value is None)
    if len({value for value in values if value is not None}) > 1:
        assert max(abs(phi) for phi in phis) in (1.0, 0.0)  # 0 where the values differ by less than their mean resolves


@pytest.mark.parametrize("width", [RATE, 2 * RATE])
def test_a_width_that_reaches_zero_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        RateStrategy("random", RATE, width)
    RateStrategy("frozen", RATE, width)  # which never uses it


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="it is one of frozen, random"):
        RateStrategy("warm", RATE, WIDTH)


def record(round_index: int, losses: dict[int, float]) -> RoundRecord:
    parts = tuple(Contribution(c, 1.0, 1.0, 1, loss, 0, (), drift=loss * 2) for c, loss in losses.items())
    return RoundRecord(round_index, tuple(losses), parts, (), "")


def test_histories_keep_five_losses_and_the_last_drift_of_rounds_taken_part_in() -> None:
    histories: dict[int, ClientHistory] = {}
    for round_index in range(7):
        losses = {0: float(round_index)} | ({1: 9.0} if round_index == 2 else {})
        histories = remember(histories, record(round_index, losses), two_point())
    assert histories == {0: ClientHistory((2.0, 3.0, 4.0, 5.0, 6.0), 12.0), 1: ClientHistory((9.0,), 18.0)}
