"""Shared directions: who is dealt where, sums that are exact in any order, and the same model as clients' own moves."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmezo.config import sharing
from fedmezo.errors import ConfigError, TrainingError
from fedmezo.federation import rates, sums
from fedmezo.federation.course import Course
from fedmezo.federation.groups import deal
from fedmezo.federation.messages import records_size
from fedmezo.federation.robust import RULES, krum, median, robust_tally, sign_vote, trimmed_mean
from fedmezo.federation.round import Federation, close_round_, close_tallies_, plan_round
from fedmezo.federation.server_optimizers import NO_MOMENTS
from fedmezo.federation.sums import FixedPoint, total_of
from fedmezo.federation.trust import Trust
from fedmezo.records import Report
from fedmezo.runs.journal import JournalWriter
from fedmezo.runs.training import round_metrics
from fedmezo.zo.arithmetic import (
    decode_coefficients,
    encode_coefficients,
    round_coefficient,
    round_scalar,
)
from fedmezo.zo.estimators.two_point import LARGEST_LOSS_CHANGE
from fedmezo.zo.replay import Address, Move, apply_
from tests.toy import SIZE
from tests.unit.test_journal import HEADER
from tests.unit.test_round import SEED, federation, simulation, start

HASH = "ab" * 32


def grouped(groups: int, **changes: object) -> Federation:
    plain = federation(clients=6)
    return replace(plain, groups=groups, rules=replace(plain.rules, most_examples=8), **changes)  # type: ignore[arg-type]  # by name


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_a_cohort_is_dealt_into_groups_whose_sizes_differ_by_one(members: int, groups: int, round_index: int) -> None:
    dealt = deal(3, round_index, members, groups)
    sizes = [dealt.count(group) for group in range(groups)]
    assert len(dealt) == members
    assert max(sizes) - min(sizes) <= 1
    assert dealt == deal(3, round_index, members, groups)


def test_every_round_deals_anew() -> None:
    assert len({deal(3, round_index, 40, 4) for round_index in range(20)}) == 20


def reports(seed: int, clients: int, scalars: int = 5) -> list[Report]:
    rng = random.Random(seed)

    def report(client: int) -> Report:
        drawn = tuple(round_scalar(rng.gauss(0, 2)) for _ in range(scalars))
        return Report(0, client, HASH, rng.randint(1, 8), rng.uniform(0, 9), 0, drawn)

    return list(map(report, range(clients)))


@given(st.integers(0, 1000), st.integers(1, 12), st.booleans())
def test_the_sum_of_words_is_the_weighted_sum_of_scalars_in_any_order_and_masked(
    seed: int, clients: int, equal: bool
) -> None:
    fixed = FixedPoint(5, clients, 8, 5e4, equal)
    some = reports(seed, clients)
    words = [fixed.words(report) for report in some]
    total = total_of(words)
    masks = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, (clients, fixed.length), dtype=np.int64)
    masked = [own.view(np.uint64) + mask.view(np.uint64) for own, mask in zip(words, masks, strict=True)]
    unmasked = np.sum(masked, axis=0, dtype=np.uint64) - np.sum(masks.view(np.uint64), axis=0, dtype=np.uint64)
    assert np.array_equal(unmasked.view(np.int64), total)
    assert np.array_equal(total_of(words[::-1]), total)
    tally = fixed.tally(total)
    weights = [1 if equal else report.num_examples for report in some]
    assert (tally.clients, tally.weight, tally.skipped_steps) == (clients, sum(weights), 0)
    for index, value in enumerate(tally.scalars):
        exact = sum(w * (r.scalars or ())[index] for w, r in zip(weights, some, strict=True))
        assert value == pytest.approx(exact, abs=sum(weights) * fixed.scalar_unit)
    exact_loss = sum(w * r.train_loss for w, r in zip(weights, some, strict=True))
    assert tally.loss == pytest.approx(exact_loss, abs=sum(weights) * fixed.loss_unit)


@pytest.mark.parametrize("clients", [3, 1000, 10_000_000])
def test_no_sum_overflows_at_the_largest_that_reports_can_be(clients: int) -> None:
    """All clients at once send the largest scalars, counts and losses that are taken; the sum is made in integers."""
    fixed = FixedPoint(2, clients, 480, 1e3, equal=False)
    largest = round_scalar(fixed.largest)
    words = fixed.words(Report(0, 0, HASH, 480, rates.LARGEST_LOSS, 30, (largest, -largest)))
    for word, width in zip(words.tolist(), fixed.widths, strict=True):
        assert abs(clients * word) < 2 ** (8 * width - 1)


def test_scalars_that_would_be_rounded_away_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot be summed in 64 bits .* set train\.zo\.clip"):
        FixedPoint(30, 2**32, 480, 5e4, equal=False)
    FixedPoint(30, 2**20, 480, 5e4, equal=True)


def test_what_the_configuration_checks_is_what_the_sums_need() -> None:
    assert sharing.LARGEST_LOSS_CHANGE == LARGEST_LOSS_CHANGE
    assert sharing.LARGEST_LOSS == rates.LARGEST_LOSS
    assert sharing.LARGEST_SUM == sums.COARSEST_UNIT * 2.0 ** (8 * sums.MOST_BYTES - sums.SPARE_BITS)


@given(st.lists(st.floats(-1e30, 1e30).map(round_coefficient), max_size=9))
def test_coefficients_take_three_bytes_each(coefficients: list[float]) -> None:
    data = encode_coefficients(coefficients)
    assert len(data) == 3 * len(coefficients)
    assert decode_coefficients(data) == tuple(coefficients)


@pytest.mark.parametrize("data", [b"\0", b"\0\x80\x7f", b"\0\xc0\xff", b"\1\0\0"])
def test_bytes_that_are_no_coefficients_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="coefficient"):
        decode_coefficients(data)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_round_is_the_average_of_the_clients_own_moves(groups: int) -> None:
    """FedAvg of local steps is linear in the scalars: the sum moves theta as each client's update, weighed, would."""
    chosen, state = grouped(groups), start()
    plan = plan_round(chosen, state)
    made = simulation(chosen).run_round(plan, state).reports
    after, record = close_round_(chosen, replace(state, theta=state.theta.clone()), plan, made)
    assert len(record.groups) == groups
    assert (record.cohort, record.contributions) == ((), ())
    assert record.num_coefficients == groups * 8
    total = sum(report.num_examples for report in made)
    expected = state.theta.double()
    group_of = dict(zip(plan.cohort, plan.groups, strict=True))
    for report in made:
        address = Address(SEED, 0, group_of[report.client])
        for index, g in enumerate(report.scalars or ()):
            z = chosen.rules.estimator.settings.noise.directions([address.stream(*divmod(index, 2))], 0, SIZE)[0]  # type: ignore[union-attr]
            expected -= report.num_examples / total * plan.rates[0] * g / 2 * z.double()
    assert torch.allclose(after.theta.double(), expected, atol=1e-6)


