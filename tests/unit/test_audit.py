"""The audit of a log: who agrees with whom, who is unlike the others, and the run without one party."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from fedmezo.errors import RunError
from fedmezo.federation.course import Course
from fedmezo.federation.round import Federation, close_round_, initial_state, plan_round
from fedmezo.records import Report, RoundRecord
from fedmezo.studies.audit import audit, examine, show
from fedmezo.studies.influence import compare, parties_of, replay_without, without
from fedmezo.zo.arithmetic import round_coefficient, round_scalar
from tests.toy import SIZE, Quadratic, toy_batch
from tests.unit.test_combinations import Choices
from tests.unit.test_round import SEED, federation, simulation

THETA = torch.linspace(-1, 1, SIZE)
ROUNDS = 12


def run(chosen: Federation, lie: Callable[[Report], Report]) -> tuple[tuple[RoundRecord, ...], Tensor]:
    """The records of some rounds in which client 1 lies, and the last theta."""
    engine, state, records = simulation(chosen), initial_state(THETA.clone()), []
    for _ in range(ROUNDS):
        plan = plan_round(chosen, state)
        reports = [lie(made) if made.client == 1 else made for made in engine.run_round(plan, state).reports]
        state, record = close_round_(chosen, state, plan, reports)
        records.append(record)
    return tuple(records), state.theta


def times(factor: float) -> Callable[[Report], Report]:
    return lambda made: replace(made, scalars=tuple(round_scalar(factor * g) for g in made.scalars or ()))


def own(clients: int = 4) -> Federation:
    return federation(clients=clients, strategy="frozen")


def grouped() -> Federation:
    plain = federation(clients=6)
    return replace(plain, groups=2, rules=replace(plain.rules, most_examples=8))


def course_of(chosen: Federation) -> Course:
    assert chosen.rules.estimator is not None
    return Course(SEED, chosen.rules.estimator)


def silent(done: int, total: int | None) -> None:
    """Show no progress."""


def loss(theta: Tensor) -> float:
    return float(Quadratic().loss(theta, toy_batch(0, 1, 2, 3)))


@pytest.mark.parametrize("chosen", [own(), grouped()], ids=["own", "groups"])
def test_the_run_with_everybody_is_the_run(chosen: Federation) -> None:
    records, theta = run(chosen, times(1.0))
    before = THETA.clone()
    assert torch.equal(replay_without(records, None, course_of(chosen), before), theta)
    assert torch.equal(before, THETA)


def test_the_run_without_a_client_is_that_of_the_others_alone() -> None:
    """Closed form: with equal weights, the average over three in place of four."""
    chosen = replace(own(), equal_weights=True)
    records, _ = run(chosen, times(1.0))
    for record in records:
        left = without(record, 1)
        assert [part.client for part in left.contributions] == [0, 2, 3]
        assert {part.weight for part in left.contributions} == {round_coefficient(1 / 3)}
    chosen, (first, *_) = own(clients=1), records
    alone = replace(first, contributions=first.contributions[1:2])
    assert without(alone, 1).is_void


def test_the_run_without_a_group_gives_its_weight_to_the_others() -> None:
    records, _ = run(grouped(), times(1.0))
    (kept,) = without(records[0], 0).groups
    total = sum(group.weight for group in records[0].groups)
    for c, before in zip(kept.coefficients, records[0].groups[1].coefficients, strict=True):
        assert c == round_coefficient(before * total / kept.weight)


def test_agreement_is_the_cosine_with_the_sum_of_the_others_directions() -> None:
    records, _ = run(own(), times(1.0))
    course = course_of(own())
    found = compare(records, course, THETA, silent)
    assert parties_of(records) == dict.fromkeys(range(4), ROUNDS)
    only = {
        number: replay_without(
            [
                replace(record, contributions=tuple(p for p in record.contributions if p.client == number))
                for record in records
            ],
            None,
            course,
            torch.zeros(SIZE),
        ).double()
        for number in range(4)
    }
    for party in found:
        others = torch.stack([only[n] / only[n].norm() for n in only if n != party.number]).sum(0)
        cosine = float(torch.cosine_similarity(only[party.number], others, dim=0))
        assert party.agreement == pytest.approx(cosine, abs=1e-5)
        assert party.size == pytest.approx(float(only[party.number].norm()) / math.sqrt(ROUNDS), rel=1e-5)


@pytest.mark.parametrize(
    ("lie", "said"),
    [(times(-1.0), "pulls against the others"), (times(8.0), "times as far as the others")],
)
def test_who_lies_is_named_and_nobody_else(lie: Callable[[Report], Report], said: str) -> None:
    chosen = replace(own(), equal_weights=True)
    records, _ = run(chosen, lie)
    found = examine(HEADER, records, course_of(chosen), THETA, loss, Console(file=io.StringIO()))
    assert [number for number, words in found.remarks.items() if any(said in word for word in words)] == [1]
    text = io.StringIO()
    show(Console(file=text, width=200), found)
    assert "client 1: " in text.getvalue()


def test_a_run_is_better_without_who_turns_its_signs() -> None:
    chosen = replace(own(), equal_weights=True)
    records, _ = run(chosen, times(-1.0))
    found = examine(HEADER, records, course_of(chosen), THETA, loss, Console(file=io.StringIO()))
    assert any("the run is better without it" in word for word in found.remarks[1])
    assert found.parties[1].loss_without < found.loss < found.parties[0].loss_without


def test_without_data_the_log_alone_still_tells() -> None:
    records, _ = run(own(), times(-1.0))
    found = examine(HEADER, records, course_of(own()), THETA, None, Console(file=io.StringIO()))
    assert math.isnan(found.loss)
    assert found.remarks[1] == ["pulls against the others"]


def test_no_run_no_audit(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such file"):
        audit(tmp_path / "nowhere")


HEADER = Choices("two-point", 1, "gaussian", 0.0, "frozen", "constant", "FedAvg", 4, 0, "mean", False, True).header()
