"""What a program hands to a run besides a configuration: parts of its own, and functions that hear of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fedmezo.config import Config
from fedmezo.data.splitters import Splitter
from fedmezo.errors import ConfigError
from fedmezo.federation.rates import Offsets
from fedmezo.federation.round import Weigh
from fedmezo.results.metrics import Metric
from fedmezo.zo.estimators.protocol import Estimator, Settings

Measure: TypeAlias = Callable[[PreTrainedModel | PeftModel, PreTrainedTokenizerFast], float]
"""Measures the tuned model in evaluation mode; nothing of it may be changed."""

MakeEstimator: TypeAlias = Callable[[Settings], Estimator]
"""From the settings of `train.zo` to an estimator, such as the class of one."""


@dataclass(frozen=True, slots=True)
class RoundEvent:
    """A round that was closed, or the model before the first one.

    Args:
        round: rounds so far; 0 is the model before training.
        metrics: all that was measured of it, as in metrics.jsonl.
    """

    round: int
    metrics: tuple[Metric, ...]

    def value(self, name: str, client: int | None = None) -> float | None:
        """A measured value over all clients, or of one; None where it was not measured in this round."""
        found = (m.value for m in self.metrics if m.name == name and m.client == client and m.group is None)
        return next(found, None)


Listener: TypeAlias = Callable[[RoundEvent], None]


@dataclass(frozen=True, slots=True)
class Own:
    """Parts of a program's own; what is None or empty is what the configuration says.

    Args:
        splitter: who holds which share of each category; see `data.splitters.Splitter`.
        strategy: the offsets that the rates follow from, as those in `federation.rates`.
        estimator: makes the clients' estimator from eps, queries, noise and clip; `train.zo.estimator` still says
            where its scalars lead, so that the journal replays without it.
        weigh: the weight of each usable report in the average.
        metrics: measured at each evaluation, by name.
        on_round: called after each round is committed to the journal.
        on_evaluation: called after each evaluation, that before the first round included.
    """

    splitter: Splitter | None = None
    strategy: Offsets | None = None
    estimator: MakeEstimator | None = None
    weigh: Weigh | None = None
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    on_round: Sequence[Listener] = ()
    on_evaluation: Sequence[Listener] = ()

    def require_fitting(self, config: Config) -> None:
        """See that the run can have these parts.

        Raises:
            ConfigError: rates or weights of single clients, where only sums over groups of them are known.
        """
        groups = config.federate.direction_groups
        for name, part in (("strategy", self.strategy), ("weigh", self.weigh)):
            if groups and part is not None:
                raise ConfigError(
                    f"{name}: a function of one's own for single clients needs federate.direction_groups: 0, not "
                    f"{groups}, with which only sums over clients are known"
                )


NOTHING = Own()