def test_a_group_of_one_moves_as_a_client_does_along_its_directions() -> None:
    chosen = replace(grouped(1), num_clients=1, cohort_size=1)
    state = start()
    plan = plan_round(chosen, state)
    (report,) = simulation(chosen).run_round(plan, state).reports
    moves = [
        Move(Address(SEED, 0, 0).stream(*divmod(i, 2)), round_coefficient(plan.rates[0] * g / 2))
        for i, g in enumerate(report.scalars or ())
    ]
    expected = apply_(state.theta.clone(), moves, chosen.rules.estimator.settings.noise)  # type: ignore[union-attr]
    after, _ = close_round_(chosen, state, plan, [report])
    assert torch.equal(after.theta, expected)


def test_all_clients_have_one_rate_and_random_draws_it_once_a_round() -> None:
    chosen = replace(grouped(2), strategy=rates.RateStrategy("random", 0.01, 0.005))
    plans = [plan_round(chosen, replace(start(), round=index)) for index in range(9)]
    assert all(len(set(plan.rates)) == 1 for plan in plans)
    assert len({plan.rates[0] for plan in plans}) == 9
    assert all(0.005 <= plan.rates[0] <= 0.015 for plan in plans)


def test_a_round_that_jumps_is_not_taken_and_changes_nothing() -> None:
    chosen, state = replace(grouped(2), trusting=False), start()
    state = replace(state, trust=Trust(first=1e-3, losses=(1e-3,)))
    plan = plan_round(chosen, state)
    before = state.theta.clone()
    after, record = close_round_(chosen, state, plan, simulation(chosen).run_round(plan, state).reports)
    assert record.is_void
    assert torch.equal(after.theta, before)
    assert after.trust.share == 0.5
    course = Course(SEED, chosen.rules.estimator)  # type: ignore[arg-type]  # it is set
    assert course.advance_(before, NO_MOMENTS, record) == NO_MOMENTS


