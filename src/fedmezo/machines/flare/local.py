"""A run with everything that several machines have, on this machine: `fedmezo run CONFIG --engine flare`.

It makes kits, starts a process for each site with that client's share of the data, and serves: for trying out what
several machines do. The journal is, to the bit, the one that the simulation writes.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console

from fedmezo.config import Config
from fedmezo.errors import ConfigError
from fedmezo.machines.flare.kits import provision
from fedmezo.machines.flare.project import Kit, Project
from fedmezo.machines.flare.serve import Elsewhere
from fedmezo.machines.guards import guarded
from fedmezo.machines.processes import stop
from fedmezo.machines.shards import write_holdings
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.experiment import run
from fedmezo.scratch import scratch_folder

SECONDS_TO_WAIT = 120.0


def run_here(config: Config, notices: tuple[str, ...]) -> int:
    """Start a run on sites that are processes of this machine; returns the exit code.

    Raises:
        FedMeZOError: whatever a user can act on.
    """
    if config.federate.lone_client is not None:
        raise ConfigError(
            f"federate.client_idx_for_local_train is {config.federate.client_idx_for_local_train}: a client that "
            "trains alone needs no other machine; leave out --engine flare"
        )
    # Without lanes, and not compiled, a resume, which simulates the clients, goes on to the bit.
    train = config.train.model_copy(update={"lanes": 1, "compile": False})
    config = guarded(config.model_copy(update={"train": train}))
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        names = tuple(f"site-{client}" for client in range(config.federate.client_num))
        server, *sites = provision(Project(server="localhost", port=free_port(), sites=names), folder / "kits")
        divide = partial(_divide, folder / "data", sites, stack)
        return run(config, notices, Elsewhere(server, stack, SECONDS_TO_WAIT, divided=divide))


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def _divide(
    folder: Path, sites: list[Kit], stack: ExitStack, config: Config, tuned: TunedModel, console: Console
) -> Holdings:
    """Divide the data, and start each site with its share."""
    holdings = assemble.load_holdings(config, tuned.tokenizer, console)
    write_holdings(holdings, folder)
    for kit in sites:
        stack.callback(stop, _start_site(kit, folder / f"client_{kit.client}.jsonl", config))
    return holdings


def _start_site(kit: Kit, data: Path, config: Config) -> subprocess.Popen[bytes]:
    """The command that a site's owner would give."""
    words = ["site", str(kit.folder), "--data", str(data), "--model", config.model.type, "--with-parent"]
    words += ["--gpu", "--device", str(config.device)] if config.use_gpu else []
    words += ["--trust-remote-code"] if config.model.trust_remote_code else []
    with (kit.folder / "site.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedmezo", *words], stdout=log, stderr=log, start_new_session=True
        )
