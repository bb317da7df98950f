"""The first-order clients' optimiser: any of torch.optim by name, with any of its schedulers or one of two warm-ups."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from fedmezo.errors import ConfigError

OptionValue = bool | int | float | str | None | Sequence[float]


def _linear_warmup(step: int, warmup_steps: int, num_steps: int) -> float:
    """Up to 1 over the warm-up, then down to 0 at the last step."""
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (num_steps - step) / max(1, num_steps - warmup_steps))


def _noam_warmup(step: int, warmup_steps: int, num_steps: int) -> float:
    """Up linearly, then down with the inverse square root (Vaswani et al. 2017, section 5.3, but for the size)."""
    count = max(1, step)
    return min(1 / math.sqrt(count), count / math.sqrt(max(1, warmup_steps)) ** 3)


WARMUPS = {"warmup_step": _linear_warmup, "warmup_noam": _noam_warmup}
"""FederatedScope's own schedulers: the factor of the rate from (step, warm-up steps, steps of the round)."""


@dataclass(frozen=True, slots=True)
class OptimizerFactory:
    """Makes one round's optimiser and scheduler.

    Args:
        name: a class of torch.optim, e.g. `SGD` or `AdamW`.
        options: its arguments besides the parameters and `lr`.
        scheduler: a class of torch.optim.lr_scheduler, one of `WARMUPS`, or an empty string for none.
        scheduler_options: the class's arguments besides the optimiser.
        warmup_steps: steps of the warm-up.
        warmup_ratio: the warm-up as a share of the round's steps, where `warmup_steps` is 0.

    Raises:
        ConfigError: an unknown class or argument, with those that are known.
    """

    name: str = "SGD"
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    scheduler: str = ""
    scheduler_options: Mapping[str, OptionValue] = field(default_factory=dict)
    warmup_steps: int = 0
    warmup_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check(torch.optim, self.name, self.options, "train.optimizer", {"params", "lr"})
        if self.scheduler and self.scheduler not in WARMUPS:
            _check(torch.optim.lr_scheduler, self.scheduler, self.scheduler_options, "train.scheduler", {"optimizer"})

    def build(
        self, parameters: Sequence[Tensor], rate: float, num_steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
        """A fresh optimiser at `rate`, and its scheduler, to be stepped with it `num_steps` times.

        Raises:
            ConfigError: the class refuses a value.
        """
        try:
            optimizer = getattr(torch.optim, self.name)(parameters, lr=rate, **self.options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"train.optimizer: torch.optim.{self.name} refuses {dict(self.options)}: {error}"
            ) from error
        if not self.scheduler:
            return optimizer, None
        if self.scheduler in WARMUPS:
            warmup_steps = self.warmup_steps or round(self.warmup_ratio * num_steps)
            factor = partial(WARMUPS[self.scheduler], warmup_steps=warmup_steps, num_steps=num_steps)
            return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        try:
            return optimizer, getattr(torch.optim.lr_scheduler, self.scheduler)(optimizer, **self.scheduler_options)
        except (TypeError, ValueError) as error:
            given = dict(self.scheduler_options)
            message = f"train.scheduler: torch.optim.lr_scheduler.{self.scheduler} refuses {given}: {error}"
            raise ConfigError(message) from error


def _check(module: ModuleType, name: str, options: Mapping[str, OptionValue], key: str, given: set[str]) -> None:
    """That `module` has the class `name` and that it takes the options."""
    kind = getattr(module, name, None)
    if not inspect.isclass(kind):
        raise ConfigError(f"{key}.type: {name!r} is no class of {module.__name__}")
    allowed = set(inspect.signature(kind).parameters) - given
    if unknown := sorted(set(options) - allowed):
        raise ConfigError(f"{key}: {name} takes no {', '.join(unknown)}; it takes {', '.join(sorted(allowed))}")
