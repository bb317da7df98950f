"""The server of a run on several machines: the training loop of any run, with clients reached over FLARE."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from fedmezo.config import Config
from fedmezo.data.encode import EncodedDataset, encode_examples
from fedmezo.data.parse import read_examples
from fedmezo.data.partition import Partition
from fedmezo.data.rows import Layout
from fedmezo.engines.distributed import Distributed
from fedmezo.engines.rounds import Engine
from fedmezo.errors import ConfigError
from fedmezo.federation.aggregate import WEIGHTS
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.messages import BYTES_PER_PARAMETER
from fedmezo.federation.round import Federation
from fedmezo.machines.flare.link import Link
from fedmezo.machines.flare.project import Kit
from fedmezo.machines.flare.segments import Segments
from fedmezo.machines.guards import guarded
from fedmezo.machines.settings import shared_settings
from fedmezo.records import Example
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.experiment import run
from fedmezo.runs.hiding import make_secure_sums
from fedmezo.runs.journal import JOURNAL_FILE
from fedmezo.runs.own import NOTHING, Own
from fedmezo.runs.resume import resume
from fedmezo.scratch import scratch_folder
from fedmezo.zo.arithmetic import state_hash

logger = logging.getLogger(__name__)

LARGEST_SCALARS_REPORT = 1 << 20
"""Bytes to allow time for; a report of scalars is far smaller."""
SECONDS_FOR_PORT = 10.0
"""How long a server that was killed a moment ago may still hold the port."""
_SECONDS_BETWEEN_TRIES = 0.5


@dataclass(eq=False)
class Elsewhere:
    """Clients on sites; implements `placement.Placement`.

    Args:
        kit: the server's.
        stack: closes what the engine opens when the command ends.
        wait_seconds: how long the first job waits for sites that are not there yet.
        held_out: the server's own file of examples to evaluate on; None for no evaluation.
        divided: how this process knows the sites' data, when it made them itself; None where it does not know them.
    """

    kit: Kit
    stack: ExitStack
    wait_seconds: float
    held_out: Path | None = None
    divided: Callable[[Config, TunedModel, Console], Holdings] | None = None
    by_client: bool = field(init=False)
    _engine: Distributed | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.by_client = self.divided is not None

    @property
    def own(self) -> Own:
        """Nothing: sites run what the configuration says."""
        return NOTHING

    def model(self, config: Config) -> TunedModel:
        """The server's, which evaluates and compares."""
        return assemble.load_model(config)

    def holdings(self, config: Config, tuned: TunedModel, console: Console) -> Holdings:
        """The server's own examples, all of them held out; the sites' are theirs."""
        if self.divided is not None:
            return self.divided(config, tuned, console)
        if config.federate.client_num != len(self.kit.sites):
            raise ConfigError(
                f"federate.client_num is {config.federate.client_num}, but the kit {self.kit.folder} is of a project "
                f"with {len(self.kit.sites)} sites: set it to {len(self.kit.sites)}"
            )
        examples = [] if self.held_out is None else read_examples(self.held_out, Layout())
        prompts = assemble.make_prompts(config, tuned.tokenizer)
        dataset = (
            encode_examples(examples, tuned.tokenizer, config.llm.tok_len, assemble.tokens_folder(config), prompts)
            if examples
            else _no_examples()
        )
        assemble.require_fit(config, tuned, dataset)
        if examples:
            logger.info("evaluating on %d examples of the server's own", len(dataset))
        else:
            logger.info("nothing is evaluated: the server has no examples of its own (--held-out FILE)")
        return replace(held_out_only([examples[i] for i in dataset.kept], dataset, config), prompts=prompts)

    def engine(
        self, config: Config, tuned: TunedModel, holdings: Holdings, federation: Federation, downlink: Downlink
    ) -> Engine:
        """Start FLARE's server and its jobs, and speak to the sites through them."""
        folder = self.stack.enter_context(scratch_folder())
        link = Link(folder / "link", self.kit.sites)
        self.stack.callback(link.close)
        rules = federation.rules
        as_weights = rules.protocol == WEIGHTS
        report_size = BYTES_PER_PARAMETER * rules.num_parameters if as_weights else LARGEST_SCALARS_REPORT
        self.stack.enter_context(Segments(self.kit, link, folder / "link", self.wait_seconds, report_size))
        self._engine = Distributed(
            link,
            downlink,
            rules=rules,
            settings=shared_settings(config, str(tuned.dtype).removeprefix("torch.")),
            base_hash=tuned.base_hash,
            theta_hash=state_hash(tuned.theta),
            num_clients=federation.num_clients,
            min_clients=federation.min_clients,
            report_size=report_size,
            deadline=config.federate.round_deadline,
            tries=config.federate.round_tries,
            secure=make_secure_sums(config, federation),
        )
        return self._engine

    def is_waiting(self) -> bool:
        """Whether the next round waits for sites."""
        return self._engine is not None and self._engine.is_waiting

    def resume_command(self, folder: Path) -> str:
        """The server's command with the run's folder; of kits that go with this process, the simulation's."""
        if self.divided is not None:
            return f"fedmezo resume {folder}"
        return f"fedmezo serve {self.kit.folder} {folder}"


