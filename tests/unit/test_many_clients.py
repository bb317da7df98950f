"""Three hundred clients need the memory of the group that shares a forward pass, and as many calls of the model."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedmezo.data.encode import EncodedDataset
from fedmezo.data.shard import Schedule, Shard
from fedmezo.engines.simulation import Simulation
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import ServerState
from fedmezo.models.lane_budget import peak_memory_of
from fedmezo.records import Batch, RoundPlan
from fedmezo.zo.arithmetic import state_hash
from tests.toy import SIZE, Quadratic, two_point

LANES = 6
CPU = torch.device("cpu")
EXAMPLES = 3000


@dataclass
class Counting(Quadratic):
    """The quadratic, which counts the batches that are alive while it computes."""

    most_batches: int = 0
    others: int = field(default_factory=lambda: living_batches())

    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        self.most_batches = max(self.most_batches, living_batches() - self.others)
        return torch.stack([self.loss(theta, batch) for theta, batch in zip(thetas, batches, strict=True)])


def living_batches() -> int:
    return sum(type(thing) is Batch for thing in gc.get_objects())


def some_dataset() -> EncodedDataset:
    return EncodedDataset(
        tokens=np.arange(EXAMPLES, dtype=np.int32),
        offsets=np.arange(EXAMPLES + 1),  # one token each, as the toy model wants
        prompt_lengths=np.zeros(EXAMPLES, dtype=np.int32),
        kept=np.arange(EXAMPLES),
        dropped=0,
        pad_id=0,
    )


def a_round(model: Quadratic, clients: int, steps: int) -> None:
    dataset, theta = some_dataset(), torch.zeros(SIZE)
    shards = {
        client: Shard(dataset, np.arange(client, EXAMPLES, clients), 1, client, Schedule(1, batches=steps), CPU)
        for client in range(clients)
    }
    work = ZerothOrderClients(model, two_point(), 1, "scalars", LANES)
    engine = Simulation(work, shards, Downlink("scalars", SIZE, derivable=True), group_size=LANES // 2)
    state = ServerState(0, theta, state_hash(theta), {})
    result = engine.run_round(RoundPlan(0, tuple(range(clients)), (1e-3,) * clients), state)
    assert len(result.reports) == clients


def test_batches_exist_only_while_they_are_used() -> None:
    few, many = Counting(), Counting()
    a_round(few, 3, 2)
    a_round(many, 30, 2)
    assert few.most_batches == many.most_batches == LANES // 2


def test_memory_and_calls_do_not_grow_with_the_clients() -> None:
    few, many = Quadratic(), Quadratic()
    peaks = [
        peak_memory_of(lambda: a_round(few, 3, 100), CPU),
        peak_memory_of(lambda: a_round(many, 300, 1), CPU),
    ]
    assert len(few.calls) == len(many.calls) == 100  # the same number of steps
    assert set(few.calls) == set(many.calls) == {LANES}
    assert peaks[1] <= peaks[0]
