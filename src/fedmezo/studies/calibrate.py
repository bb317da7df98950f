"""Choosing eps and the rate by measurement, with forward passes alone: on the user's model, data, precision and device.

Three measurements: the error of g against eps, what one step does to the loss on average, and short stretches of the
real federated training at several rates. The formulas are in `zo.calibration`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedmezo.atomic import replacing
from fedmezo.config import Config
from fedmezo.config.schema import AUTO
from fedmezo.data.shard import Indices, Shard
from fedmezo.engines.simulation import Simulation
from fedmezo.errors import ConfigError, TrainingError
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.rates import FROZEN, SCALE_FREE
from fedmezo.federation.round import ServerState, close_round_, initial_state, plan_round
from fedmezo.models.language_model import LanguageModel
from fedmezo.records import Batch
from fedmezo.results.console import work_progress
from fedmezo.results.plots import png
from fedmezo.results.plots_theory import draw_calibration
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.directory import new_run_directory, write_numbers, write_text
from fedmezo.runs.evaluate import evaluate
from fedmezo.zo.calibration import (
    Burst,
    GradientError,
    StepMoments,
    best_eps,
    choose_rate,
    largest_rate,
    search_rate,
    split_errors,
    step_moments,
)
from fedmezo.zo.estimators.family import TWO_POINT
from fedmezo.zo.noise import MAX_ROUNDS, MAX_SEED, SERVER, Purpose, Stream, permutation
from fedmezo.zo.replay import perturb
from fedmezo.zo.signal import LARGEST_NOISE, STEP_RATIO, Signal, measure_signal

EPS_TO_COUNT_WITH = 1e-3
"""Of a configuration whose eps is to be measured: losses and scalars are counted with it, none is taken."""

FORWARD_PASSES = 12_000
"""Budget by default: one or two minutes of a model whose forward pass takes 5 to 10 ms."""

SECONDS = 180.0
"""What a model of slower forward passes may take by default; then no further rate is tried once one has been found."""

FULL_BURSTS = 4
"""Bursts that go to their end in a typical search; those that diverge cost little."""


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

REACH = 1.5
"""How many times the rate the strategies reach, with an lr_width of half the rate."""
BATCHED = 4
"""How many times cheaper an example is in a large batch."""

PICTURE_FILE, NUMBERS_FILE, CONFIG_FILE = "calibration.png", "calibration.json", "calibrated.yaml"


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting: what it is, what it should be, and why."""

    key: str
    present: float | str
    value: float
    reason: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured and what follows."""

    errors: tuple[GradientError, ...]
    moments: StepMoments
    directions: int  # that a round's averaged step takes in: one for each client and query
    bursts: tuple[Burst, ...]
    rounds: int  # of a burst that went to its end
    rounds_of_run: int
    advice: tuple[Advice, ...]  # empty where no rate lowered the loss


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A model and its clients, set up as for a run, with draws that the run itself will not make."""

    config: Config  # the user's, with another seed and frozen rates
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


def calibrate(
    config: Config, notices: Sequence[str] = (), *, write: Path | None = None, budget: int | None = None
) -> int:
    """Measure, show, and recommend; returns the exit code.

    Args:
        config: of the run to come.
        notices: about the configuration.
        write: also write the configuration with the recommended values here.
        budget: forward passes to spend, more or less; None is `FORWARD_PASSES`, or what fits into `SECONDS`.

    Raises:
        FedMeZOError: whatever a user can act on.
    """
    _check(config, write)
    found = _calibrated(config, notices, Console(), budget)
    if write:
        write_text(write, found.to_yaml())
    return 0


def settle(config: Config) -> Config:
    """Measure what a configuration leaves to measurement (`auto`), and nothing else; returns it with the values found.

    Raises:
        FedMeZOError: whatever a user can act on.
    """
    console = Console()
    console.print("train.optimizer.lr or train.zo.eps is auto: calibrating first", highlight=False)
    train = config.train
    fixed = None if train.zo.eps == AUTO else train.zo.scale
    measured = _calibrated(config, (), console, None, fixed).train
    if train.optimizer.lr != AUTO:
        return adjusted(config, eps=measured.zo.scale, rate=train.optimizer.rate)
    settled = adjusted(config, eps=fixed or measured.zo.scale, rate=measured.optimizer.rate)
    if "lr_width" in train.model_fields_set:
        return settled
    return settled.model_copy(update={"train": settled.train.model_copy(update={"lr_width": measured.lr_width})})


