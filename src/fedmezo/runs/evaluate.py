"""The loss and the accuracy of one theta on every client's validation or test examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmezo.data.encode import EncodedDataset
from fedmezo.records import Batch, Trainable
from fedmezo.runs.choosing import Candidates

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
    """What was measured on one part of the data: its loss, or the share of right answers.

    The loss is in nats per token: the mean over examples of each example's mean over its label tokens.
    """

    value: float  # over all clients, each weighing as many examples as it has
    client_values: dict[int, float]  # only of clients that have examples in this part


def evaluate(model: Evaluable, theta: Tensor, dataset: EncodedDataset, shards: Sequence[Indices]) -> Evaluation:
    """Evaluate theta (d,) on each client's examples.

    Args:
        model: the model.
        theta: where to evaluate it.
        dataset: all encoded examples.
        shards: for each client, which of them it holds; together at least one.
    """
    losses = _losses(model, theta, dataset, np.concatenate(shards))
    by_client = {client: float(losses[shard].mean()) for client, shard in enumerate(shards) if len(shard)}
    return Evaluation(float(losses[np.concatenate(shards)].mean()), by_client)


def accuracy(model: Evaluable, theta: Tensor, candidates: Candidates, shards: Sequence[Indices]) -> Evaluation:
    """The share of right choices of theta (d,) among each client's examples with candidates; see `evaluate`."""
    losses = _losses(model, theta, candidates.dataset, candidates.rows(np.concatenate(shards)))
    hits = candidates.hits(losses)
    by_client = {client: [hits[i] for i in shard.tolist() if i in hits] for client, shard in enumerate(shards)}
    judged = [hit for some in by_client.values() for hit in some]
    shares = {client: sum(some) / len(some) for client, some in by_client.items() if some}
    return Evaluation(sum(judged) / len(judged), shares)


def _losses(model: Evaluable, theta: Tensor, dataset: EncodedDataset, indices: Indices) -> NDArray[np.float64]:
    """The loss of each of these examples, by their number; of others, what is not a number."""
    losses = np.full(len(dataset), np.nan)
    theta = theta.to(model.device)
    for some in batches_by_length(indices, dataset.lengths):
        losses[some] = model.example_losses(theta, dataset.batch(some, model.device))
    return losses


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
