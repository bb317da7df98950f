"""Steps that hide each single example of a client: clipped example by example, with noise before anything is used.

An example's losses along the directions of a step are a vector of scalars; its L2 norm is clipped, and the mean over
the examples of a batch gets Gaussian noise once: one sensitivity for all directions (DP-AggZO, USENIX Security 2025;
with one direction, DPZero, ICML 2024). Batches are Poisson samples: each example is in each batch with the same small
probability, by the operating system's random numbers and not the run's, which everybody knows. What a client reports is
made of noisy scalars alone; it counts as many examples as it expects, not as many as it drew, and tells no loss.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from torch import Tensor

from fedmezo.federation.clients import ClientWork
from fedmezo.privacy.clipping import clipped
from fedmezo.records import Batch, ClientData, ClientTask, Report
from fedmezo.zo.estimators.per_example import row_of
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint
from fedmezo.zo.local import Probe
from fedmezo.zo.replay import Address, Move, Pace


@dataclass(frozen=True, slots=True)
class PrivateTwoPoint:
    """The two-point estimate under noise; implements `zo.estimators.protocol.Estimator`.

    Args:
        plain: the estimate itself.
        rows: of a batch, as expected.
        clip: largest L2 norm of an example's scalars of a step.
        noise_multiplier: standard deviation of the noise on the sum over a batch, in units of the clip.
        random: of the noise; the operating system's.
    """

    plain: TwoPoint
    rows: int
    clip: float
    noise_multiplier: float
    random: Random = field(default_factory=secrets.SystemRandom)

    @property
    def settings(self) -> Settings:
        """See `Estimator`."""
        return self.plain.settings

    @property
    def directions(self) -> int:
        """One for each query."""
        return self.plain.directions

    @property
    def losses_per_step(self) -> int:
        """Two for each direction and row, as expected."""
        return 2 * self.directions * self.rows

    @property
    def passes(self) -> int:
        """Two for each direction: every probe has one row."""
        return 2 * self.directions

    @property
    def largest(self) -> float:
        """That of the plain estimate."""
        return self.plain.largest

    def probes(self, address: Address, step: int, batch: Batch) -> list[Probe]:
        """Theta + eps z and theta - eps z on each row alone, row by row; none of an empty batch."""
        eps, streams = self.settings.step_size, [address.stream(step, query) for query in range(self.directions)]
        rows = [row_of(batch, row) for row in range(batch.num_examples)]
        return [Probe(row, stream, amount) for row in rows for stream in streams for amount in (eps, -eps)]

    def scalars(self, losses: Sequence[float]) -> tuple[float, ...]:
        """The noisy mean of the examples' clipped scalars; an example with a loss that is not finite adds nothing.

        A step is never skipped, since that would tell of an example.
        """
        size = 2 * self.directions
        sums = [0.0] * self.directions
        for first in range(0, len(losses), size):
            own = self.plain.differences(losses[first : first + size])
            if all(map(math.isfinite, own)):
                sums = [total + g for total, g in zip(sums, clipped(own, self.clip), strict=True)]
        sigma, largest = self.noise_multiplier * self.clip, self.largest
        means = [(total + self.random.gauss(0.0, sigma)) / self.rows for total in sums]
        return tuple(self.settings.to_scalar(max(-largest, min(largest, mean))) for mean in means)

    def train_loss(self, losses: Sequence[float]) -> float:
        """None is told: it reads as 0."""
        return 0.0

    def moves(self, pace: Pace, scalars: Sequence[float], address: Address, from_step: int = 0) -> list[Move]:
        """As of the plain estimate."""
        return self.plain.moves(pace, scalars, address, from_step)


@dataclass(frozen=True, slots=True)
class PrivateClients:
    """Client work whose reports tell of noisy scalars alone; implements `federation.clients.ClientWork`.

    Args:
        work: the local steps.
        examples: that a client counts in a round, whatever it drew.
    """

    work: ClientWork
    examples: int

    def run(
        self, tasks: Sequence[ClientTask], theta: Tensor, state_hash: str, data: Mapping[int, ClientData]
    ) -> list[Report]:
        """See `ClientWork`."""
        reports = self.work.run(tasks, theta, state_hash, data)
        return [replace(report, num_examples=self.examples, train_loss=0.0, skipped_steps=0) for report in reports]
