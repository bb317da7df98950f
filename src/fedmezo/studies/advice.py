"""What calibrate recommends, and why: pure functions of a configuration and of what was measured with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmezo.config import Config
from fedmezo.config.checks import conflicts
from fedmezo.config.schema import MAX_QUERIES
from fedmezo.zo.calibration import Burst, GradientError, StepMoments, best_eps, choose_rate, largest_rate, useful_batch
from fedmezo.zo.estimators.family import PER_EXAMPLE, TWO_POINT
from fedmezo.zo.signal import LARGEST_NOISE

REACH = 1.5
"""How many times the rate the strategies reach, with an lr_width of half the rate."""

MOST_ROWS = 64
"""Of a batch that is recommended."""

PEFT_DEFAULT = 8
"""PEFT's rank and alpha of LoRA."""

_LORA = "llm.adapter.args.0."
_SCALED_OTHERWISE = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
"""Keys of PEFT with which another rank needs more than an alpha in proportion."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting: what it is, what it should be, and why."""

    key: str
    present: float | str
    value: float | str
    reason: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What a setting came to within a number of forward passes.

    Args:
        bursts: at several rates, in their order.
        rounds: of a burst that went to its end.
    """

    bursts: tuple[Burst, ...]
    rounds: int

    @property
    def lowest(self) -> float:
        """The lowest loss of any rate; infinite if all diverged."""
        return min((burst.after for burst in self.bursts), default=math.inf)


def rival_of(config: Config) -> Config | None:
    """The setting that takes the fewest forward passes on the bench of convergence, with the rest of a configuration.

    It is per-example steps, one direction for each row, over LoRA of rank 1 whose alpha is in proportion. None where
    the configuration is that already, or cannot be.
    """
    changes = {key: value for key, present, value in rival_settings(config) if present != value}
    rival = replaced(config, changes)
    return rival if changes and not any(conflicts(rival)) else None


def rival_settings(config: Config) -> Iterator[tuple[str, Any, float | str]]:
    """Key, present value and that of the rival."""
    zo, adapter = config.train.zo, config.llm.adapter
    yield "train.zo.estimator", zo.estimator, PER_EXAMPLE
    yield "train.zo.queries", zo.queries, 1
    yield "train.zo.clip", zo.clip, 0.0
    rank = rank_of(config)
    if rank is not None and not config.federate.restore_from:
        alpha = adapter.options.get("lora_alpha", PEFT_DEFAULT)
        share = alpha / rank
        yield f"{_LORA}r", rank, 1
        yield f"{_LORA}lora_alpha", alpha, int(share) if share == int(share) else share


def rank_of(config: Config) -> int | None:
    """The rank of an adapter that could have another, with an alpha in proportion; None of any other."""
    adapter = config.llm.adapter
    if not adapter.use or adapter.method != "lora" or any(adapter.options.get(key) for key in _SCALED_OTHERWISE):
        return None
    return int(adapter.options.get("r", PEFT_DEFAULT))


def advise(
    config: Config,
    errors: Sequence[GradientError],
    moments: StepMoments,
    own: Trial,
    rival: Trial | None = None,
    most_rows: int = MOST_ROWS,
) -> Iterator[Advice]:
    """What to set, and why; nothing where no rate lowered the loss.

    Args:
        config: the configuration.
        errors: of g against eps.
        moments: of a step.
        own: of the configuration.
        rival: of `rival_of` it, within as many forward passes.
        most_rows: of a batch, as many as the client with the fewest examples has.
    """
    trial = rival if rival is not None and rival.lowest < own.lowest else own
    chosen = config if trial is own else rival_of(config) or config
    rate = _rate(config, trial)
    if rate is None:
        return
    if trial is not own:
        why = f"loss {trial.lowest:.4f} where the present setting comes to {own.lowest:.4f} in as many forward passes"
        for key, present, value in rival_settings(config):
            if present != value:
                yield Advice(key, present, value, why)
                why = "with it"
    yield _eps(config, errors)
    yield rate
    train = config.train
    yield Advice(
        "train.lr_width", train.lr_width, float(rate.value) / 2, "half the rate: strategies reach 1.5 times it"
    )
    yield from _batch(chosen, moments, most_rows)
    if chosen.train.zo.estimator == TWO_POINT:
        number = config.federate.cohort_size * train.local_update_steps
        why = f"a round averages {number} directions already; at equal forward passes more of them a step gain nothing"
        yield Advice("train.zo.queries", train.zo.queries, 1, why)


def _eps(config: Config, errors: Sequence[GradientError]) -> Advice:
    best = best_eps(errors)
    sound = [error.eps for error in errors if error.relative <= LARGEST_NOISE]
    span = f"; from {min(sound):.2g} to {max(sound):.2g} it stays below {LARGEST_NOISE:.0%}" if sound else ""
    why = f"error of g smallest: {best.relative:.1%} of its size{span}"
    return Advice("train.zo.eps", config.train.zo.eps, best.eps, why)


def _rate(config: Config, trial: Trial) -> Advice | None:
    """The rate for the whole run; None where no rate lowered the loss."""
    total = config.federate.total_round_num
    longer = math.sqrt(total / trial.rounds)  # noise carries theta as far in so many more rounds at so small a rate
    chosen, largest = choose_rate(trial.bursts, REACH * longer), largest_rate(trial.bursts)
    if chosen is None or largest is None:
        return None
    why = f"largest that held for {trial.rounds} rounds ({largest:g}), over {REACH:g} for lr_width"
    if total > trial.rounds:
        why += f", over {longer:.2g} = sqrt({total}/{trial.rounds}) for the run's length"
    if chosen < largest / (REACH * longer):
        why = f"lowest loss after {trial.rounds} rounds"
    return Advice("train.optimizer.lr", config.train.optimizer.lr, float(f"{chosen:.2g}"), why)


def _batch(config: Config, moments: StepMoments, most_rows: int) -> Iterator[Advice]:
    """A batch at which a given number of forward passes goes furthest; the rate holds, since it is less noisy."""
    critical, present = moments.critical_batch, config.dataloader.batch_size
    if critical is None:
        return
    zo = config.train.zo
    directions = MAX_QUERIES // zo.queries if zo.estimator == PER_EXAMPLE else MOST_ROWS
    rows = useful_batch(critical, present, min(most_rows, MOST_ROWS, directions))
    why = (
        f"one example's noise is {critical:.1f} times the signal: up to that batch, twice the rows take half the steps"
    )
    if rows > present:
        why += f"; in as many forward passes a run goes {moments.gain(present, rows):.2g} times as far"
    yield Advice("dataloader.batch_size", present, rows, why)


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values at some keys, each of the key's type."""
    for key, value in values.items():
        config = _with(config, key.split("."), value)
    return config


def _with(section: Any, names: Sequence[str], value: Any) -> Any:
    if not names:
        return value
    name, *below = names
    if isinstance(section, tuple):
        return tuple(_with(item, below, value) if i == int(name) else item for i, item in enumerate(section))
    return section.model_copy(update={name: _with(getattr(section, name, None), below, value)})