def test_a_round_needs_enough_clients_in_its_sums() -> None:
    chosen, state = grouped(2, min_clients=4), start()
    with pytest.raises(TrainingError, match="0 usable reports of 6"):
        close_tallies_(chosen, state, plan_round(chosen, state), {})


def test_a_round_is_as_long_for_sixty_clients_as_for_six(tmp_path: Path) -> None:
    """Journal, metrics, what is sent, and what the server remembers of its clients: nothing."""
    lengths = []
    for clients in (6, 60):
        chosen = replace(grouped(2), num_clients=clients, cohort_size=clients)
        state, engine = start(), simulation(chosen)
        plan = plan_round(chosen, state)
        result = engine.run_round(plan, state)
        after, record = close_round_(chosen, state, plan, result.reports)
        engine.close_round(plan, record)
        path = tmp_path / f"{clients}.jsonl"
        writer = JournalWriter.create(path, HEADER.model_copy(update={"direction_groups": 2}))
        before = path.stat().st_size
        writer.append(record)
        metrics = round_metrics(record, result)
        assert after.histories == {}
        assert {metric.group for metric in metrics} == {None, 0, 1}
        assert {metric.client for metric in metrics} == {None}
        sent = records_size([record])
        lengths.append((len(metrics), sent, round((path.stat().st_size - before) / 100)))
    assert lengths[0] == lengths[1]


LIARS = np.array([[1.0, -2.0], [1.2, -1.8], [0.9, -2.1], [0.8, -1.9], [1e6, 1e6], [-1e6, 3.0]])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (median, [0.95, -1.85]),
        (trimmed_mean, [(0.9 + 1.0) / 2, (-1.8 - 1.9) / 2]),
        (krum, [1.0, -2.0]),
        (sign_vote, [1.85, -1.85]),
    ],
)
def test_rules_by_hand(rule: object, expected: list[float]) -> None:
    """Two of six lie: sorted by column -1e6 .8 .9 1 1.2 1e6, and -2.1 -2 -1.9 -1.8 3 1e6."""
    sizes = sorted(np.abs(LIARS).flatten())
    if rule is sign_vote:
        middle = (sizes[5] + sizes[6]) / 2
        expected = [middle, -middle]
    assert rule(LIARS) == pytest.approx(expected)  # type: ignore[operator]


@pytest.mark.parametrize("rule", RULES)
@given(scale=st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4]), liars=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_third_of_liars_moves_a_rule_no_further_than_the_honest_reach(
    rule: str, scale: float, liars: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    honest = rng.normal(1.0, 0.3, (10 - liars, 4))
    lies = np.full((liars, 4), scale) + rng.normal(0, 0.01, (liars, 4))
    found = RULES[rule](np.concatenate([honest, lies]))
    assert np.abs(found).max() <= max(np.abs(honest).max(), 1e-9) + 0.05


@pytest.mark.parametrize("rule", RULES)
def test_clients_that_agree_are_what_a_rule_gives(rule: str) -> None:
    same = [
        replace(report, scalars=(0.5, -0.5), train_loss=2.0, num_examples=n) for n, report in enumerate(reports(1, 5))
    ]
    tally = robust_tally(rule, same)
    assert (tally.clients, tally.weight, tally.scalars, tally.loss) == (5, 5, (2.5, -2.5), 10.0)
