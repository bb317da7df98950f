"""Where a run's clients and their data are: what a run on one machine and a run on several do differently."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from rich.console import Console

from fedmezo.config import Config
from fedmezo.engines.rounds import Engine
from fedmezo.engines.simulation import Simulation
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import Federation
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.hiding import make_rehearsal
from fedmezo.runs.own import NOTHING, Own

logger = logging.getLogger(__name__)


class Placement(Protocol):
    """Where the clients of a run are."""

    @property
    def by_client(self) -> bool:
        """Whether the held-out examples belong to clients, so that their losses are told apart."""
        ...

    @property
    def own(self) -> Own:
        """What a program hands to the run besides the configuration."""
        ...

    def model(self, config: Config) -> TunedModel:
        """The base model with a fresh adapter.

        Raises:
            ModelError: it cannot be had, or not as asked.
        """
        ...

    def holdings(self, config: Config, tuned: TunedModel, console: Console) -> Holdings:
        """The examples that this process knows, and who holds them.

        Raises:
            DataError: they cannot be had, or cannot be divided as asked.
        """
        ...

    def engine(
        self, config: Config, tuned: TunedModel, holdings: Holdings, federation: Federation, downlink: Downlink
    ) -> Engine:
        """What runs the clients."""
        ...

    def is_waiting(self) -> bool:
        """Whether the next round cannot begin for want of clients, so that stopping loses nothing."""
        ...

    def resume_command(self, folder: Path) -> str:
        """How to go on with the run in this folder."""
        ...


@dataclass(frozen=True, slots=True)
class Here:
    """All clients are simulated in this process, and so are their data."""

    own: Own = NOTHING
    by_client: ClassVar[bool] = True

    def model(self, config: Config) -> TunedModel:
        """The model that the configuration names."""
        return assemble.load_model(config)

    def holdings(self, config: Config, tuned: TunedModel, console: Console) -> Holdings:
        """Read, encode and divide the data set, and give the model as many lanes as its batches leave room for."""
        holdings = assemble.load_holdings(config, tuned.tokenizer, console, self.own.splitter)
        assemble.require_fit(config, tuned, holdings.dataset)
        for notice in assemble.use_lanes(config, tuned, holdings.dataset):
            logger.warning(notice)
        return holdings

    def engine(
        self, config: Config, tuned: TunedModel, holdings: Holdings, federation: Federation, downlink: Downlink
    ) -> Engine:
        """The simulation."""
        shards = assemble.make_shards(config, holdings, tuned.model.device)
        group = assemble.clients_at_once(config, tuned.model)
        work = assemble.make_work(config, tuned, self.own)
        return Simulation(work, shards, downlink, group, make_rehearsal(config, federation))

    def is_waiting(self) -> bool:
        """Never: the clients are here."""
        return False

    def resume_command(self, folder: Path) -> str:
        """The plain command."""
        return f"fedmezo resume {folder}"


HERE = Here()
