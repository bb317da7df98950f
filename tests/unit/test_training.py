"""What a round measures, and when a model is evaluated."""

from __future__ import annotations

import pytest

from fedmezo.engines.rounds import RoundResult
from fedmezo.records import Contribution, Refusal, RoundRecord
from fedmezo.runs.evaluate import Evaluation
from fedmezo.runs.stopping import EarlyStopping
from fedmezo.runs.training import EvaluationPlan, round_metrics


def test_a_round_counts_what_it_refused() -> None:
    part = Contribution(0, 0.5, 1.0, 10, 2.0, 1, (1.0, -3.0))
    record = RoundRecord(4, (0, 7), (part,), (Refusal(7, "scalar 0 is nan"),), "00" * 32)
    metrics = round_metrics(record, RoundResult((), {0: 100, 7: 100}, {0: 70, 7: 70}, 30))
    assert {metric.round for metric in metrics} == {5}
    overall = {metric.name: metric.value for metric in metrics if metric.client is None}
    assert overall == {
        "refused_reports": 1,
        "skipped_steps": 1,
        "train_loss": 2.0,
        "rate": 0.5,
        "projected_gradient": 2.0,
        "bytes_up": 140,
        "bytes_down": 200,
    }
    assert {metric.client for metric in metrics if metric.name == "bytes_up"} == {0, 7, None}


@pytest.mark.parametrize(("freq", "expected"), [(0, []), (1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (9, [0, 5])])
def test_evaluations_are_due_every_so_often_and_at_the_end(freq: int, expected: list[int]) -> None:
    plan = EvaluationPlan(freq, {"val_loss": lambda _: Evaluation(0, {})}, "val_loss", EarlyStopping(0, 0.0, "best"))
    assert [index for index in range(6) if plan.due(index, 5)] == expected
