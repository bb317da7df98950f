"""How a recorded round of the scalars protocol moves theta and the server's moments.

The server does this to close a round, and whoever replays, resumes or catches up does the same, to the bit: the average
update is regenerated from the scalars, each direction added on its own, and what an optimiser makes of it is a sequence
of elementwise operations that round alike everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedmezo.federation.aggregate import apply_scalars_
from fedmezo.federation.server_optimizers import FEDAVG, PLAIN_AVERAGE, Moments, ServerOptimizer, server_step_
from fedmezo.records import RoundRecord
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.estimators.protocol import Estimator


@dataclass(frozen=True, slots=True)
class Course:
    """What it takes to follow a run through its rounds.

    Args:
        seed: run seed.
        estimator: the clients' estimator.
        server: what becomes of the average update.
    """

    seed: int
    estimator: Estimator
    server: ServerOptimizer = PLAIN_AVERAGE

    def advance_(self, theta: Tensor, moments: Moments, record: RoundRecord) -> Moments:
        """Move theta (d,) through a round, in place; returns the moments for the next.

        A round that was not taken changes neither.
        """
        if record.is_void:
            return moments
        if self.server.method == FEDAVG:
            apply_scalars_(theta, record, self.seed, self.estimator)
            return {}
        delta = apply_scalars_(torch.zeros_like(theta), record, self.seed, self.estimator)
        return server_step_(theta, delta, moments, self.server)


def hash_of(theta: Tensor, moments: Moments) -> str:
    """The state hash of theta with the server's moments, in the order of their names."""
    return state_hash(theta, *(moments[name] for name in sorted(moments)))