def held_out_only(examples: list[Example], dataset: EncodedDataset, config: Config) -> Holdings:
    """Examples of the server's own: all to evaluate on, as validation or test, none to train on."""
    nothing = np.zeros(0, dtype=np.int64)
    everything = np.arange(len(dataset))
    as_val = config.eval.best_res_update_round_wise_key == "val_loss"
    categories, category_of = np.unique(np.array([e.category for e in examples], dtype=object), return_inverse=True)
    divided = Partition(
        splitter="the server's own examples",
        categories=tuple(categories.tolist()),
        category_of=category_of.astype(np.int64),
        train=(nothing,),
        val=(everything if as_val else nothing,),
        test=(nothing if as_val else everything,),
    )
    return Holdings(tuple(examples), dataset, divided)


def _no_examples() -> EncodedDataset:
    none = np.zeros(0, dtype=np.int64)
    short = none.astype(np.int32)
    return EncodedDataset(short, np.zeros(1, dtype=np.int64), short, none, dropped=0, pad_id=0)


def serve(
    kit: Kit,
    config: Config,
    notices: tuple[str, ...],
    *,
    wait_seconds: float,
    held_out: Path | None,
) -> int:
    """Start a run on the sites and bring it to its end; returns the exit code.

    Raises:
        FedMeZOError: whatever a user can act on.
    """
    require_port(kit.port)
    with ExitStack() as stack:
        return run(guarded(config), notices, Elsewhere(kit, stack, wait_seconds, held_out))


def go_on(kit: Kit, folder: Path, *, wait_seconds: float, held_out: Path | None, force: bool = False) -> int:
    """Go on with a run on the sites; returns the exit code.

    Raises:
        FedMeZOError: whatever a user can act on.
    """
    require_port(kit.port)
    with ExitStack() as stack:
        return resume(folder, force=force, place=Elsewhere(kit, stack, wait_seconds, held_out))


def require_port(port: int, seconds: float = SECONDS_FOR_PORT) -> None:
    """See that the server can listen: FLARE would share a port that another run listens at, and get half of its calls.

    Raises:
        ConfigError: the port cannot be had within `seconds`.
    """
    until = time.monotonic() + seconds
    while (fault := _listening_fault(port)) is not None:
        if time.monotonic() > until:
            raise ConfigError(
                f"the server cannot listen at port {port} of this machine: {fault}. End what listens there (another "
                "`fedmezo serve`?), or make kits with another port"
            )
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _listening_fault(port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is left of closed connections is no fault
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.strerror
    return None


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run, rather than a configuration."""
    return (path / JOURNAL_FILE).exists()
