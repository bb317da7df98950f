"""The examples of one client, and the order in which a round visits them: a pure function of (seed, client, round)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

from fedmezo.data.encode import EncodedDataset
from fedmezo.records import Batch
from fedmezo.zo.noise import SERVER, Purpose, Stream, permutation, words

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much a client does in a round.

    Args:
        batch_size: examples in a batch; the last batch of a pass over the data may be smaller.
        batches: batches in a round; None for whole passes.
        passes: passes over the client's data, where `batches` is None.
        poisson: each example is in each batch with the same probability, by the operating system's random numbers, so
            that nobody can tell which were; batches differ in size, and may be empty.
    """

    batch_size: int
    batches: int | None = None
    passes: int = 1
    poisson: bool = False


class Batches(Sequence[Batch]):
    """Batches that exist as example indices until they are asked for, so that a round of many clients needs no more.

    Args:
        dataset: all encoded examples.
        drawn: the examples of each batch.
        device: where batches are made.
    """

    def __init__(self, dataset: EncodedDataset, drawn: Sequence[Indices], device: torch.device) -> None:
        self._dataset = dataset
        self._drawn = drawn
        self._device = device

    def __len__(self) -> int:
        return len(self._drawn)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> Batch | Batches:
        if isinstance(index, slice):
            return Batches(self._dataset, self._drawn[index], self._device)
        drawn = self._drawn[index]
        return self._dataset.batch(drawn, self._device) if len(drawn) else _empty(self._device)


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One client's training examples; implements `records.ClientData`.

    Args:
        dataset: all encoded examples.
        indices: which of them the client holds.
        seed: run seed.
        client: the client.
        schedule: how much it does in a round.
        device: where batches are made.
    """

    dataset: EncodedDataset
    indices: Indices
    seed: int
    client: int
    schedule: Schedule
    device: torch.device

    @property
    def num_examples(self) -> int:
        """How many training examples the client holds."""
        return len(self.indices)

    @property
    def num_batches(self) -> int:
        """How many batches the client visits in a round."""
        return self.schedule.batches or self._batches_per_pass * self.schedule.passes

    @property
    def _batches_per_pass(self) -> int:
        return -(-len(self.indices) // self.schedule.batch_size)

    def batches(self, round_index: int) -> Batches:
        """The batches of a round in the order they are visited, each made when it is asked for."""
        if self.schedule.poisson:  # in the order drawn: one by length would tell of what is in a batch
            return Batches(self.dataset, self._sampled(), self.device)
        drawn = self._drawn(round_index)
        lengths = [int(self.dataset.lengths[batch].max()) for batch in drawn]
        order = visiting_order(self.seed, round_index, lengths)
        return Batches(self.dataset, [drawn[i] for i in order], self.device)

    def _sampled(self) -> list[Indices]:
        """Poisson samples of example indices, `batch_size` of them in the mean."""
        rate = min(1.0, self.schedule.batch_size / len(self.indices))
        rng = np.random.default_rng(secrets.randbits(256))
        return [self.indices[rng.random(len(self.indices)) < rate] for _ in range(self.num_batches)]

    def _drawn(self, round_index: int) -> list[Indices]:
        """Batches of example indices, pass after pass in a new order each, without repetition inside a pass."""
        batches: list[Indices] = []
        while len(batches) < self.num_batches:
            step = len(batches) // self._batches_per_pass
            stream = Stream(self.seed, Purpose.DATA_ORDER, round_index, self.client, step)
            shuffled = self.indices[permutation(stream, len(self.indices)).numpy()]
            starts = range(0, len(shuffled), self.schedule.batch_size)
            batches += [shuffled[start : start + self.schedule.batch_size] for start in starts]
        return batches[: self.num_batches]


def _empty(device: torch.device) -> Batch:
    nothing = torch.empty(0, 0, dtype=torch.int64)
    return Batch(nothing.to(device), nothing.to(device), nothing)


def visiting_order(seed: int, round_index: int, lengths: Sequence[int]) -> list[int]:
    """The order in which a client visits its batches of a round.

    Batches are ranked by length, and the ranks are visited in one random order common to all clients, so that batches
    of different clients which meet in one forward have similar lengths. A client with fewer batches skips the ranks it
    does not have.
    """
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    draws = words(Stream(seed, Purpose.DATA_ORDER, round_index, SERVER), 0, len(lengths))
    return [by_length[rank] for rank in torch.sort(draws, stable=True).indices.tolist()]
