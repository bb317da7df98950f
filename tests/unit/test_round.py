"""The server's round: cohorts, refusals, averaging, and replay as the same computation."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmezo.engines.simulation import Simulation
from fedmezo.errors import TrainingError
from fedmezo.federation.aggregate import ReportRules, apply_scalars_, drifts_of_scalars, drifts_of_updates
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.messages import catch_up, decode_task, encode_task
from fedmezo.federation.rates import RateStrategy
from fedmezo.federation.round import (
    Federation,
    ServerState,
    close_round_,
    initial_state,
    plan_round,
    replay_round_,
)
from fedmezo.records import ClientTask, Report, RoundPlan, RoundRecord
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.noise import Noise
from fedmezo.zo.replay import Address, Pace, linear_moves, update_from_zero
from tests.toy import SIZE, Quadratic, ToyData, toy_segments, two_point

SEED = 5


def federation(protocol: str = "scalars", strategy: str = "frozen", clients: int = 3, **changes: int) -> Federation:
    estimator = two_point(eps=1e-2, queries=2)
    plain = Federation(
        seed=SEED,
        num_clients=clients,
        cohort_size=clients,
        min_clients=1,
        equal_weights=False,
        strategy=RateStrategy(strategy, 0.01, 0.005),
        rules=ReportRules(protocol, estimator, 4, SIZE),
        segments=toy_segments(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # ints by name


def simulation(chosen: Federation) -> Simulation:
    estimator = chosen.rules.estimator
    assert estimator is not None
    work = ZerothOrderClients(Quadratic(), estimator, SEED, chosen.rules.protocol)
    data = {client: ToyData(client) for client in range(chosen.num_clients)}
    return Simulation(work, data, Downlink(chosen.rules.protocol, SIZE, derivable=True), group_size=2)


def start() -> ServerState:
    return initial_state(torch.linspace(-1, 1, SIZE))


def train(chosen: Federation, rounds: int) -> tuple[ServerState, list[RoundRecord], list[ServerState]]:
    engine, state, records, states = simulation(chosen), start(), [], []
    for _ in range(rounds):
        plan = plan_round(chosen, state)
        reports = engine.run_round(plan, state).reports
        state, record = close_round_(chosen, state, plan, reports)
        engine.downlink.close(record, plan.cohort)
        records.append(record)
        states.append(replace(state, theta=state.theta.clone()))
    return state, records, states


@pytest.mark.parametrize("strategy", ["frozen", "random", "round-wise", "five-round", "model-diff"])
@pytest.mark.parametrize("cohort_size", [3, 2])
def test_replaying_the_records_gives_every_state_to_the_bit(strategy: str, cohort_size: int) -> None:
    chosen = federation(strategy=strategy, cohort_size=cohort_size)
    _, records, states = train(chosen, 8)
    state = start()
    for record, expected in zip(records, states, strict=True):
        state = replay_round_(chosen, state, record)
        assert torch.equal(state.theta, expected.theta)
        assert state.hash == record.state_hash == state_hash(expected.theta)
        assert state.histories == expected.histories


def test_a_client_that_trains_alone_is_every_cohort_and_moves_theta_by_its_own_steps() -> None:
    chosen = replace(federation(cohort_size=1), lone_client=1)
    state, records, _ = train(chosen, 3)
    assert [record.cohort for record in records] == [(1,)] * 3
    assert [part.weight for record in records for part in record.contributions] == [1.0] * 3
    replayed = start()
    for record in records:
        replayed = replay_round_(chosen, replayed, record)
    assert replayed.hash == state.hash


@pytest.mark.parametrize("strategy", ["round-wise", "five-round", "model-diff", "random"])
@pytest.mark.parametrize("clients", [2, 3, 7])
def test_the_strategies_move_the_rates(strategy: str, clients: int) -> None:
    _, records, _ = train(federation(strategy=strategy, clients=clients), 7)
    rates = {part.rate for part in records[-1].contributions}
    assert len(rates) > 1
    assert all(0.005 * 0.999 <= rate <= 0.015 * 1.001 for rate in rates)


def test_what_a_client_is_sent_brings_it_to_the_present_state() -> None:
    chosen = federation(strategy="five-round", cohort_size=2)
    _, records, states = train(chosen, 6)
    after = [start(), *states]  # the state before each round
    estimator = chosen.rules.estimator
    assert estimator is not None
    for known in range(7):
        for now in range(known, 7):
            far = torch.zeros(10_000)  # as large as the records are worth it
            way = catch_up(known, now, far, records[:now])
            _, sent_hash, received = decode_task(encode_task(ClientTask(now, 0, 0.5), after[now].hash, way))
            theta = after[known].theta.clone()
            for record in received.records:
                apply_scalars_(theta, record, SEED, estimator)
            assert state_hash(theta) == sent_hash


def test_averaging_clients_equals_replay_in_exact_arithmetic() -> None:
    scalars, _, _ = train(federation("scalars"), 3)
    weights, _, _ = train(federation("weights"), 3)
    # both are float32 computations of the same real numbers: some hundred roundings of relative size 2^-24
    assert torch.allclose(scalars.theta, weights.theta, rtol=0, atol=200 * 2.0**-24)


def test_replay_is_the_weighted_sum_of_the_moves_in_float64() -> None:
    chosen = federation()
    state, plan = start(), plan_round(federation(), start())
    reports = simulation(chosen).run_round(plan, state).reports
    expected = state.theta.double().clone()
    total = sum(report.num_examples for report in reports)
    for report in reports:
        for index, g in enumerate(report.scalars or ()):
            stream = Address(SEED, 0, report.client).stream(index // 2, index % 2)
            z = Noise("gaussian").directions([stream], 0, SIZE)[0].double()
            expected -= report.num_examples / total * 0.01 * g / 2 * z
    after, _ = close_round_(chosen, state, plan, reports)
    # coefficients are rounded to 16 bits and each of the 24 subtractions to float32
    assert torch.allclose(after.theta.double(), expected, rtol=0, atol=24 * (2.0**-24 + 2.0**-17 * 0.01))


def test_one_client_with_one_step_is_a_mezo_step() -> None:
    """MeZO as its paper writes it, with the same direction."""
    model, eps, rate = Quadratic(), 1e-2, 0.01
    chosen = federation(clients=1)
    chosen = replace(chosen, rules=ReportRules("scalars", two_point(eps=eps), 1, SIZE))
    data = {0: ToyData(0, num_batches=1, num_examples=2)}
    work = ZerothOrderClients(model, two_point(eps=eps), SEED, "scalars")
    state = start()
    theta = state.theta.clone()
    plan = plan_round(chosen, state)
    after, _ = close_round_(
        chosen,
        state,
        plan,
        Simulation(work, data, Downlink("scalars", SIZE, derivable=True)).run_round(plan, state).reports,
    )

    z = Noise("gaussian").directions([Address(SEED, 0, 0).stream(0)], 0, SIZE)[0].float()
    batch = data[0].batches(0)[0]
    g = (float(model.loss(theta + eps * z, batch)) - float(model.loss(theta - eps * z, batch))) / (2 * eps)
    # ours rounds g to bfloat16 (2^-9), eps and the coefficient to 16 bits; float32 losses differ by 2^-24 / eps
    assert torch.allclose(after.theta, theta - rate * g * z, rtol=0, atol=rate * abs(g) * 4.4 * 2**-8)


def test_cohorts_are_a_function_of_seed_and_round() -> None:
    chosen = federation(clients=20, cohort_size=5)
    plans = [plan_round(chosen, replace(start(), round=r)) for r in range(50)]
    assert all(len(set(plan.cohort)) == 5 and plan.cohort == tuple(sorted(plan.cohort)) for plan in plans)
    assert plans[7] == plan_round(chosen, replace(start(), round=7))
    assert {client for plan in plans for client in plan.cohort} == set(range(20))
    assert len({plan.cohort for plan in plans}) > 40


def good_reports(chosen: Federation) -> tuple[ServerState, RoundPlan, list[Report]]:
    state = start()
    plan = plan_round(chosen, state)
    return state, plan, list(simulation(chosen).run_round(plan, state).reports)


FAULTS: dict[str, tuple[Callable[[Any], Report], str]] = {
    "a NaN scalar": (lambda r: replace(r, scalars=(float("nan"), *r.scalars[1:])), "scalar 0 is nan"),
    "an infinite scalar": (lambda r: replace(r, scalars=(*r.scalars[:-1], float("inf"))), "scalar 7 is inf"),
    "an absurd scalar": (lambda r: replace(r, scalars=(1e6, *r.scalars[1:])), "larger than 4992 in size"),
    "too few scalars": (lambda r: replace(r, scalars=r.scalars[:-2]), "it carries 6 scalars, not 8"),
    "no scalars": (lambda r: replace(r, scalars=None), "it carries no scalars"),
    "a float32 scalar": (lambda r: replace(r, scalars=(0.1, *r.scalars[1:])), "scalar 0 is not a bfloat16 number"),
    "the wrong round": (lambda r: replace(r, round=3), "it is of round 3, not 0"),
    "an unknown client": (lambda r: replace(r, client=9), "the client is not in this round's cohort"),
    "a doubled client": (lambda r: replace(r, client=0), "a second report of the same client"),
    "another state": (lambda r: replace(r, state_hash="f" * 64), "it started from the state ffffffffffff"),
    "no finite loss": (lambda r: replace(r, train_loss=float("nan")), "no local step had a finite loss"),
    "no examples": (lambda r: replace(r, num_examples=0), "0 examples and 0 skipped steps cannot be"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_report_is_refused_by_name_and_the_round_goes_on(name: str) -> None:
    break_it, reason = FAULTS[name]
    chosen = federation()
    state, plan, reports = good_reports(chosen)
    reports[1] = break_it(reports[1])
    _, record = close_round_(chosen, state, plan, reports)
    assert [part.client for part in record.contributions] == [0, 2]
    assert [part.weight for part in record.contributions] == [0.5, 0.5]
    (refusal,) = record.refusals
    assert refusal.client == reports[1].client
    assert reason in refusal.reason


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (torch.full((SIZE,), torch.nan), "not finite"),
        (torch.zeros(SIZE + 1), "no update of 10"),
        (torch.zeros(SIZE, dtype=torch.float64), "no update of 10"),
    ],
)
def test_a_bad_update_is_refused(update: Tensor, reason: str) -> None:
    chosen = federation("weights")
    state, plan, reports = good_reports(chosen)
    reports[0] = replace(reports[0], update=update)
    _, record = close_round_(chosen, state, plan, reports)
    assert reason in record.refusals[0].reason
    assert bool(torch.isfinite(state.theta).all())


def test_too_few_usable_reports_end_the_round_and_leave_theta() -> None:
    chosen = federation(min_clients=3)
    state, plan, reports = good_reports(chosen)
    before = state.theta.clone()
    reports[2] = replace(reports[2], state_hash="0" * 64)
    with pytest.raises(
        TrainingError, match=r"round 0: 2 usable reports of 3 clients, but at least 3 .* client 2: it started"
    ):
        close_round_(chosen, state, plan, reports)
    assert torch.equal(state.theta, before)


def test_equal_weights_ignore_the_number_of_examples() -> None:
    chosen = federation(equal_weights=True)
    state, plan, reports = good_reports(chosen)
    reports[0] = replace(reports[0], num_examples=1000)
    _, record = close_round_(chosen, state, plan, reports)
    assert len({part.weight for part in record.contributions}) == 1


def drift_reference(updates: Sequence[Tensor]) -> list[float]:
    mean = torch.stack(list(updates)).double().mean(0)
    return [sum(float((update.double() - mean)[s.start : s.stop].norm()) for s in toy_segments()) for update in updates]


def test_drift_is_summed_over_tensors_and_the_same_from_scalars_and_updates() -> None:
    chosen = federation()
    _, records, _ = train(chosen, 1)
    estimator = chosen.rules.estimator
    assert estimator is not None
    parts = records[0].contributions
    updates = [
        update_from_zero(
            linear_moves(Pace(p.rate), p.scalars or (), Address(SEED, 0, p.client), 2),
            Noise("gaussian"),
            0,
            SIZE,
            torch.device("cpu"),
        )
        for p in parts
    ]
    from_scalars = drifts_of_scalars(parts, 0, SEED, estimator, toy_segments(), torch.device("cpu"))
    assert from_scalars == pytest.approx(drift_reference(updates), rel=1e-5)
    assert drifts_of_updates(updates, toy_segments()) == pytest.approx(from_scalars, rel=1e-12)
