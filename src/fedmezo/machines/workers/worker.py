"""What a worker process does: it holds the model, the data and theta, and runs the clients that it is dealt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from torch import Tensor

from fedmezo.config import Config
from fedmezo.errors import RunError
from fedmezo.federation.round import ServerState, initial_state, replay_round_
from fedmezo.records import ClientTask, Report, RoundRecord
from fedmezo.runs import assemble
from fedmezo.zo.arithmetic import state_hash


class Worker:
    """One process's share of a run. Everything in it follows from the configuration, as it does for the server.

    Args:
        config: of the run.
        lanes: of the server's model, so that losses agree to the last bit.
        base_hash: of the base weights that the server has.
    """

    def __init__(self, config: Config, lanes: int, base_hash: str) -> None:
        torch.set_num_threads(max(1, config.threads))
        tuned = assemble.load_model(config)
        if tuned.base_hash != base_hash:
            raise RunError(
                f"a worker finds another base model under {config.model.type!r}: the hash of its weights is "
                f"{tuned.base_hash[:16]}, the server's {base_hash[:16]}"
            )
        tuned.model.use_lanes(lanes)
        holdings = assemble.load_holdings(config, tuned.tokenizer, Console(quiet=True))
        self._work = assemble.make_work(config, tuned)
        self._data = assemble.make_shards(config, holdings, tuned.model.device)
        self._federation = assemble.make_federation(config, tuned.model)
        self._state: ServerState = initial_state(tuned.theta)

    def run(self, tasks: Sequence[ClientTask], known: str, theta: Tensor | None) -> list[Report]:
        """Run a group of clients.

        Args:
            tasks: one for each client.
            known: hash of the state that they start from.
            theta: (d,) that state, for a worker that has not followed the run to it.

        Raises:
            RunError: the worker is not at that state.
        """
        if theta is not None:
            theta = theta.clone()  # what Ray's store holds cannot be written to
            self._state = ServerState(tasks[0].round, theta, state_hash(theta), self._state.histories)
        if self._state.hash != known:
            raise RunError(f"a worker is at the state {self._state.hash[:16]}, but the round begins at {known[:16]}")
        return self._work.run(tasks, self._state.theta, known, self._data)

    def close_round(self, record: RoundRecord) -> None:
        """Follow a closed round by its scalars."""
        self._state = replay_round_(self._federation, self._state, record)
