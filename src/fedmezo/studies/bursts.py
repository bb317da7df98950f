"""Short stretches of the real federated training, from forward passes alone, on draws that the run will not make."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import Tensor

from fedmezo.config import Config
from fedmezo.config.schema import AUTO, RateSchedule
from fedmezo.data.shard import Indices, Shard
from fedmezo.engines.rounds import closed_round_
from fedmezo.engines.simulation import Simulation
from fedmezo.errors import TrainingError
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.rates import FROZEN, SCALE_FREE
from fedmezo.federation.round import ServerState, initial_state
from fedmezo.models.language_model import LanguageModel
from fedmezo.records import Batch
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.evaluate import evaluate
from fedmezo.studies.advice import replaced
from fedmezo.zo.calibration import Burst
from fedmezo.zo.noise import MAX_ROUNDS, MAX_SEED, Purpose, Stream, permutation

EPS_TO_COUNT_WITH = 1e-3
"""Of a configuration whose eps is to be measured: losses and scalars are counted with it, none is taken."""

FORWARD_PASSES = 12_000
"""Budget by default: one or two minutes of a model whose forward pass takes 5 to 10 ms."""

SECONDS = 180.0
"""What a model of slower forward passes may take by default: its budget is what fits into that time."""

FULL_BURSTS = 5
"""Bursts that go to their end in a typical search, of two settings; those that diverge cost little."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How carefully things are measured."""

    smallest_eps: float
    eps_tried: int  # doubling from the smallest on
    directions: int  # along which g's error is measured at each eps
    moment_examples: int
    moment_directions: int
    judges: int  # training examples that a burst's loss is taken on
    evaluations: int  # of a burst

    @property
    def forward_passes(self) -> int:
        """What comes before the bursts."""
        moments = (2 * self.moment_directions + 1) * self.moment_examples // BATCHED
        return 4 * self.directions * self.eps_tried + moments


FULL = Effort(1e-4, 12, directions=16, moment_examples=32, moment_directions=32, judges=64, evaluations=10)
BRIEF = Effort(8e-4, 9, directions=6, moment_examples=8, moment_directions=8, judges=24, evaluations=3)
ENOUGH = 4000
"""Forward passes from which there is a full effort."""

DIVERGED = 1.2
"""A burst whose loss is so many times the loss it started from is given up."""

