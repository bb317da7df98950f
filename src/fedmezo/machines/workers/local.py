"""A run whose clients are dealt to worker processes: `fedmezo run CONFIG --engine ray workers=N`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import ray
import torch
from rich.console import Console

from fedmezo.config import Config
from fedmezo.engines.rounds import Engine, RoundResult
from fedmezo.engines.simulation import Simulation
from fedmezo.federation.aggregate import SCALARS
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import Federation, ServerState
from fedmezo.federation.server_optimizers import FEDAVG
from fedmezo.machines.workers.pool import WorkerPool
from fedmezo.machines.workers.worker import Worker
from fedmezo.records import RoundPlan, RoundRecord
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.experiment import run
from fedmezo.runs.hiding import make_rehearsal
from fedmezo.runs.own import NOTHING, Own
from fedmezo.runs.placement import HERE
from fedmezo.runs.places import anchored

logger = logging.getLogger(__name__)


def run_on_workers(config: Config, notices: tuple[str, ...]) -> int:
    """Start a run on Ray workers, of this machine or of the cluster that RAY_ADDRESS names; returns the exit code.

    Raises:
        FedMeZOError: whatever a user can act on.
    """
    with _ray(config) as workers:
        cores = os.cpu_count() or 1
        threads = config.threads or max(1, cores // workers)  # the server's too, so that a resume is to the bit
        train = config.train.model_copy(update={"compile": False})  # as a resume, which simulates, would have to
        here = config.model_copy(update={"threads": threads, "workers": workers, "train": train})
        return run(here, notices, Workers())


@contextmanager
def _ray(config: Config) -> Iterator[int]:
    """Ray's cluster, started here if there is none; gives the number of workers."""
    joins = "RAY_ADDRESS" in os.environ
    ray.init(
        include_dashboard=False if not joins else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
        num_cpus=None if joins else max(os.cpu_count() or 1, config.workers),
    )
    try:
        has = ray.cluster_resources().get("GPU" if config.use_gpu else "CPU", 1)  # type: ignore[no-untyped-call]
        yield config.workers or max(1, int(has))
    finally:
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class Workers:
    """A `runs.placement.Placement`: as in a simulation, but for who runs the clients."""

    by_client: ClassVar[bool] = True
    own: ClassVar[Own] = NOTHING

    def model(self, config: Config) -> TunedModel:
        """The server's, which evaluates."""
        return assemble.load_model(config)

    def holdings(self, config: Config, tuned: TunedModel, console: Console) -> Holdings:
        """Read and divide the data set, and take no more lanes than a worker's part of the cohort can fill."""
        holdings = assemble.load_holdings(config, tuned.tokenizer, console)
        share = -(-config.federate.cohort_size // config.workers)
        for notice in assemble.use_lanes(config, tuned, holdings.dataset, clients=share):
            logger.warning(notice)
        return holdings

    def engine(
        self, config: Config, tuned: TunedModel, holdings: Holdings, federation: Federation, downlink: Downlink
    ) -> Engine:
        """The pool, under a simulation that counts what the messages would have weighed."""
        needs = {"num_gpus": 1} if config.use_gpu else {"num_cpus": 1}
        actor = ray.remote(Worker).options(**needs)
        pool = WorkerPool(
            start=lambda: actor.remote(anchored(config), tuned.model.lanes, tuned.base_hash),
            size=min(config.workers, federation.cohort_size),
            group_size=assemble.clients_at_once(config, tuned.model),
            follows=federation.rules.protocol == SCALARS and federation.server.method == FEDAVG,
        )
        shards = assemble.make_shards(config, holdings, torch.device("cpu"))
        rehearsal = make_rehearsal(config, federation)
        return Dealt(pool, Simulation(pool, shards, downlink, federation.cohort_size, rehearsal))

    def is_waiting(self) -> bool:
        """Never: the clients are the workers'."""
        return False

    def resume_command(self, folder: Path) -> str:
        """The plain command: the simulation goes on with the run."""
        return HERE.resume_command(folder)


@dataclass(frozen=True, slots=True)
class Dealt:
    """A simulation whose client work is a pool's, which wants to hear of closed rounds too."""

    pool: WorkerPool
    simulation: Simulation

    def run_round(self, plan: RoundPlan, state: ServerState) -> RoundResult:
        """As `Simulation.run_round`."""
        return self.simulation.run_round(plan, state)

    def barred(self, round_index: int) -> Set[int]:
        """As `Simulation.barred`."""
        return self.simulation.barred(round_index)

    def gives_up(self) -> bool:
        """As `Simulation.gives_up`."""
        return self.simulation.gives_up()

    def recall(self, records: Sequence[RoundRecord]) -> None:
        """As `Simulation.recall`."""
        self.simulation.recall(records)

    def close_round(self, plan: RoundPlan, record: RoundRecord) -> None:
        """Let everybody follow."""
        self.simulation.close_round(plan, record)
        self.pool.close_round(record)
