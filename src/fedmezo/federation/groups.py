"""Directions that clients share: who is in which group, and where a group's sum leads.

All clients of a group go along the same directions, each from its own theta by its own scalars. Their average over such
a direction is one number, whatever their number: sum of weight x rate x scalar. That is FedAvg of their local steps as
it is with directions of their own, for the average of the updates is linear in the scalars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedmezo.federation.robust import MEAN, robust_tally
from fedmezo.federation.sums import Coding, Tally, total_of
from fedmezo.records import GroupSum, Report, RoundPlan
from fedmezo.zo.arithmetic import round_coefficient
from fedmezo.zo.noise import Purpose, Stream, permutation
from fedmezo.zo.replay import Address, Move


def deal(seed: int, round_index: int, members: int, groups: int) -> tuple[int, ...]:
    """The group of each member of a cohort, dealt in turn in an order of the round's own: sizes differ by one."""
    order = permutation(Stream(seed, Purpose.GROUPS, round_index), members).tolist()
    dealt = [0] * members
    for turn, member in enumerate(order):
        dealt[member] = turn % groups
    return tuple(dealt)


def tallies_of(plan: RoundPlan, reports: Sequence[Report], coding: Coding, aggregation: str) -> dict[int, Tally]:
    """What the usable reports of each group amount to.

    Args:
        plan: of the round.
        reports: of its clients.
        coding: how they are summed.
        aggregation: `mean`, or a rule of `robust`.
    """
    group_of = dict(zip(plan.cohort, plan.groups, strict=True))
    by_group: dict[int, list[Report]] = {}
    for report in reports:
        by_group.setdefault(group_of[report.client], []).append(report)
    if aggregation != MEAN:
        return {group: robust_tally(aggregation, some) for group, some in by_group.items()}
    enough = {group: some for group, some in by_group.items() if len(some) >= coding.fewest}
    return {group: coding.tally(total_of(map(coding.words, some))) for group, some in enough.items()}


def settle(tallies: Mapping[int, Tally], rate: float, directions: int) -> tuple[GroupSum, ...]:
    """What a round does along each group's directions, in the groups' order.

    Args:
        tallies: of the groups that have any weight.
        rate: of all clients.
        directions: of a step: the mean over them is taken.
    """
    total = sum(tally.weight for tally in tallies.values())
    scale = rate / (total * directions)
    return tuple(
        GroupSum(
            group=group,
            clients=tally.clients,
            weight=tally.weight,
            train_loss=tally.loss / tally.weight,
            skipped_steps=tally.skipped_steps,
            coefficients=tuple(round_coefficient(scale * scalar) for scalar in tally.scalars),
            clipped=tally.clipped,
        )
        for group, tally in sorted(tallies.items())
    )


def moves_of_group(part: GroupSum, round_index: int, seed: int, directions: int) -> list[Move]:
    """The moves along a group's directions, in the order step, query."""
    address = Address(seed, round_index, part.group)
    return [
        Move(address.stream(*divmod(index, directions)), coefficient)
        for index, coefficient in enumerate(part.coefficients)
    ]
