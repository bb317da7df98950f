"""The membership attack against a model whose examples pull it apart, and against numbers that know nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmezo.engines.simulation import Simulation
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.course import Course
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import Federation, close_round_, initial_state, plan_round
from fedmezo.records import Batch, Report, RoundRecord
from fedmezo.studies.membership import Target, auc_of, infer, seen_of
from fedmezo.zo.arithmetic import round_scalar
from tests.toy import SIZE, Quadratic, ToyData, toy_batch
from tests.unit.test_round import SEED, federation

THETA = torch.linspace(-1, 1, SIZE)
ROUNDS = 40


class Few(ToyData):
    """The same eight examples in every round."""

    def batches(self, round_index: int) -> list[Batch]:
        return super().batches(0)


def played(chosen: Federation, random: bool = False) -> tuple[RoundRecord, ...]:
    assert chosen.rules.estimator is not None
    work = ZerothOrderClients(Quadratic(), chosen.rules.estimator, SEED, "scalars")
    data = {client: Few(client) for client in range(chosen.num_clients)}
    engine = Simulation(work, data, Downlink("scalars", SIZE, derivable=True))
    state, records = initial_state(THETA.clone()), []
    rng = np.random.default_rng(1)

    def told(report: Report) -> Report:
        drawn = tuple(round_scalar(float(g)) for g in rng.normal(size=len(report.scalars or ())))
        return replace(report, scalars=drawn) if random else report

    for _ in range(ROUNDS):
        plan = plan_round(chosen, state)
        state, record = close_round_(chosen, state, plan, [told(r) for r in engine.run_round(plan, state).reports])
        records.append(record)
    return tuple(records)


def attack(chosen: Federation, records: tuple[RoundRecord, ...]) -> float:
    assert chosen.rules.estimator is not None
    course = Course(SEED, chosen.rules.estimator)
    cohorts = {record.round: range(chosen.num_clients) for record in records}
    targets = []
    for client in range(chosen.num_clients):
        own = range(10 * client, 10 * client + 8)
        seen = seen_of(records, client, cohorts, SEED, chosen.groups)
        others = range(5000 + 10 * client, 5008 + 10 * client)
        targets.append(Target(seen, toy_batch(*own, *others), len(own)))
    return infer(Quadratic(), course, records, THETA, targets, lambda done, total: None).auc.value


def test_scalars_tell_of_examples_and_random_numbers_do_not() -> None:
    chosen = replace(federation(clients=8, strategy="frozen"))
    assert attack(chosen, played(chosen)) > 0.6
    assert attack(chosen, played(chosen, random=True)) < 0.58


def test_sums_of_groups_can_be_attacked_too() -> None:
    plain = federation(clients=6)
    chosen = replace(plain, groups=2, rules=replace(plain.rules, most_examples=8))
    assert 0.3 < attack(chosen, played(chosen)) <= 1.0


def test_the_area_under_the_curve() -> None:
    first, second = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0])
    assert auc_of(first, second).value == pytest.approx((2 + 1 + 1.5) / 6)
    assert auc_of(first, first).value == 0.5
    assert auc_of(np.arange(50.0), np.arange(50.0)).low < 0.5 < auc_of(np.arange(50.0), np.arange(50.0)).high
