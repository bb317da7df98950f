"""What each party of a run did to it, from the log alone: how far it agrees with the others, and the run without it.

A party is a client, or a direction group where clients share directions. Its update is what all its moves add up to,
made again from the journal; the run without it is a replay that leaves its moves out and gives their weight to the
others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmezo.federation.aggregate import moves_of
from fedmezo.federation.course import Course
from fedmezo.federation.groups import moves_of_group
from fedmezo.federation.server_optimizers import NO_MOMENTS
from fedmezo.records import RoundRecord
from fedmezo.zo.arithmetic import round_coefficient
from fedmezo.zo.replay import Move, update_from_zero

BYTES_AT_ONCE = 64 << 20
"""Of parts of updates that are compared."""
CHANCE = 4.0
"""Standard deviations of a cosine of unrelated updates, 1 / sqrt(d), that are taken for more than chance."""
CLEARLY = 0.5
"""A cosine of this size is no chance either, however few the parameters."""
LARGER = 5.0
"""Times the median size of an update per round, beyond which one is unlike the others: the server's own limit."""
WORTH = 0.01
"""Share of the loss by which a run must be better without a party for that to be said."""

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Party:
    """What was found of one client or group.

    Args:
        number: which.
        rounds: that it took part in.
        size: norm of its update, per root of its rounds.
        agreement: cosine of its update with the sum of the others', each of them taken as long as any; not a number
            where there are none.
        loss_without: of the run without it; not a number where that was not measured.
    """

    number: int
    rounds: int
    size: float
    agreement: float
    loss_without: float = math.nan


def parties_of(records: Sequence[RoundRecord]) -> dict[int, int]:
    """The parties of some rounds, in ascending order, with the number of rounds that each took part in."""
    counts: dict[int, int] = {}
    for record in records:
        for number in _parties(record):
            counts[number] = counts.get(number, 0) + 1
    return dict(sorted(counts.items()))


def _parties(record: RoundRecord) -> list[int]:
    return [part.client for part in record.contributions] + [part.group for part in record.groups]


def updates_by_party(records: Sequence[RoundRecord], course: Course) -> dict[int, list[Move]]:
    """All moves of each party, as they counted in the average."""
    moves: dict[int, list[Move]] = {number: [] for number in parties_of(records)}
    seed, estimator = course.seed, course.estimator
    for record in records:
        for part in record.contributions:
            moves[part.client] += moves_of(part, record.round, seed, estimator, part.weight * part.rate)
        for group in record.groups:
            moves[group.group] += moves_of_group(group, record.round, seed, estimator.directions)
    return moves


def gram_of(
    moves: Sequence[Sequence[Move]], course: Course, size: int, device: torch.device, progress: Progress
) -> Tensor:
    """Inner products of the updates (parties, parties) float64, each of `size` elements, made again part by part."""
    gram = torch.zeros(len(moves), len(moves), dtype=torch.float64)
    step = max(1, BYTES_AT_ONCE // (4 * len(moves)))
    for start in range(0, size, step):
        stop = min(start + step, size)
        noise = course.estimator.settings.noise
        rows = torch.stack([update_from_zero(some, noise, start, stop, device) for some in moves]).double()
        gram += (rows @ rows.T).cpu()
        progress(stop, size)
    return gram


def compare(records: Sequence[RoundRecord], course: Course, theta: Tensor, progress: Progress) -> list[Party]:
    """Every party beside the others; theta (d,) says how long an update is, and where to make it."""
    moves, rounds = updates_by_party(records, course), parties_of(records)
    gram = gram_of(list(moves.values()), course, len(theta), theta.device, progress)
    norms = gram.diagonal().clamp(min=0.0).sqrt()
    cosines = (gram / torch.outer(norms, norms)).nan_to_num(0.0)  # of what did not move, 0
    total = cosines.sum(0)
    found = []
    for i, number in enumerate(moves):
        own = float(cosines[i, i])
        with_others, others = float(total[i]) - own, float(cosines.sum() - 2 * total[i]) + own
        agreement = with_others / math.sqrt(others) if others > 0 else math.nan
        found.append(Party(number, rounds[number], float(norms[i]) / math.sqrt(rounds[number]), agreement))
    return found


def without(record: RoundRecord, number: int) -> RoundRecord:
    """The round with the weight of a party given to the others; void where there are none."""
    own = sum(part.weight for part in record.contributions if part.client == number)
    kept = 1.0 - own
    parts = tuple(
        replace(part, weight=min(1.0, round_coefficient(part.weight / kept)) if kept > 0 else 0.0)
        for part in record.contributions
        if part.client != number
    )
    total = sum(group.weight for group in record.groups)
    others = total - sum(group.weight for group in record.groups if group.group == number)
    groups = tuple(
        replace(group, coefficients=tuple(round_coefficient(c * total / others) for c in group.coefficients))
        for group in record.groups
        if group.group != number
    )
    return replace(record, contributions=parts, groups=groups)


def replay_without(records: Sequence[RoundRecord], number: int | None, course: Course, theta: Tensor) -> Tensor:
    """The state after the rounds without a party, or with all of them, from theta (d,), which is left as it is."""
    state, moments = theta.clone(), NO_MOMENTS
    for record in records:
        moments = course.advance_(state, moments, record if number is None else without(record, number))
    return state


def remarks(party: Party, others: Sequence[Party], size: int, loss: float) -> list[str]:
    """What is unlike the others about a party.

    Args:
        party: which.
        others: all parties, this one included.
        size: d of an update.
        loss: of the run with all of them; not a number where it was not measured.
    """
    found = []
    if party.agreement < -min(CLEARLY, CHANCE / math.sqrt(size)):
        found.append("pulls against the others")
    typical = sorted(other.size for other in others)[(len(others) - 1) // 2]
    if len(others) > 2 and party.size > LARGER * typical > 0:
        found.append(f"moves {party.size / typical:.3g} times as far as the others")
    if party.loss_without < loss * (1 - WORTH):
        found.append(f"the run is better without it, by {loss - party.loss_without:.3g}")
    return found
