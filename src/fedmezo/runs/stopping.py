"""When training stops before its last round, from the history of the evaluated loss alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Stop once the loss has not improved for a while (FederatedScope's rule).

    Args:
        patience: evaluations without improvement after which to stop; 0 or less never stops.
        delta: by how much the loss must fall to count as an improvement.
        mode: `best` compares the last `patience` evaluations with the best before them, `mean` with the mean.
    """

    patience: int
    delta: float
    mode: str

    def should_stop(self, losses: Sequence[float]) -> bool:
        """Whether the evaluations so far, the one before training first, are reason to stop."""
        if self.patience <= 0 or len(losses) <= self.patience:
            return False
        earlier, recent = losses[: -self.patience], losses[-self.patience :]
        reference = min(earlier) if self.mode == "best" else sum(earlier) / len(earlier)
        return not any(loss < reference - self.delta for loss in recent)
