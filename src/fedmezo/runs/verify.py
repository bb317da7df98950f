"""The check at a run's end: its saved adapter, loaded as its users will load it, is the function that was trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmezo.config import Config
from fedmezo.errors import CheckError
from fedmezo.models.label_loss import losses_agree, probe_of
from fedmezo.records import Batch
from fedmezo.runs.assemble import Holdings, TunedModel, parts_in_use

EXAMPLES_CHECKED = 4
"""It is the same function or it is not."""


class Checked(NamedTuple):
    """What the check found on how many examples."""

    loss: float
    num_examples: int


def check_saved(folder: Path, config: Config, tuned: TunedModel, holdings: Holdings, theta: Tensor) -> Checked:
    """See that what a folder holds can be loaded, and that it has the loss of theta (d,) then.

    The loss is compared on the shortest examples of the run. One that is not finite is compared with nothing.

    Raises:
        CheckError: it has another one.
        ModelError: it cannot be loaded.
    """
    batch = _few_examples(config, tuned, holdings)
    expected = float(tuned.model.losses([theta.to(tuned.model.device)], [batch]))
    found = tuned.model.saved_loss(folder, batch)
    if math.isfinite(expected) and not losses_agree(torch.tensor(found), torch.tensor(expected), tuned.dtype):
        raise CheckError(
            f"{folder}: the {tuned.model.folder} was saved, but {tuned.model.loader} loads it with a loss of "
            f"{found:.6f} on {batch.num_examples} examples where the run's is {expected:.6f}"
        )
    return Checked(found, batch.num_examples)


def _few_examples(config: Config, tuned: TunedModel, holdings: Holdings) -> Batch:
    """Held-out examples where there are any, else training ones, else tokens from all over the vocabulary."""
    parts = parts_in_use(config, holdings.partition)
    for names in (("test", "val"), ("train",)):
        indices = np.concatenate([shard for name in names for shard in parts[name]])
        if len(indices):
            order = np.argsort(holdings.dataset.lengths[indices], kind="stable")
            return holdings.dataset.batch(indices[order[:EXAMPLES_CHECKED]], tuned.model.device)
    return probe_of(tuned.model.base)
