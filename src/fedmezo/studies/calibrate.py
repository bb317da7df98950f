"""Choosing eps, the rate and more by measurement, with forward passes alone: on the user's model, data and device.

Three measurements: the error of g against eps, what one step does to the loss on average, and short stretches of the
real federated training at several rates, with the configuration's estimator and adapter and with those that do best on
the bench. The formulas are in `zo.calibration`, what follows from them in `studies.advice`.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
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
from fedmezo.errors import ConfigError, TrainingError
from fedmezo.federation.rates import SCALE_FREE
from fedmezo.records import Batch
from fedmezo.results.console import work_progress
from fedmezo.results.plots import png
from fedmezo.results.plots_theory import draw_calibration
from fedmezo.runs import assemble
from fedmezo.runs.directory import new_run_directory, write_numbers, write_text
from fedmezo.studies.advice import Advice, Trial, advise, rank_of, replaced, rival_of, rival_settings
from fedmezo.studies.bursts import (
    BRIEF,
    ENOUGH,
    FULL,
    Bench,
    affordable,
    burst_rounds,
    first_batches,
    run_burst,
    set_up,
)
from fedmezo.zo.calibration import (
    FACTOR,
    Burst,
    GradientError,
    StepMoments,
    best_eps,
    search_rate,
    split_errors,
    step_moments,
)
from fedmezo.zo.estimators.family import TWO_POINT
from fedmezo.zo.noise import MAX_ROUNDS, SERVER, Purpose, Stream
from fedmezo.zo.replay import perturb
from fedmezo.zo.signal import LARGEST_NOISE, STEP_RATIO, Signal, measure_signal

LATEST = 120.0, 200.0
"""Seconds after which no further rate is tried of the configuration's setting, once one lowered the loss; of its rival.