BATCHED = 4
"""How many times cheaper an example is in a large batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A model and its clients, set up as for a run, with draws that the run itself will not make."""

    config: Config  # the user's, with another seed and one rate
    tuned: TunedModel
    holdings: Holdings
    shards: dict[int, Shard]
    theta: Tensor  # (d,) where the run starts
    effort: Effort = FULL
    eps: float | None = None  # to train with; None is the best that is found

    @property
    def model(self) -> LanguageModel:
        """What is tuned."""
        return self.tuned.model

    def examples(self, count: int) -> list[Indices]:
        """About `count` training examples, as many from each client, since clients have equal weight in a round."""
        shards = self.holdings.partition.train
        share = -(-count // len(shards))
        streams = [Stream(self.config.seed, Purpose.DATA_ORDER, MAX_ROUNDS - 1, c) for c in range(len(shards))]
        return [s[permutation(stream, len(s)).numpy()[:share]] for s, stream in zip(shards, streams, strict=True)]

    def loss(self, theta: Tensor) -> float:
        """Mean loss on the judging examples."""
        return evaluate(self.model, theta, self.holdings.dataset, self.examples(self.effort.judges)).value


def set_up(config: Config, console: Console, holdings: Holdings | None = None) -> Bench:
    """Load the model and, unless they are given, the data of a run."""
    tuned = assemble.load_model(config)
    if holdings is None:
        holdings = assemble.load_holdings(config, tuned.tokenizer, console)
    other = _for_bursts(config)
    assemble.use_lanes(other, tuned, holdings.dataset)
    shards = assemble.make_shards(other, holdings, tuned.model.device)
    return Bench(other, tuned, holdings, shards, _start(config, tuned))


def _start(config: Config, tuned: TunedModel) -> Tensor:
    """Theta (d,) where the run starts."""
    restored = config.federate.restore_from
    theta = tuned.model.read(Path(restored)) if restored else tuned.theta
    return theta.to(tuned.model.device)


def _for_bursts(config: Config) -> Config:
    """The configuration with another seed, and one rate from the first round to the last."""
    train = config.train
    zo = train.zo if train.zo.eps != AUTO else train.zo.model_copy(update={"eps": EPS_TO_COUNT_WITH})
    changed = {
        "train_strategy": SCALE_FREE if train.train_strategy == SCALE_FREE else FROZEN,
        "schedule": RateSchedule(),
        "trust": False,  # without it a rate shows its limits
        "compile": False,  # takes longer than it saves here
        "zo": zo,
    }
    return config.model_copy(update={"seed": config.seed ^ MAX_SEED, "train": train.model_copy(update=changed)})


def affordable(bench: Bench) -> int:
    """Forward passes that fit into `SECONDS`, by the time of some; no more than `FORWARD_PASSES`."""
    batches = [batches[0] for batches in first_batches(bench)]
    bench.model.losses([bench.theta], batches[:1])  # the first is slower than any other
    started = time.monotonic()
    for batch in batches:
        float(bench.model.losses([bench.theta], [batch]))
    seconds = (time.monotonic() - started) / len(batches)
    return min(FORWARD_PASSES, int(SECONDS / max(seconds, 1e-9)))


def burst_rounds(bench: Bench, budget: int) -> int:
    """How many rounds a burst may have, so that a search fits the budget; no more than the run has."""
    config = bench.config
    steps = sum(shard.num_batches for shard in bench.shards.values()) / len(bench.shards)
    per_round = assemble.bare_estimator(config).passes * steps * config.federate.cohort_size
    evaluating = bench.effort.evaluations * bench.effort.judges / config.dataloader.batch_size / BATCHED
    rounds = int((budget / FULL_BURSTS - evaluating) / per_round)
    return max(1, min(config.federate.total_round_num, rounds))


def run_burst(bench: Bench, eps: float, rate: float, rounds: int) -> Burst:
    """Train for some rounds, by the code of a real run."""
    points = [(0, bench.loss(bench.theta))]
    limit = DIVERGED * points[0][1]
    for at, loss, state in _trained(bench, eps, rate, rounds):
        if at % max(1, rounds // bench.effort.evaluations) == 0 or at == rounds or not loss <= limit:
            points.append((at, bench.loss(state.theta)))
            if not points[-1][1] <= limit:
                return Burst(rate, tuple(points), diverged=at)
    done = points[-1][0]
    return Burst(rate, tuple(points), diverged=None if done == rounds else done + 1)


def _trained(bench: Bench, eps: float, rate: float, rounds: int) -> Iterator[tuple[int, float, ServerState]]:
    """Rounds done, mean train loss of the last and the state after it; ends early where no report is usable."""
    config = replaced(bench.config, {"train.zo.eps": eps, "train.optimizer.lr": rate})
    federation = assemble.make_federation(config, bench.tuned.model)
    downlink = Downlink(federation.rules.protocol, federation.rules.num_parameters, derivable=True)
    at_once = assemble.clients_at_once(config, bench.model)
    engine = Simulation(assemble.make_work(config, bench.tuned), bench.shards, downlink, at_once)
    state = initial_state(bench.theta.to("cpu", copy=True))
    for done in range(1, rounds + 1):
        try:
            state, plan, record, result = closed_round_(engine, federation, state)
        except TrainingError:
            return
        engine.close_round(plan, record)
        yield done, sum(report.train_loss for report in result.reports) / len(result.reports), state


def first_batches(bench: Bench) -> list[Sequence[Batch]]:
    """The batches of a round that no run has, of each client that has examples."""
    return [shard.batches(MAX_ROUNDS - 1) for shard in bench.shards.values() if shard.num_examples]
