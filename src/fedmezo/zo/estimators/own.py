"""An estimator of a program's own, whose scalars mean what those of a named one mean.

It chooses the losses that a step asks for and makes scalars of them. Where a scalar leads is the named estimator's to
say, so that the server closes rounds, and anyone replays the journal, without the program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmezo.records import Batch
from fedmezo.zo.estimators.protocol import Estimator, Settings
from fedmezo.zo.local import Probe
from fedmezo.zo.replay import Address, Move, Pace


@dataclass(frozen=True, slots=True)
class OwnScalars:
    """Implements `Estimator`.

    Args:
        own: the program's; its `moves`, `largest` and `settings` are not used.
        named: the one that the configuration names.

    Raises:
        ValueError: they do not have as many directions.
    """

    own: Estimator
    named: Estimator

    def __post_init__(self) -> None:
        if self.own.directions != self.named.directions:
            raise ValueError(
                f"it has {self.own.directions} directions a step, but {type(self.named).__name__}, which says where "
                f"its scalars lead, has {self.named.directions}"
            )

    @property
    def settings(self) -> Settings:
        """The named one's."""
        return self.named.settings

    @property
    def directions(self) -> int:
        """Of both."""
        return self.named.directions

    @property
    def losses_per_step(self) -> int:
        """The program's."""
        return self.own.losses_per_step

    @property
    def passes(self) -> int:
        """The program's."""
        return self.own.passes

    @property
    def largest(self) -> float:
        """What the server accepts."""
        return self.named.largest

    def probes(self, address: Address, step: int, batch: Batch) -> list[Probe]:
        """The program's."""
        return self.own.probes(address, step, batch)

    def scalars(self, losses: Sequence[float]) -> tuple[float, ...] | None:
        """The program's, clipped if asked and rounded to bfloat16, as everything that is sent."""
        scalars = self.own.scalars(losses)
        return None if scalars is None else tuple(map(self.settings.to_scalar, scalars))

    def train_loss(self, losses: Sequence[float]) -> float:
        """The program's."""
        return self.own.train_loss(losses)

    def moves(self, pace: Pace, scalars: Sequence[float], address: Address, from_step: int = 0) -> list[Move]:
        """The named one's."""
        return self.named.moves(pace, scalars, address, from_step)
