"""What privacy costs on the bundled task: loss at several epsilons, beside DP-FedAvg by back-propagation.

300 clients, 100 of them in a round, all along the same directions, delta 1e-5. At client level the clients' scalars are
normalised, so that the clip takes nothing from them; at example level they are two-point's. DP-FedAvg (McMahan et al.
2018) clips each client's update of the adapter in L2, to the median of the first round's, which it is told for nothing,
and adds the noise to all its numbers; each of its lines is the best of several rates, and ours have one. Results go to
a file line by line, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from torch import Tensor

from fedmezo.config import Config, load_config
from fedmezo.engines.rounds import closed_round_
from fedmezo.engines.simulation import Simulation
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import cohort_of, initial_state
from fedmezo.federation.sums import FixedPoint
from fedmezo.privacy.accountant import noise_for
from fedmezo.privacy.clipping import clipped_sums
from fedmezo.privacy.keys import fewest_left
from fedmezo.privacy.rehearsal import Rehearsal
from fedmezo.records import ClientTask, Report, RoundPlan
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.budget import Participation, with_noise
from fedmezo.runs.hiding import make_rehearsal
from fedmezo.zo.arithmetic import round_scalar, state_hash

DELTA = 1e-5
EPSILONS = (None, 8.0, 2.0)
COMMON = (
    *("federate.client_num=300", "federate.sample_client_num=100", "data.splitter=iid", "train.trust=False"),
    *("model.dtype=float32", "train.schedule.type=constant", "train.local_update_steps=2", "dataloader.batch_size=2"),
)
SHARED = (
    *("federate.direction_groups=1", "federate.ignore_weight=True", "train.zo.queries=2", "train.zo.eps=0.01"),
    "train.lanes=32",
)
CLIENT = (*SHARED, "train.optimizer.lr=0.15", "train.zo.estimator=one-sided")
EXAMPLE = (*SHARED, "train.optimizer.lr=0.6", "train.zo.estimator=two-point")
ADAPTER = "{r: 1, lora_alpha: 2, lora_dropout: 0.0, target_modules: [q_proj, v_proj]}"
BACKPROP = ("trainer.type=llmtrainer", f"llm.adapter.args=[{ADAPTER}]")
RATES = (1.0, 4.0, 16.0)
"""Of DP-FedAvg."""
CLIPS = {"client": 2.0, "example": 0.25}
"""Of two steps of two normalised scalars, whose norm is exactly that; of an example's two scalars of a step."""


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    name: str
    play: Callable[[int], list[float]]  # from rounds to the validation loss after each second one


class Task:
    """The bundled task under some words of configuration."""

    def __init__(self, words: Sequence[str], rounds: int) -> None:
        self.config: Config = load_config(None, [*COMMON, f"federate.total_round_num={rounds}", *words]).config
        torch.set_num_threads(max(1, self.config.threads))
        self.tuned: TunedModel = assemble.load_model(self.config)
        self.holdings: Holdings = assemble.load_holdings(self.config, self.tuned.tokenizer, Console(quiet=True))
        assemble.use_lanes(self.config, self.tuned, self.holdings.dataset)

    def loss(self, theta: Tensor) -> float:
        """The validation loss."""
        return assemble.measures(self.config, self.tuned, self.holdings)["val_loss"](theta).value


def scalars(words: Sequence[str], rounds: int) -> list[float]:
    """A run of ours."""
    task = Task(words, rounds)
    held = list(map(len, task.holdings.partition.train))
    bare = assemble.make_federation(task.config, task.tuned.model)
    config = with_noise(task.config, bare, held, by_plan=True)
    print(f"  noise multiplier {config.privacy.noise_multiplier}", flush=True)
    federation = assemble.make_federation(config, task.tuned.model)
    downlink = Downlink("scalars", len(task.tuned.theta), derivable=True)
    shards = assemble.make_shards(config, task.holdings, task.tuned.model.device)
    at_once = assemble.clients_at_once(config, task.tuned.model)
    work, rehearsal = assemble.make_work(config, task.tuned), make_rehearsal(config, federation)
    engine = Simulation(work, shards, downlink, at_once, rehearsal)
    state, losses = initial_state(task.tuned.theta.clone()), [task.loss(task.tuned.theta)]
    for index in range(rounds):
        closed = closed_round_(engine, federation, state)
        state = closed.state
        engine.close_round(closed.plan, closed.record)
        if index % 2:
            losses.append(task.loss(state.theta))
            print(f"  round {index + 1}: {losses[-1]:.4f}", flush=True)
    return losses


def best_averaged(epsilon: float | None, rounds: int) -> list[float]:
    """The best run of DP-FedAvg over its rates."""
    return min((averaged(epsilon, rate, rounds) for rate in RATES), key=lambda losses: losses[-1])


