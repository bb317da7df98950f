"""What a group does where some of its clients may lie: rules on their scalars along the directions that they share.

A client whose scalars are wrong moves a mean as far as it likes. These rules bound what up to a third of a group's
clients can do, whatever they send. They take every client alike, since a number of examples can be a lie too, and they
need each client's own scalars: not to be had under secure aggregation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmezo.federation.sums import Tally
from fedmezo.records import Report

MEAN = "mean"

Rule: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From the scalars (clients, scalars) of a group to one scalar for each direction (scalars,)."""


def robust_tally(rule: str, reports: Sequence[Report]) -> Tally:
    """What a group's reports amount to under a rule; the loss is their median, which a third cannot move far either."""
    scalars = np.array([report.scalars for report in reports], dtype=np.float64)
    count = len(reports)
    losses = [report.train_loss for report in reports]
    return Tally(
        clients=count,
        weight=count,
        scalars=tuple((count * RULES[rule](scalars)).tolist()),
        loss=count * float(np.median(losses)),
        skipped_steps=sum(report.skipped_steps for report in reports),
    )


def most_liars(clients: int) -> int:
    """How many of a group's clients may lie: a third, rounded down."""
    return clients // 3


def median(scalars: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median along each direction (Yin et al. 2018)."""
    middle: NDArray[np.float64] = np.median(scalars, axis=0)
    return middle


def trimmed_mean(scalars: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean along each direction without the largest and the smallest third (Yin et al. 2018)."""
    cut = most_liars(len(scalars))
    kept: NDArray[np.float64] = np.sort(scalars, axis=0)[cut : len(scalars) - cut].mean(axis=0)
    return kept


def krum(scalars: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scalars of the client that is nearest to its n - f - 2 nearest others (Blanchard et al. 2017).

    Along shared directions the distance of two clients' scalars is nearly that of their updates.
    """
    distances = np.square(scalars[:, None] - scalars[None]).sum(axis=2)
    neighbours = max(1, len(scalars) - most_liars(len(scalars)) - 2)
    nearest = np.sort(distances, axis=1)[:, 1 : 1 + neighbours].sum(axis=1)  # the first is the distance to itself
    chosen: NDArray[np.float64] = scalars[int(np.argmin(nearest))]
    return chosen


def sign_vote(scalars: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sign of most clients along each direction (FeedSign), times the median size of all their scalars.

    In FeedSign the size is 1; this one leaves the rate its meaning, and a third of the clients cannot move it far.
    """
    vote: NDArray[np.float64] = np.sign(np.sign(scalars).sum(axis=0)) * np.median(np.abs(scalars))
    return vote


RULES: dict[str, Rule] = {"median": median, "trimmed-mean": trimmed_mean, "krum": krum, "sign-vote": sign_vote}