def _calibrated(
    config: Config, notices: Sequence[str], console: Console, budget: int | None, eps: float | None = None
) -> Config:
    """Measure, show and keep what was found; returns the configuration with it. `eps` is trained with, if given."""
    bench = replace(set_up(config, console), eps=eps)
    for notice in (*notices, *bench.tuned.notices):
        console.print(f"notice: {notice}", markup=False, soft_wrap=True)
    deadline = math.inf
    if budget is None:
        budget, deadline = affordable(bench), time.monotonic() + SECONDS
    bench = replace(bench, effort=FULL if budget >= ENOUGH else BRIEF)
    result = measure(bench, console, budget, deadline)
    folder = new_run_directory(Path(config.outdir), "calibration")
    with replacing(folder / PICTURE_FILE) as file:
        file.write(_picture(config, result))
    write_numbers(folder / NUMBERS_FILE, {"version": 1, **asdict(result)})
    show(console, result)
    if not result.advice:
        raise TrainingError(
            f"no rate from {result.bursts[-1].rate:.2g} up lowered the loss within {result.rounds} rounds: "
            f"give more forward passes (--forward-passes, now {budget}). The picture is in {folder}"
        )
    found = advised(config, result.advice)
    write_text(folder / CONFIG_FILE, found.to_yaml())
    console.print(f"Picture, numbers and the configuration with these values are in {folder}", soft_wrap=True)
    return found


def affordable(bench: Bench) -> int:
    """Forward passes that fit into `SECONDS`, by the time of some; no more than `FORWARD_PASSES`."""
    batches = [batches[0] for batches in _first_batches(bench)]
    bench.model.losses([bench.theta], batches[:1])  # the first is slower than any other
    started = time.monotonic()
    for batch in batches:
        float(bench.model.losses([bench.theta], [batch]))
    seconds = (time.monotonic() - started) / len(batches)
    return min(FORWARD_PASSES, int(SECONDS / max(seconds, 1e-9)))


def set_up(config: Config, console: Console) -> Bench:
    """Load the model and the data of a run."""
    tuned = assemble.load_model(config)
    holdings = assemble.load_holdings(config, tuned.tokenizer, console)
    restored = config.federate.restore_from
    theta = tuned.model.read(Path(restored)) if restored else tuned.theta
    strategy = SCALE_FREE if config.train.train_strategy == SCALE_FREE else FROZEN
    zo = (
        config.train.zo
        if config.train.zo.eps != AUTO
        else config.train.zo.model_copy(update={"eps": EPS_TO_COUNT_WITH})
    )
    changed = {"train_strategy": strategy, "trust": False, "zo": zo}  # without trust a rate shows its limits
    train = config.train.model_copy(update=changed)
    other = config.model_copy(update={"seed": config.seed ^ MAX_SEED, "train": train})
    return Bench(
        other, tuned, holdings, assemble.make_shards(other, holdings, tuned.model.device), theta.to(tuned.model.device)
    )


def measure(bench: Bench, console: Console, budget: int, deadline: float = math.inf) -> Calibration:
    """Make the three measurements.

    Args:
        bench: the model and its clients.
        console: where progress is shown.
        budget: forward passes to spend, more or less.
        deadline: of the monotonic clock; no further rate is tried behind it once one lowered the loss.
    """
    config = bench.config
    with work_progress(console, "error of g against eps") as progress:
        errors = measure_errors(bench, progress)
    eps = bench.eps or best_eps(errors).eps
    with work_progress(console, "average effect of a step") as progress:
        moments = measure_moments(bench, eps, progress)
    rounds = burst_rounds(bench, budget - bench.effort.forward_passes)
    console.print(f"training at several rates, up to {rounds} rounds each", highlight=False)
    bursts = []
    start = _first_rate(errors, _size_of_scalars(config, moments))
    for burst in search_rate(lambda rate: run_burst(bench, eps, rate, rounds), start):
        bursts.append(burst)
        console.print(f"  rate {burst.rate:g}: {outcome(burst)}", highlight=False)
        if time.monotonic() > deadline and any(burst.lowers for burst in bursts):
            break
    averaged = config.federate.cohort_size * assemble.bare_estimator(config).directions
    total = config.federate.total_round_num
    return Calibration(
        errors=tuple(errors),
        moments=moments,
        directions=averaged,
        bursts=tuple(sorted(bursts, key=lambda burst: burst.rate)),
        rounds=rounds,
        rounds_of_run=total,
        advice=tuple(advise(config, errors, bursts, rounds)),
    )


