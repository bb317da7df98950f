"""Was this example among a client's? What the numbers that a server sees say about it: an attack of our own.

An example that a client trained on has had a part in its scalars: they lean towards the example's own derivatives along
the same directions, which anybody can compute who has the example, the base model and the journal. The score is the
cosine of the two over many directions, once what all candidates have in common is taken off. Where clients share
directions, what is seen of a client is the sum of the group that it was in.

How well scores tell examples of the client from held-out ones is the area under the curve (AUC): 0.5 is a coin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmezo.federation.course import Course
from fedmezo.federation.groups import deal
from fedmezo.federation.server_optimizers import NO_MOMENTS
from fedmezo.records import Batch, RoundRecord
from fedmezo.studies.intervals import Interval
from fedmezo.zo.replay import Address, Pace, apply_, perturb

MOST_DIRECTIONS = 120
"""Of a client: of more, every so-manieth."""

Progress = Callable[[int, int | None], None]
Scores = NDArray[np.float64]


class ByExample(Protocol):
    """A model whose loss can be had example by example."""

    def example_losses(self, theta: Tensor, batch: Batch) -> list[float]:
        """The loss of each row at theta (d,)."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server saw of a client in one round.

    Args:
        record: of the round.
        owner: whose directions they are.
        scalars: along each of them, in any unit.
        pace: of the client's own steps, which can be followed; None where only a sum is known.
    """

    record: RoundRecord
    owner: int
    scalars: tuple[float, ...]
    pace: Pace | None


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One client under attack.

    Args:
        seen: of it.
        candidates: rows to judge; the first are examples of its own, the others are nobody's.
        members: how many are its own.
    """

    seen: Sequence[Seen]
    candidates: Batch
    members: int


@dataclass(frozen=True, slots=True)
class Membership:
    """What the attack found.

    Args:
        auc: with its 95 % interval.
        clients: that were attacked.
        candidates: examples that were judged, half of them the clients'.
        directions: of each client.
    """

    auc: Interval
    clients: int
    candidates: int
    directions: int


def seen_of(
    records: Sequence[RoundRecord], client: int, cohorts: Mapping[int, Sequence[int]], seed: int, groups: int
) -> list[Seen]:
    """What was seen of a client, round by round.

    Args:
        records: of the run.
        client: whose.
        cohorts: of each round, where clients share directions.
        seed: of the run.
        groups: of clients that share directions; 0 where each has its own.
    """
    found = []
    for record in records:
        if not groups:
            found += [
                Seen(record, client, part.scalars, Pace(part.rate, part.size))
                for part in record.contributions
                if part.client == client and part.scalars
            ]
        elif client in (cohort := list(cohorts[record.round])):
            group = deal(seed, record.round, len(cohort), groups)[cohort.index(client)]
            found += [Seen(record, group, g.coefficients, None) for g in record.groups if g.group == group]
    return found


def scores(
    model: ByExample, course: Course, records: Sequence[RoundRecord], theta: Tensor, seen: Sequence[Seen], batch: Batch
) -> tuple[Scores, int]:
    """The score of each row of a batch, and from how many directions; theta (d,) is the state before round 0."""
    by_round = {one.record.round: one for one in seen}
    total = sum(len(one.scalars) for one in seen)
    every, count = max(1, -(-total // MOST_DIRECTIONS)), 0
    state, moments = theta.clone(), NO_MOMENTS
    own: list[list[float]] = []
    told: list[float] = []
    for record in records:
        if (one := by_round.get(record.round)) is not None:
            for index, local in _thetas(course, one, state):
                if count % every == 0 and one.scalars[index]:
                    own.append(_derivatives(model, course, one, index, local, batch))
                    told.append(one.scalars[index])
                count += 1
        moments = course.advance_(state, moments, record)
    return _cosines(np.array(own), np.array(told), batch.num_examples), len(told)


def auc_of(members: Scores, others: Scores) -> Interval:
    """The share of pairs in which the member has the higher score, with its interval (Hanley and McNeil 1982)."""
    wins = np.sign(members[:, None] - others[None]).mean() / 2 + 0.5
    m, n = len(members), len(others)
    first, second = wins / (2 - wins), 2 * wins**2 / (1 + wins)
    variance = (wins * (1 - wins) + (m - 1) * (first - wins**2) + (n - 1) * (second - wins**2)) / (m * n)
    reach = 1.96 * math.sqrt(max(0.0, variance))
    return Interval(float(wins), max(0.0, float(wins) - reach), min(1.0, float(wins) + reach))


def infer(
    model: ByExample,
    course: Course,
    records: Sequence[RoundRecord],
    theta: Tensor,
    targets: Sequence[Target],
    progress: Progress,
) -> Membership:
    """Attack some clients.

    Args:
        model: of the run.
        course: of the run.
        records: of the run.
        theta: (d,) the state before round 0.
        targets: whom.
        progress: hears how many clients are done.
    """
    members, others, directions = [], [], 0
    for done, target in enumerate(targets, 1):
        found, directions = scores(model, course, records, theta, target.seen, target.candidates)
        members.append(found[: target.members])
        others.append(found[target.members :])
        progress(done, len(targets))
    count = sum(map(len, members)) + sum(map(len, others))
    return Membership(auc_of(np.concatenate(members), np.concatenate(others)), len(targets), count, directions)


def _thetas(course: Course, one: Seen, state: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The index of each scalar of a round, with the theta at which it was measured as far as that is known."""
    directions = course.estimator.directions
    local = state if one.pace is None else state.clone()
    for index in range(len(one.scalars)):
        yield index, local
        step, query = divmod(index, directions)
        if one.pace is not None and query == directions - 1:
            address, so_far = Address(course.seed, one.record.round, one.owner), one.scalars[: index + 1]
            moves = course.estimator.moves(one.pace, so_far, address, from_step=step)
            apply_(local, moves, course.estimator.settings.noise)


def _derivatives(model: ByExample, course: Course, one: Seen, index: int, theta: Tensor, batch: Batch) -> list[float]:
    """Each row's derivative along the direction of a scalar."""
    settings = course.estimator.settings
    stream = Address(course.seed, one.record.round, one.owner).stream(*divmod(index, course.estimator.directions))
    (z,) = settings.noise.directions([stream], 0, len(theta), theta.device)
    plus, minus = (model.example_losses(perturb(theta, z, sign * settings.step_size), batch) for sign in (1, -1))
    return [(up - down) / (2 * settings.step_size) for up, down in zip(plus, minus, strict=True)]


def _cosines(own: Scores, told: Scores, rows: int) -> Scores:
    """Of each column of `own` (directions, rows) with `told` (directions,), each row's mean taken off."""
    if not len(told):
        return np.zeros(rows)
    own = own - own.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(own, axis=0) * np.linalg.norm(told)
    cosines: Scores = np.divide(told @ own, norms, out=np.zeros(rows), where=norms > 0)
    return cosines
