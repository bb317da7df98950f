"""What a step costs with many simulated clients: python -m benchmarks.clients.

One round of 300 clients beside a hundred rounds of 3, each of as many local steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from benchmarks import common
from benchmarks.common import Row
from fedmezo.data.encode import EncodedDataset
from fedmezo.data.shard import Schedule, Shard
from fedmezo.engines.simulation import Simulation
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import initial_state
from fedmezo.models.lane_budget import peak_memory_of
from fedmezo.records import RoundPlan
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint

LANES = 6
FEW, MANY = 3, 300
STEPS = 10
"""Of a client in a round. The more there are, the closer in length are the batches that share a forward pass."""


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    model = common.adapted(common.base_model(options.shape, options.dtype, options.device), options.rank)
    model.use_lanes(LANES)
    dataset = synthetic(common.read_lengths(options), 10 * MANY, common.SHAPES[options.shape]["vocab_size"])
    work = ZerothOrderClients(model, TwoPoint(Settings(common.EPS)), 1, "scalars", LANES)
    state = initial_state(model.flat())
    many = 30 if options.quick else MANY
    device = torch.device(options.device)

    def rounds_of(clients: int, rounds: int) -> None:
        schedule = Schedule(1, batches=STEPS)
        data: Mapping[int, Shard] = {
            client: Shard(dataset, np.arange(client, len(dataset), clients), 1, client, schedule, device)
            for client in range(clients)
        }
        downlink = Downlink("scalars", len(state.theta), derivable=True)
        engine = Simulation(work, data, downlink, LANES // 2)
        for index in range(rounds):
            engine.run_round(RoundPlan(index, tuple(range(clients)), (1e-5,) * clients), state)

    steps = STEPS * many
    forms = {f"{FEW} clients": lambda: rounds_of(FEW, many // FEW), f"{many} clients": lambda: rounds_of(many, 1)}
    times = common.interleaved(forms, 1 if options.quick else 3, options.device)
    rows = [Row(f"{name}, a step", 1e3 * value / steps, "ms") for name, value in times.items()]
    rows.append(Row("many / few", times[f"{many} clients"] / times[f"{FEW} clients"], "times"))
    for name, work_of in forms.items():
        rows.append(Row(f"{name}, peak of what a round allocates", peak_memory_of(work_of, device) / 2**20, "MiB"))
    common.report("clients", rows, options)


def synthetic(lengths: list[tuple[int, int]], examples: int, vocabulary: int) -> EncodedDataset:
    """Examples of random tokens, each length as often as any other, in no order."""
    rng = np.random.default_rng(1)
    chosen = [lengths[i % len(lengths)] for i in rng.permutation(examples)]
    sizes = np.array([sum(pair) for pair in chosen])
    return EncodedDataset(
        tokens=rng.integers(3, vocabulary, sizes.sum(), dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        prompt_lengths=np.array([prompt for prompt, _ in chosen], dtype=np.int32),
        kept=np.arange(examples),
        dropped=0,
        pad_id=0,
    )


if __name__ == "__main__":
    main()