def measure_errors(bench: Bench, progress: Callable[[int, int | None], None]) -> list[GradientError]:
    """The error of g at eps that double from 1e-4 on, until a loss is no longer finite."""
    batches = [batch for pair in zip(*_first_batches(bench), strict=False) for batch in pair]
    seed, noise = bench.config.seed, assemble.make_noise(bench.config, bench.tuned.model)
    signals: list[Signal] = []
    effort = bench.effort
    measured = partial(measure_signal, bench.model, bench.theta, batches, seed=seed, directions=effort.directions)
    for index in range(effort.eps_tried):
        try:
            signals.append(measured(noise=noise, eps=effort.smallest_eps * STEP_RATIO**index))
        except TrainingError:
            if len(signals) < 2:
                raise
            break
        progress(index + 1, effort.eps_tried)
    return split_errors(signals)


def measure_moments(bench: Bench, eps: float, progress: Callable[[int, int | None], None]) -> StepMoments:
    """What one step does to the loss on average, from single losses of some examples along some directions."""
    rows = np.concatenate(bench.examples(bench.effort.moment_examples))
    batch = bench.holdings.dataset.batch(rows, bench.model.device)
    noise = assemble.make_noise(bench.config, bench.tuned.model)
    plus, minus = [], []
    theta = bench.theta.float()
    for index in range(bench.effort.moment_directions):
        stream = Stream(bench.config.seed, Purpose.DIRECTION, MAX_ROUNDS - 1, SERVER, index)
        [z] = noise.directions([stream], 0, len(theta), theta.device)
        plus.append(_losses(bench, perturb(theta, z, eps), batch))
        minus.append(_losses(bench, perturb(theta, z, -eps), batch))
        progress(index + 1, bench.effort.moment_directions)
    base = _losses(bench, bench.theta, batch)
    return step_moments(torch.stack(plus), torch.stack(minus), base, eps, bench.config.dataloader.batch_size)


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
    for at, loss, state in _rounds(bench, eps, rate, rounds):
        if at % max(1, rounds // bench.effort.evaluations) == 0 or at == rounds or not loss <= limit:
            points.append((at, bench.loss(state.theta)))
            if not points[-1][1] <= limit:
                return Burst(rate, tuple(points), diverged=at)
    done = points[-1][0]
    return Burst(rate, tuple(points), diverged=None if done == rounds else done + 1)


def _rounds(bench: Bench, eps: float, rate: float, rounds: int) -> Iterator[tuple[int, float, ServerState]]:
    """Rounds done, mean train loss of the last and the state after it; ends early where no report is usable."""
    config = adjusted(bench.config, eps=eps, rate=rate)
    federation = assemble.make_federation(config, bench.tuned.model)
    downlink = Downlink(federation.rules.protocol, federation.rules.num_parameters, derivable=True)
    engine = Simulation(assemble.make_work(config, bench.tuned), bench.shards, downlink)
    state = initial_state(bench.theta.to("cpu", copy=True))
    for done in range(1, rounds + 1):
        plan = plan_round(federation, state)
        result = engine.run_round(plan, state)
        try:
            state, record = close_round_(federation, state, plan, result.reports)
        except TrainingError:
            return
        engine.close_round(plan, record)
        yield done, sum(report.train_loss for report in result.reports) / len(result.reports), state


def advise(config: Config, errors: Sequence[GradientError], bursts: Sequence[Burst], rounds: int) -> Iterator[Advice]:
    """What to set, and why; nothing where no rate lowered the loss."""
    total = config.federate.total_round_num
    longer = math.sqrt(total / rounds)  # noise carries theta as far in so many more rounds at a rate so much smaller
    chosen, largest = choose_rate(bursts, REACH * longer), largest_rate(bursts)
    if chosen is None or largest is None:
        return
    is_best = chosen < largest / (REACH * longer)
    chosen = float(f"{chosen:.2g}")
    train, best = config.train, best_eps(errors)
    sound = [error.eps for error in errors if error.relative <= LARGEST_NOISE]
    span = f"; from {min(sound):.2g} to {max(sound):.2g} it stays below {LARGEST_NOISE:.0%}" if sound else ""
    yield Advice("train.zo.eps", train.zo.eps, best.eps, f"error of g smallest: {best.relative:.1%} of its size{span}")
    why = f"largest that held for {rounds} rounds ({largest:g}), over {REACH:g} for lr_width"
    if total > rounds:
        why += f", over {longer:.2g} = sqrt({total}/{rounds}) for the run's length"
    if is_best:
        why = f"lowest loss after {rounds} rounds"
    yield Advice("train.optimizer.lr", train.optimizer.lr, chosen, why)
    yield Advice("train.lr_width", train.lr_width, chosen / 2, "half the rate: the strategies then reach 1.5 times it")
    if train.zo.estimator == TWO_POINT:
        number = config.federate.cohort_size * train.local_update_steps
        why = f"a round averages {number} directions already; at equal forward passes more of them a step gain nothing"
        yield Advice("train.zo.queries", train.zo.queries, 1, why)


def advised(config: Config, advice: Sequence[Advice]) -> Config:
    """The configuration with the recommended values."""
    value = {item.key: item.value for item in advice}
    changed = adjusted(config, eps=value["train.zo.eps"], rate=value["train.optimizer.lr"])
    queries = int(value.get("train.zo.queries", config.train.zo.queries))
    zo = changed.train.zo.model_copy(update={"queries": queries})
    train = changed.train.model_copy(update={"zo": zo, "lr_width": value["train.lr_width"]})
    return changed.model_copy(update={"train": train})


def adjusted(config: Config, *, eps: float, rate: float) -> Config:
    """The configuration with another eps and rate."""
    train = config.train
    zo = train.zo.model_copy(update={"eps": eps})
    optimizer = train.optimizer.model_copy(update={"lr": rate})
    return config.model_copy(update={"train": train.model_copy(update={"zo": zo, "optimizer": optimizer})})


def outcome(burst: Burst) -> str:
    """A burst in words."""
    if burst.diverged is not None:
        return f"diverged in round {burst.diverged}"
    return f"loss {burst.before:.4f} -> {burst.after:.4f}"


def show(console: Console, result: Calibration) -> None:
    """Print the error of g against eps, the effect of a step, and the advice."""
    table = _table("eps", "signal", "rounding noise", "curvature bias", "error / signal")
    for error in result.errors:
        ratio = f"{error.relative:.1%}" if math.isfinite(error.relative) else "no signal"
        table.add_row(*(f"{x:.2g}" for x in (error.eps, error.signal, error.noise, error.bias)), ratio)
    console.print("Size of g and of its error against eps (root mean square over directions)", style="bold")
    console.print(table)
    console.print(step_in_words(result.moments, result.directions), highlight=False, soft_wrap=True)
    if result.advice:
        table = _table("setting", "now", "recommended", "because")
        for advice in result.advice:
            present = advice.present if isinstance(advice.present, str) else f"{advice.present:g}"
            table.add_row(advice.key, present, f"[bold]{advice.value:g}[/bold]", advice.reason)
        console.print("Recommendation", style="bold")
        console.print(table)


def step_in_words(moments: StepMoments, averaged: int) -> str:
    """What a single step does on average."""
    best, batch = moments.best_rate(averaged), moments.critical_batch
    noise = f"the gradient's square is {moments.slope:.2g} +/- {moments.slope_error:.1g}, g^2 is {moments.power:.2g}"
    if batch is not None:
        noise += f"; up to batches of {max(1.0, batch):.0f}, twice the batch takes half the steps"
    if best is None:
        return f"One step, averaged over {averaged}: {noise}; no curvature along random directions limits it yet."
    return f"One step, averaged over {averaged}: {noise}; it lowers the loss most at {best:.2g}, up to {2 * best:.2g}."


def _picture(config: Config, result: Calibration) -> bytes:
    rate = next((item.value for item in result.advice if item.key == "train.optimizer.lr"), None)
    eps = best_eps(result.errors).eps
    present = eps if config.train.zo.eps == AUTO else config.train.zo.scale
    figure = draw_calibration(result.errors, result.bursts, eps=eps, present_eps=present, rate=rate)
    return png(figure)


def _check(config: Config, write: Path | None) -> None:
    if config.trainer.type != assemble.MEZO:
        raise ConfigError(f"trainer.type is {config.trainer.type}: only the zeroth-order {assemble.MEZO} has an eps")
    if write is not None and write.exists():
        raise ConfigError(f"--write {write}: the file exists; choose a new name")


def _first_batches(bench: Bench) -> list[Sequence[Batch]]:
    return [shard.batches(MAX_ROUNDS - 1) for shard in bench.shards.values() if shard.num_examples]


def _first_rate(errors: Sequence[GradientError], size: float) -> float:
    """The rate at which one local step goes as far as the largest eps up to which the loss is straight."""
    straight = [error.eps for error in errors if error.bias <= LARGEST_NOISE * error.signal]
    rate = max(straight, default=errors[0].eps) / size
    return float(f"{rate:.0e}")  # halves of a short number are short


def _size_of_scalars(config: Config, moments: StepMoments) -> float:
    """The root mean square of the scalars that a rate is applied to."""
    zo = config.train.zo
    if zo.estimator != TWO_POINT or config.train.train_strategy == SCALE_FREE:
        return 1.0
    return min(math.sqrt(moments.power), zo.clip or math.inf)


def _losses(bench: Bench, theta: Tensor, batch: Batch) -> Tensor:
    return torch.tensor(bench.model.example_losses(theta, batch), dtype=torch.float64)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("setting", "because") else "right")
    return table