So a model of slow forward passes is calibrated within five minutes.
"""

PICTURE_FILE, NUMBERS_FILE, CONFIG_FILE = "calibration.png", "calibration.json", "calibrated.yaml"


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
    rival: Trial | None = None  # of `rival_of` the configuration, where it was tried

    @property
    def better(self) -> Trial:
        """The trial that came lower."""
        own = Trial(self.bursts, self.rounds)
        return own if self.rival is None or own.lowest <= self.rival.lowest else self.rival


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
    found = _calibrated(config, notices, Console(), budget, rival=rival_of(config))
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
    measured = _calibrated(config, (), console, None, eps=fixed, rival=None).train
    if train.optimizer.lr != AUTO:
        return replaced(config, {"train.zo.eps": measured.zo.scale})
    found = {"train.zo.eps": fixed or measured.zo.scale, "train.optimizer.lr": measured.optimizer.rate}
    if "lr_width" not in train.model_fields_set:
        found["train.lr_width"] = measured.lr_width
    return replaced(config, found)


def _calibrated(
    config: Config,
    notices: Sequence[str],
    console: Console,
    budget: int | None,
    *,
    eps: float | None = None,
    rival: Config | None,
) -> Config:
    """Measure, show and keep what was found; returns the configuration with it.

    Args:
        config: of the run to come.
        notices: about it.
        console: where everything is shown.
        budget: see `calibrate`.
        eps: to train with; None is the best that is found.
        rival: another setting to try beside the configuration's.
    """
    bench = replace(set_up(config, console), eps=eps)
    for notice in (*notices, *bench.tuned.notices):
        console.print(f"notice: {notice}", markup=False, soft_wrap=True)
    latest = math.inf, math.inf
    if budget is None:
        budget, now = affordable(bench), time.monotonic()
        latest = now + LATEST[0], now + LATEST[1]
    bench = replace(bench, effort=FULL if budget >= ENOUGH else BRIEF)
    result = measure(bench, console, budget, latest[0])
    if rival is not None and time.monotonic() < latest[1]:
        own, holdings, effort = bench.config, bench.holdings, bench.effort
        del bench
        gc.collect()  # there may be no room for two models
        other = replace(set_up(rival, console, holdings), effort=effort, eps=eps)
        result = with_rival(result, own, other, console, latest[1])
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
    found = replaced(config, {advice.key: advice.value for advice in result.advice})
    write_text(folder / CONFIG_FILE, found.to_yaml())
    console.print(f"Picture, numbers and the configuration with these values are in {folder}", soft_wrap=True)
    return found


def measure(bench: Bench, console: Console, budget: int, latest: float = math.inf) -> Calibration:
    """Make the three measurements.

    Args:
        bench: the model and its clients.
        console: where progress is shown.
        budget: forward passes to spend, more or less.
        latest: by the monotonic clock, when to try no further rate once one lowered the loss.
    """
    config = bench.config
    with work_progress(console, "error of g against eps") as progress:
        errors = measure_errors(bench, progress)
    eps = bench.eps or best_eps(errors).eps
    with work_progress(console, "average effect of a step") as progress:
        moments = measure_moments(bench, eps, progress)
    rounds = burst_rounds(bench, budget - bench.effort.forward_passes)
    console.print(f"training at several rates, up to {rounds} rounds each", highlight=False)
    own = _search(bench, console, eps, _first_rate(errors, _size_of_scalars(config, moments)), rounds, latest)
    return Calibration(
        errors=tuple(errors),
        moments=moments,
        directions=config.federate.cohort_size * assemble.bare_estimator(config).directions,
        bursts=own.bursts,
        rounds=rounds,
        rounds_of_run=config.federate.total_round_num,
        advice=tuple(advise(config, errors, moments, own, most_rows=_fewest_examples(bench))),
    )


def with_rival(
    result: Calibration, config: Config, bench: Bench, console: Console, latest: float = math.inf
) -> Calibration:
    """The same with what another setting comes to in as many forward passes, and the advice that follows.

    Args:
        result: of the configuration's own setting.
        config: of the bench that it is from.
        bench: of the other setting.
        console: where progress is shown.
        latest: by the monotonic clock, when to try no further rate.
    """
    changed = ", ".join(f"{key} {value}" for key, present, value in rival_settings(config) if present != value)
    console.print(f"as many forward passes with {changed}", highlight=False, soft_wrap=True)
    passes = [assemble.bare_estimator(some).passes for some in (config, bench.config)]
    as_many = max(1, round(result.rounds * passes[0] / passes[1]))
    ranks = [rank_of(some) or 1 for some in (config, bench.config)]
    # the loss is straight over a length, and a direction is as long as the root of its dimension
    start = _first_rate(result.errors, math.sqrt(ranks[1] / ranks[0])) / FACTOR
    eps = bench.eps or best_eps(result.errors).eps
    rival = _search(bench, console, eps, start, as_many, latest, gently=True)
    own = Trial(result.bursts, result.rounds)
    advice = advise(config, result.errors, result.moments, own, rival, _fewest_examples(bench))
    return replace(result, rival=rival, advice=tuple(advice))


def _search(
    bench: Bench, console: Console, eps: float, start: float, rounds: int, latest: float, *, gently: bool = False
) -> Trial:
    """Train at rates from twice `start` on; `gently` stops in time even where none has lowered the loss."""
    bursts: list[Burst] = []
    for burst in search_rate(lambda rate: run_burst(bench, eps, rate, rounds), start):
        bursts.append(burst)
        console.print(f"  rate {burst.rate:g}: {outcome(burst)}", highlight=False)
        if time.monotonic() > latest and (gently or any(burst.lowers for burst in bursts)):
            break
    return Trial(tuple(sorted(bursts, key=lambda burst: burst.rate)), rounds)


def _fewest_examples(bench: Bench) -> int:
    return min(len(shard) for shard in bench.holdings.partition.train if len(shard))


def measure_errors(bench: Bench, progress: Callable[[int, int | None], None]) -> list[GradientError]:
    """The error of g at eps that double from 1e-4 on, until a loss is no longer finite."""
    batches = [batch for pair in zip(*first_batches(bench), strict=False) for batch in pair]
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
            table.add_row(advice.key, _shown(advice.present), f"[bold]{_shown(advice.value)}[/bold]", advice.reason)
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


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _picture(config: Config, result: Calibration) -> bytes:
    rate = next((float(item.value) for item in result.advice if item.key == "train.optimizer.lr"), None)
    eps = best_eps(result.errors).eps
    present = eps if config.train.zo.eps == AUTO else config.train.zo.scale
    figure = draw_calibration(result.errors, result.better.bursts, eps=eps, present_eps=present, rate=rate)
    return png(figure)


def _check(config: Config, write: Path | None) -> None:
    if config.trainer.type != assemble.MEZO:
        raise ConfigError(f"trainer.type is {config.trainer.type}: only the zeroth-order {assemble.MEZO} has an eps")
    if write is not None and write.exists():
        raise ConfigError(f"--write {write}: the file exists; choose a new name")


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
