"""What shared directions cost in convergence, beside what `fedmezo diagnose` predicts.

First the second moment of a round's move: with B clients on one direction it is 1 + (B - 1) rho times that with
directions of their own, where rho is the correlation of two clients' scalars along a direction that they share. It is
measured from scalars and predicted from gradients. Then the loss after ten rounds, at the best of rates that double
from run to run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.stage import Results, Stage
from fedmezo.config import Config
from fedmezo.data.shard import Shard
from fedmezo.engines.simulation import Simulation
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import initial_state, plan_round
from fedmezo.runs import assemble
from fedmezo.studies.diagnose import gradient_of
from fedmezo.zo.theory import gradient_moments

CLIENTS = {3: (5, 0.03), 30: (2, 0.06), 300: (1, 0.12)}
"""Clients of every round, with the local steps of each and the first rate that is tried."""
GROUPS = (1, 2, 8)
ROUNDS = 10
SEEDS = (0, 1)
DRAWS = {3: 200, 30: 60, 300: 12}
"""Directions along which all clients' scalars are compared."""
BATCHES = 8
"""Of each of up to 16 clients, whose gradients are compared."""
DIVIDED = ("data.splitter=lda", "data.splitter_args=[{alpha: 0.5}]")


def correlation(stage: Stage, clients: int, theta: Tensor) -> dict[str, float]:
    """Rho from scalars along shared directions at theta (d,), and as gradients predict it."""
    words = ("train.zo.estimator=two-point", "train.zo.queries=1", "train.local_update_steps=1")
    config = stage.config(*words, "federate.direction_groups=1")
    federation, model = assemble.make_federation(config, stage.tuned.model), stage.tuned.model
    shards = assemble.make_shards(config, stage.holdings, model.device)
    downlink = Downlink("scalars", len(theta), derivable=True)
    engine = Simulation(assemble.make_work(config, stage.tuned), shards, downlink, max(1, model.lanes // 2))
    drawn, start = [], initial_state(theta.clone())
    for index in range(DRAWS[clients]):
        state = replace(start, round=index)
        plan = plan_round(federation, state)
        drawn.append([(report.scalars or (0.0,))[0] for report in engine.run_round(plan, state).reports])
    scalars = np.array(drawn)  # (draws, clients)
    squares, sums = np.square(scalars).sum(1), np.square(scalars.sum(1))
    pairs = clients * (clients - 1)
    measured = ((sums - squares) / pairs).mean() / (squares / clients).mean()
    return {"measured": float(measured), "predicted": predicted(stage, shards, theta)}


def predicted(stage: Stage, shards: dict[int, Shard], theta: Tensor) -> float:
    """Rho from the gradients of some clients' batches at theta (d,)."""
    gradient = gradient_of(stage.tuned.model)
    some = list(shards.values())[:: max(1, len(shards) // 16)][:16]
    rows = [gradient(theta, batch) for shard in some for r in range(BATCHES) for batch in shard.batches(1000 + r)[:1]]
    stacked = torch.stack(rows)
    gram = (stacked @ stacked.T).double().view(len(some), BATCHES, len(some), BATCHES)
    return gradient_moments(gram).correlation.value


def best_loss(results: Results, stage: Stage, clients: int, groups: int, seed: int) -> dict[str, float]:
    """The loss after the last round at the best rate, and that rate."""
    rate, best, at = CLIENTS[clients][1], float("inf"), 0.0
    while True:
        words = [f"train.optimizer.lr={rate}", f"train.lr_width={rate / 2}", f"seed={seed}"]
        config = stage.config(*words, f"federate.direction_groups={groups}")
        name = f"loss of {clients} clients, {groups} groups, rate {rate}, seed {seed}"
        loss = results.measure(name, partial(_loss, stage, config))["loss"]
        if loss >= best:
            return {"loss": best, "rate": at}
        best, at, rate = loss, rate, 2 * rate


def _loss(stage: Stage, config: Config) -> dict[str, float]:
    return {"loss": stage.final_loss(config)}


def main() -> None:
    """Measure everything, the cheapest first, and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("sharing.jsonl"), help="where to keep what was measured")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS), choices=list(CLIENTS))
    options = parser.parse_args()
    results = Results(options.results)
    for clients in options.clients:
        steps = CLIENTS[clients][0]
        words = [f"federate.client_num={clients}", f"federate.total_round_num={ROUNDS}", *DIVIDED]
        stage = Stage([*words, f"train.local_update_steps={steps}"])
        before = stage.tuned.theta
        found = results.measure(f"rho of {clients}, before training", partial(correlation, stage, clients, before))
        print(f"{clients} clients, before training: rho {found['measured']:.3f}, predicted {found['predicted']:.3f}")
        *_, (state, _) = stage.rounds(stage.config())
        found = results.measure(f"rho of {clients}, after training", partial(correlation, stage, clients, state.theta))
        print(f"{clients} clients, after training: rho {found['measured']:.3f}, predicted {found['predicted']:.3f}")
        for groups in (0, *(g for g in GROUPS if g < clients)):
            for seed in SEEDS if clients < 300 else SEEDS[:1]:
                best = best_loss(results, stage, clients, groups, seed)
                what = f"{groups} groups" if groups else "directions of their own"
                print(
                    f"{clients} clients, {what}, seed {seed}: {best['loss']:.4f} at rate {best['rate']:g}", flush=True
                )


if __name__ == "__main__":
    main()
