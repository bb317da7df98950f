"""The task that all methods are given: a model, clients with data, and a loss that tells how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from fedmezo.config import Config, load_config
from fedmezo.data.shard import Shard
from fedmezo.models.language_model import LanguageModel
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.evaluate import evaluate


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a method is after a round."""

    passes: int  # forward passes over a batch so far, all clients together; a pass back counts as two
    sent: int  # bytes so far, up and down, all clients together
    theta: Tensor  # (d,)


Walk = Callable[["Task", float], Iterator[Progress]]
"""A method: from a task and a rate to its rounds, without end."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A model and its clients, set up as for a run."""

    config: Config
    tuned: TunedModel
    holdings: Holdings
    shards: dict[int, Shard]

    @property
    def model(self) -> LanguageModel:
        """What is tuned."""
        return self.tuned.model

    @property
    def start(self) -> Tensor:
        """A copy of theta (d,) before the first round, where the model is."""
        return self.tuned.theta.to(self.model.device, copy=True)

    def loss(self, theta: Tensor) -> float:
        """The validation loss."""
        return evaluate(self.model, theta, self.holdings.dataset, self.holdings.partition.val).value


def set_up(file: Path | None, overrides: Sequence[str]) -> Task:
    """Load the model and the data of a configuration; None is the quickstart."""
    config = load_config(file, [*overrides]).config
    tuned = assemble.load_model(config)
    holdings = assemble.load_holdings(config, tuned.tokenizer, Console(quiet=True))
    torch.set_num_threads(max(1, config.threads))
    assemble.use_lanes(config, tuned, holdings.dataset)
    return Task(config, tuned, holdings, assemble.make_shards(config, holdings, tuned.model.device))
