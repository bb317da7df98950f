"""The loss of one theta on every client's validation or test examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmezo.data.encode import EncodedDataset
from fedmezo.records import Batch, Trainable

Indices = NDArray[np.int64]

TOKENS_PER_BATCH = 4096
"""Padded tokens in an evaluation batch: enough to keep a device busy, little enough for any memory."""


class Evaluable(Trainable, Protocol):
    """A model whose loss can be had example by example."""

    def example_losses(self, theta: Tensor, batch: Batch) -> list[float]:
        """Mean loss over the label tokens of each example; dropout off, no gradient."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Losses on one part, in nats per token: the mean over examples of each example's mean over its label tokens."""

    loss: float  # over all clients, each weighing as many examples as it has
    client_losses: dict[int, float]  # only of clients that have examples in this part


def evaluate(model: Evaluable, theta: Tensor, dataset: EncodedDataset, shards: Sequence[Indices]) -> Evaluation:
    """Evaluate theta (d,) on each client's examples.

    Args:
        model: the model.
        theta: where to evaluate it.
        dataset: all encoded examples.
        shards: for each client, which of them it holds; together at least one.
    """
    indices = np.concatenate(shards)
    losses = np.empty(len(dataset))
    theta = theta.to(model.device)
    for some in batches_by_length(indices, dataset.lengths):
        losses[some] = model.example_losses(theta, dataset.batch(some, model.device))
    by_client = {client: float(losses[shard].mean()) for client, shard in enumerate(shards) if len(shard)}
    return Evaluation(float(losses[indices].mean()), by_client)


def batches_by_length(indices: Indices, lengths: NDArray[np.int64]) -> Iterator[Indices]:
    """Examples of similar length together, so that little is padded."""
    ordered = indices[np.argsort(lengths[indices], kind="stable")]
    start = 0
    while start < len(ordered):
        stop = start + 1
        while stop < len(ordered) and lengths[ordered[stop]] * (stop + 1 - start) <= TOKENS_PER_BATCH:
            stop += 1
        yield ordered[start:stop]
        start = stop
