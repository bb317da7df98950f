"""What the server does for a round beside the clients' forward passes, over more and more clients in eight groups.

The whole of a run's round is timed: plan, tasks, reports, sums, moves along the groups' directions, state hash, metrics
and journal. Client work is replaced by reports of random scalars. With directions of the clients' own, for comparison,
all of it grows with the cohort.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Row, arguments, report
from fedmezo.engines.simulation import Simulation
from fedmezo.federation.aggregate import SCALARS, ReportRules
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.messages import task_size
from fedmezo.federation.rates import FROZEN, RateStrategy
from fedmezo.federation.round import Federation, initial_state, plan_round
from fedmezo.records import Batch, ClientData, ClientTask, Report, Segment
from fedmezo.results.metrics import METRICS_FILE, MetricsFile
from fedmezo.runs.format import Header
from fedmezo.runs.journal import JOURNAL_FILE, JournalWriter
from fedmezo.runs.stopping import EarlyStopping
from fedmezo.runs.training import EvaluationPlan, Training
from fedmezo.zo.arithmetic import round_scalar, state_hash
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint

SIZES = ((100, 100), (1_000, 1_000), (10_000, 1_000), (1_000_000, 1_000), (1_000_000, 10_000))
"""Clients, and how many of them take part in a round."""
OWN_SIZES = ((100, 100), (1_000, 1_000))
GROUPS, STEPS, PARAMETERS = 8, 30, 300_000
ROUNDS, MISSED = 7, 5


@dataclass(frozen=True, slots=True)
class Claimed:
    """Clients that report without having worked: `ClientWork`."""

    scalars: tuple[tuple[float, ...], ...]

    def run(
        self, tasks: Sequence[ClientTask], theta: Tensor, state_hash: str, data: Mapping[int, ClientData]
    ) -> list[Report]:
        """One of some reports for each task."""
        return [
            Report(task.round, task.client, state_hash, STEPS, 1.5, 0, self.scalars[task.client % len(self.scalars)])
            for task in tasks
        ]


class OneForAll(Mapping[int, ClientData]):
    """The same data of every client, which nobody reads: `ClientData` and what holds it."""

    num_examples, num_batches = STEPS, STEPS

    def batches(self, round_index: int) -> Sequence[Batch]:
        """None."""
        return []

    def __getitem__(self, client: int) -> ClientData:
        return self

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Device:
    """All that the loop wants of a model that is not evaluated."""

    device: torch.device


def training(folder: Path, clients: int, cohort: int, groups: int) -> Training:
    """A run of so many clients that is about to begin."""
    theta, estimator = torch.zeros(PARAMETERS), TwoPoint(Settings(1e-3, clip=500.0))
    segments = (Segment("w", (PARAMETERS,), 0),)
    federation = Federation(
        seed=1,
        num_clients=clients,
        cohort_size=cohort,
        min_clients=1,
        equal_weights=False,
        strategy=RateStrategy(FROZEN, 1e-5, 0.0),
        rules=ReportRules(SCALARS, estimator, STEPS, PARAMETERS, most_examples=STEPS),
        segments=segments,
        groups=groups,
    )
    rng = np.random.default_rng(1)
    claimed = Claimed(tuple(tuple(map(round_scalar, rng.normal(0, 1, STEPS).tolist())) for _ in range(64)))
    header = Header(
        seed=1,
        rounds=ROUNDS,
        protocol="scalars",
        noise="gaussian",
        eps=1e-3,
        queries=1,
        direction_groups=groups,
        base="none",
        base_hash="00" * 32,
        dtype="float32",
        adapter={"adapter_method": "lora"},
        theta_hash=state_hash(theta),
        restored=False,
        data_hash="00" * 32,
        partition_hash="00" * 32,
        segments=segments,
    )
    downlink = Downlink(SCALARS, PARAMETERS, derivable=True)
    return Training(
        run_dir=folder,
        rounds=ROUNDS,
        federation=federation,
        engine=Simulation(claimed, OneForAll(), downlink, group_size=cohort),
        model=Device(theta.device),  # type: ignore[arg-type]  # it is not evaluated
        evaluation=EvaluationPlan(0, {}, "val_loss", EarlyStopping(0, 0.0, "best")),
        save_freq=0,
        keep_initial=False,
        forward_passes_per_batch=2,
        whole="bytes_full_adapters",
        journal=JournalWriter.create(folder / JOURNAL_FILE, header),
        sinks=[MetricsFile(folder)],
        listeners=[],
        state=initial_state(theta),
    )


def measure(clients: int, cohort: int, groups: int) -> list[Row]:
    """A run's rounds, one by one."""
    what = f"{clients:,} clients, {cohort:,} a round, " + (f"{groups} groups" if groups else "own directions")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = training(folder, clients, cohort, groups)
        sizes, seconds = [], []
        for _ in range(ROUNDS):
            started = time.process_time()
            run._round()  # what `run` repeats
            seconds.append(time.process_time() - started)
            sizes.append([(folder / file).stat().st_size for file in (JOURNAL_FILE, METRICS_FILE)])
        journal, metrics = (after - before for before, after in zip(sizes[-2], sizes[-1], strict=True))
        engine = run.engine
        assert isinstance(engine, Simulation), "it was made above"
        (task, *_) = plan_round(run.federation, run.state).tasks()
        engine.downlink.learn(task.client, run.state.round - MISSED)
        late = task_size(task, engine.downlink.way(task.client, run.state))
    return [
        Row(f"{what}: a round", statistics.median(seconds[1:]), "CPU s"),
        Row(f"{what}: journal of a round", journal, "B"),
        Row(f"{what}: metrics of a round", metrics, "B"),
        Row(f"{what}: to a client that missed {MISSED} rounds", late, "B"),
        Row(f"{what}: memory that a round takes and leaves", *memory(clients, cohort, groups)),
    ]


def memory(clients: int, cohort: int, groups: int) -> tuple[float, str]:
    """MiB that are allocated in a round at most, and those still held after it, the first round apart."""
    with tempfile.TemporaryDirectory() as name:
        run = training(Path(name), clients, cohort, groups)
        run._round()
        tracemalloc.start()
        for _ in range(2):
            run._round()
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak / 2**20, f"MiB, {held / 2**20 / 2:.3f} held"


def main() -> None:
    """Measure all sizes."""
    parser: argparse.ArgumentParser = arguments(__doc__)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for clients, cohort in SIZES[:3] if options.quick else SIZES:
        rows += measure(clients, cohort, GROUPS)
    for clients, cohort in OWN_SIZES[:1] if options.quick else OWN_SIZES:
        rows += measure(clients, cohort, 0)
    report("scale", rows, options)


if __name__ == "__main__":
    main()