def averaged(epsilon: float | None, rate: float, rounds: int) -> list[float]:
    """A run of DP-FedAvg, or of FedAvg without an epsilon, from gradients."""
    task = Task([*BACKPROP, f"train.optimizer.lr={rate}"], rounds)
    federation, work = (
        assemble.make_federation(task.config, task.tuned.model),
        assemble.make_work(task.config, task.tuned),
    )
    shards = assemble.make_shards(task.config, task.holdings, task.tuned.model.device)
    busiest = Participation(federation, by_plan=True).busiest(rounds)
    multiplier = noise_for(epsilon, DELTA, busiest) if epsilon else 0.0
    print(f"  rate {rate}, noise multiplier {multiplier:.4g}, {busiest} rounds of the busiest client", flush=True)
    theta, clip, generator = task.tuned.theta.clone(), math.inf, torch.Generator().manual_seed(5)
    losses = [task.loss(theta)]
    for index in range(rounds):
        tasks = [ClientTask(index, client, task.config.train.optimizer.rate) for client in cohort_of(federation, index)]
        reports = work.run(tasks, theta, state_hash(theta), shards)
        updates = [report.update for report in reports if report.update is not None]
        norms = [float(torch.linalg.vector_norm(update)) for update in updates]
        clip = median(norms) if epsilon and math.isinf(clip) else clip
        total = torch.stack([u * min(1.0, clip / n) for u, n in zip(updates, norms, strict=True)]).sum(dim=0)
        if epsilon:
            total += multiplier * clip * torch.randn(len(theta), generator=generator)
        theta += total / len(updates)
        if index % 2:
            losses.append(task.loss(theta))
            print(f"  round {index + 1}: {losses[-1]:.4f}", flush=True)
    return losses


def uplink(clients: int = 100, steps: int = 30) -> None:
    """Bytes up and down of each client in a round, beyond its key and its task, in groups of several sizes."""
    rng = random.Random(1)
    drawn = [tuple(round_scalar(rng.gauss(0, 2)) for _ in range(steps)) for _ in range(clients)]
    print("| clients in a group | up | up, with client-level noise | down |")
    for groups in (33, 25, 20, 8, 1):
        dealt = tuple(client % groups for client in range(clients))
        plain = FixedPoint(steps, clients, steps, 500.0, equal=False)
        noisy = clipped_sums(steps, clients, fewest_left(clients // groups, 0.2), 2.0, 2.7)
        cells = []
        for rehearsal in (Rehearsal(plain, 0.49), Rehearsal(noisy, 0.2)):
            for index in range(2):  # keys are sent in the first
                reports = [Report(index, c, "0" * 64, steps, 2.0, 0, scalars) for c, scalars in enumerate(drawn)]
                plan = RoundPlan(index, tuple(range(clients)), (0.1,) * clients, groups=dealt)
                outcome = rehearsal.sum_up(plan, reports)
            cells.append((max(outcome.bytes_up.values()), max(outcome.bytes_down.values())))
        (up, down), (up_noisy, _) = cells
        print(f"| {-(-clients // groups)} | {up} | {up_noisy} | {down} |")


def private(level: str, words: Sequence[str], epsilon: float | None) -> list[str]:
    """The words of a run of ours at an epsilon."""
    if epsilon is None:
        return list(words)
    return [*words, f"privacy.level={level}", f"privacy.clip={CLIPS[level]}", f"privacy.epsilon={epsilon}"]


def cases() -> list[Case]:
    """All lines, the dearest last."""

    def name(what: str, epsilon: float | None) -> str:
        return f"{what}, epsilon {epsilon or 'none'}"

    found = [Case(name("client", e), partial(scalars, private("client", CLIENT, e))) for e in EPSILONS]
    found += [Case(name("DP-FedAvg", e), partial(best_averaged, e)) for e in EPSILONS]
    return found + [Case(name("example", e), partial(scalars, private("example", EXAMPLE, e))) for e in EPSILONS]


def main() -> None:
    """Play what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("privacy.jsonl"))
    parser.add_argument("--uplink", action="store_true", help="count the bytes of secure sums, and nothing else")
    options = parser.parse_args()
    if options.uplink:
        uplink()
        return
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {row["name"] for row in rows if row["rounds"] == options.rounds}
    for case in cases():
        if case.name in known:
            continue
        print(case.name, flush=True)
        started = time.monotonic()
        losses = case.play(options.rounds)
        row = {"name": case.name, "rounds": options.rounds, "losses": losses, "seconds": time.monotonic() - started}
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
    for row in rows:
        print(f"| {row['name']} | " + " | ".join(f"{loss:.4f}" for loss in row["losses"]) + " |")


if __name__ == "__main__":
    main()
