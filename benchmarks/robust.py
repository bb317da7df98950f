"""What a third of dishonest clients does to the quickstart under each rule of `federate.aggregation`.

All clients share directions (`federate.direction_groups: 1`), and every lie is told in every round. The server's own
limits on the size of scalars and on counts are lifted, so that the rules stand alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.stage import Lie, Results, Stage, honest
from fedmezo.config.schema import Aggregation
from fedmezo.federation.round import Federation
from fedmezo.records import Report, RoundPlan
from fedmezo.zo.arithmetic import round_scalar
from fedmezo.zo.estimators.one_sided import OneSided

CLIENTS = {3: (5, 0.06), 10: (3, 0.06), 30: (1, 0.12)}
"""Clients, all of them in every round, with the local steps of each and the rate."""
ROUNDS = 10
UNBOUNDED = 2.0**20

Scalars = Sequence[float]
Change = Callable[[Scalars, np.random.Generator, Scalars], Scalars]
"""From a liar's own scalars, random numbers and the honest clients' mean to what it sends."""


@dataclass(frozen=True, slots=True)
class Unbounded(OneSided):
    """The clients' estimator, of which the server takes scalars of any size."""

    @property
    def largest(self) -> float:
        """Beyond all lies."""
        return UNBOUNDED


def lie(change: Change, count: int | None = None) -> Lie:
    """The first third of the clients send changed scalars, and say that they have so many examples."""

    def told(plan: RoundPlan, reports: Sequence[Report]) -> list[Report]:
        rng, liars = np.random.default_rng(plan.round), len(plan.cohort) // 3
        mean = np.mean([report.scalars or () for report in reports[liars:]], axis=0).tolist()

        def changed(report: Report) -> Report:
            scalars = tuple(map(round_scalar, change(report.scalars or (), rng, mean)))
            return replace(report, scalars=scalars, num_examples=count or report.num_examples)

        return [*map(changed, reports[:liars]), *reports[liars:]]

    return told


def turned(own: Scalars, rng: np.random.Generator, mean: Scalars) -> Scalars:
    """Every scalar against its sign."""
    return [-g for g in own]


LIES: dict[str, Lie] = {
    "none": honest,
    "signs turned": lie(turned),
    "x1000": lie(lambda own, rng, mean: [1000 * g for g in own]),
    "random": lie(lambda own, rng, mean: rng.normal(0.0, 30.0, len(own)).tolist()),
    "constant": lie(lambda own, rng, mean: [5.0] * len(own)),
    "signs turned, a million examples": lie(turned, count=1 << 20),
    "together, thrice against the honest mean": lie(lambda own, rng, mean: [-3 * g for g in mean]),
}


def believing(federation: Federation) -> Federation:
    """A server that takes scalars and counts of any size."""
    rules = federation.rules
    assert rules.estimator is not None, "the clients have one"
    return replace(
        federation, rules=replace(rules, estimator=Unbounded(rules.estimator.settings), most_examples=1 << 20)
    )


def play(stage: Stage, rule: str, told: Lie) -> dict[str, float]:
    """Test loss after the last round."""
    return {"loss": stage.final_loss(stage.config(f"federate.aggregation={rule}"), told, believing)}


def main() -> None:
    """Play every lie under every rule and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("robust.jsonl"), help="where to keep what was measured")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS), choices=list(CLIENTS))
    options = parser.parse_args()
    results, rules = Results(options.results), get_args(Aggregation)
    for clients in options.clients:
        steps, rate = CLIENTS[clients]
        words = [f"federate.client_num={clients}", f"federate.total_round_num={ROUNDS}", "federate.direction_groups=1"]
        words += [f"train.local_update_steps={steps}", f"train.optimizer.lr={rate}", f"train.lr_width={rate / 2}"]
        stage = Stage(words)
        print(f"{clients // 3} of {clients} lie; test loss {stage.loss(stage.tuned.theta):.4f} before training")
        print("| lie |", " | ".join(rules), "|")
        for name, told in LIES.items():
            found = (results.measure(f"{clients}: {name}: {rule}", partial(play, stage, rule, told)) for rule in rules)
            print(f"| {name} |", " | ".join(f"{values['loss']:.3f}" for values in found), "|", flush=True)


if __name__ == "__main__":
    main()
