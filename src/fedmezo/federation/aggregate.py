"""From reports to the next theta: which reports count, with what weight, and how far apart the clients went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

import torch
from torch import Tensor

from fedmezo.federation.groups import moves_of_group
from fedmezo.federation.rates import LARGEST_LOSS, ClientHistory, Histories, mean_square
from fedmezo.records import Contribution, Refusal, Report, RoundPlan, RoundRecord, Segment
from fedmezo.zo.arithmetic import are_scalars, largest, round_coefficient, round_scalar
from fedmezo.zo.estimators.protocol import Estimator
from fedmezo.zo.noise import Purpose, Stream
from fedmezo.zo.replay import Address, Move, Pace, apply_, update_from_zero
from fedmezo.zo.rounding import apply_rounded_

SCALARS = "scalars"
WEIGHTS = "weights"

LARGEST_CHANGE = 10.0
"""Root mean square over the parameters of an update; an adapter's weights are far smaller."""
ENOUGH_TO_COMPARE = 3
"""Reports of which one can be told to be unlike the others."""


@dataclass(frozen=True, slots=True)
class ReportRules:
    """What a report must look like.

    Args:
        protocol: `scalars` or `weights`.
        estimator: the clients' estimator; None for first-order clients.
        steps: local steps of every client; None where each client passes over its own data (epochs).
        num_parameters: d.
        most_examples: that a client can process in a round; None where each passes over its own data.
        max_ratio: how many times the median of the reports a report may be in size; 0 is no limit.
    """

    protocol: str
    estimator: Estimator | None
    steps: int | None
    num_parameters: int
    most_examples: int | None = None
    max_ratio: float = 0.0


def sort_reports(
    plan: RoundPlan, state_hash: str, reports: Sequence[Report], rules: ReportRules, histories: Histories
) -> tuple[list[Report], list[Refusal]]:
    """The usable reports in the cohort's order, and the refused ones with the reason.

    First each on its own, then those that are left beside each other.

    Args:
        plan: of the round.
        state_hash: of the state that its clients start from.
        reports: as they came.
        rules: what they must look like.
        histories: how large each client's scalars were before; a few scalars of one round say little.
    """
    sound: dict[int, Report] = {}
    refusals = []
    for report in reports:
        reason = report_fault(report, plan, state_hash, rules)
        if reason is None and report.client in sound:
            reason = "a second report of the same client"
        if reason is None:
            sound[report.client] = report
        else:
            refusals.append(Refusal(report.client, reason))
    in_order = [sound[client] for client in plan.cohort if client in sound]
    unlike = _unlike_the_others(in_order, rules, histories) if rules.max_ratio else {}
    refusals += [Refusal(client, reason) for client, reason in unlike.items()]
    return [report for report in in_order if report.client not in unlike], refusals


def report_fault(report: Report, plan: RoundPlan, state_hash: str, rules: ReportRules) -> str | None:
    """What is wrong with a report in itself; None if nothing is."""
    if report.round != plan.round:
        return f"it is of round {report.round}, not {plan.round}"
    if not plan.includes(report.client):
        return "the client is not in this round's cohort"
    if report.state_hash != state_hash:
        return f"it started from the state {report.state_hash[:12]}, not {state_hash[:12]}"
    if not math.isfinite(report.train_loss):
        return "no local step had a finite loss"
    if not 0 <= report.train_loss <= LARGEST_LOSS:
        return f"its train loss is {report.train_loss:g} nats per token, which no model has"
    if (reason := _counts_fault(report, rules)) is not None:
        return reason
    if rules.protocol == SCALARS:
        return _scalars_fault(report.scalars, rules)
    return _update_fault(report.update, rules)


def _counts_fault(report: Report, rules: ReportRules) -> str | None:
    """What is wrong with the numbers of examples and steps; each step takes an example at least."""
    examples, skipped = report.num_examples, report.skipped_steps
    if examples < 1 or skipped < 0 or (rules.steps is not None and skipped > rules.steps):
        return f"{examples} examples and {skipped} skipped steps cannot be"
    if rules.most_examples is not None and examples > rules.most_examples:
        return f"it counts {examples} examples where its task has {rules.most_examples} at most"
    if report.scalars is not None and rules.estimator is not None:
        steps = len(report.scalars) // rules.estimator.directions
        if steps > examples + skipped:
            return f"{examples} examples and {skipped} skipped steps cannot be {steps} steps"
    return None


def _scalars_fault(scalars: tuple[float, ...] | None, rules: ReportRules) -> str | None:
    if scalars is None or rules.estimator is None:
        return "it carries no scalars"
    directions = rules.estimator.directions
    if rules.steps is not None and len(scalars) != rules.steps * directions:
        return f"it carries {len(scalars)} scalars, not {rules.steps * directions}"
    if not scalars or len(scalars) % directions:
        return f"it carries {len(scalars)} scalars, not a multiple of the {directions} directions of a step"
    limit, bound = round_scalar(rules.estimator.largest), largest(scalars)
    if bound <= limit and are_scalars(scalars):
        return None
    return next(fault for index, g in enumerate(scalars) if (fault := _scalar_fault(index, g, limit)) is not None)


def _scalar_fault(index: int, g: float, limit: float) -> str | None:
    if not math.isfinite(g):
        return f"scalar {index} is {g}"
    if abs(g) > limit:
        return f"scalar {index} is {g:g}, larger than {limit:g} in size"
    return None if are_scalars([g]) else f"scalar {index} is not a bfloat16 number"


def _update_fault(update: Tensor | None, rules: ReportRules) -> str | None:
    if update is None or update.shape != (rules.num_parameters,) or update.dtype != torch.float32:
        return f"it carries no update of {rules.num_parameters} float32 values"
    if not bool(torch.isfinite(update).all()):
        return "its update has values that are not finite"
    if (change := _norm(update) / math.sqrt(len(update))) > LARGEST_CHANGE:
        return f"its update changes a parameter by {change:g} in the mean, more than {LARGEST_CHANGE:g}"
    return None


def _unlike_the_others(reports: Sequence[Report], rules: ReportRules, histories: Histories) -> dict[int, str]:
    """By client, what makes a report far larger than the reports are in the median; of two nobody can tell."""
    if len(reports) < ENOUGH_TO_COMPARE:
        return {}
    what = "scalars are" if rules.protocol == SCALARS else "update is"
    sizes = [_size(report, rules, histories) for report in reports]
    faults = _larger(f"its {what}", reports, sizes, rules.max_ratio)
    if rules.most_examples is None:
        counts = [(float(report.num_examples + report.skipped_steps), math.inf) for report in reports]
        faults |= _larger("its number of examples is", reports, counts, rules.max_ratio)
    return faults


def _larger(
    what: str, reports: Sequence[Report], sizes: Sequence[tuple[float, float]], max_ratio: float
) -> dict[int, str]:
    """Faults by client of the reports whose size is too large; each size goes with the numbers that it was made of.

    Few numbers are given more room, since their root mean square may be small by chance: of a single normal number it
    is below a hundredth of what is usual once in 125 times.
    """
    typical = median_low([size for size, _ in sizes])
    faults = {}
    for report, (size, count) in zip(reports, sizes, strict=True):
        limit = max_ratio * 10 ** (2 / count)
        if typical > 0 and size > limit * typical:
            faults[report.client] = f"{what} {size / typical:.3g} times the reports' median, more than {limit:.3g}"
    return faults


def _size(report: Report, rules: ReportRules, histories: Histories) -> tuple[float, float]:
    """How large a client's report is, and of how many numbers that is made: scalars with those of its last rounds."""
    if report.scalars is None:
        directions = rules.steps * rules.estimator.directions if rules.steps and rules.estimator else math.inf
        return (0.0 if report.update is None else _norm(report.update)), directions
    known = histories.get(report.client, ClientHistory()).powers
    powers = [*known, mean_square(report.scalars)]
    return math.sqrt(sum(powers) / len(powers)), float(len(report.scalars) * len(powers))


def _norm(update: Tensor) -> float:
    return float(torch.linalg.vector_norm(update, dtype=torch.float64))


def average_weights(reports: Sequence[Report], *, equal: bool = False) -> list[float]:
    """w_i = n_i / sum n, or 1 / N if they are to be equal; of 16 significant bits."""
    counts = [1 if equal else report.num_examples for report in reports]
    return [round_coefficient(count / sum(counts)) for count in counts]


def apply_scalars_(theta: Tensor, record: RoundRecord, seed: int, estimator: Estimator) -> Tensor:
    """theta -= sum over i, k of c(w_i rate_i, g_ik) z_ik, in the order client, step, query; in place.

    Where directions are shared, c is the group's sum over its clients, in the order group, step, query. Theta that is
    bfloat16 is rounded at random once all moves are made.
    The server does this to close a round, and whoever replays, resumes or catches up does the same.
    """
    moves = [
        move
        for part in record.contributions
        for move in moves_of(part, record.round, seed, estimator, part.weight * part.rate)
    ]
    for group in record.groups:
        moves += moves_of_group(group, record.round, seed, estimator.directions)
    if theta.dtype == torch.bfloat16:
        return apply_rounded_(theta, moves, estimator.settings.noise, Stream(seed, Purpose.ROUNDING, record.round))
    return apply_(theta, moves, estimator.settings.noise)


def moves_of(part: Contribution, round_index: int, seed: int, estimator: Estimator, scale: float) -> list[Move]:
    """The moves of a client's reported steps: at its rate they are its own, at weight x rate its share."""
    return estimator.moves(Pace(scale, part.size), part.scalars or (), Address(seed, round_index, part.client))


def apply_updates_(theta: Tensor, contributions: Sequence[Contribution], updates: Sequence[Tensor]) -> Tensor:
    """theta += sum over i of w_i update_i, in the order of the cohort; in place."""
    for part, update in zip(contributions, updates, strict=True):
        theta.add_(update.to(theta.device), alpha=part.weight)
    return theta


def drifts_of_updates(updates: Sequence[Tensor], segments: Sequence[Segment]) -> list[float]:
    """D_i = sum over tensors of the L2 norm of (Delta_i - mean Delta), the paper's model-diff."""
    totals = [0.0] * len(updates)
    for segment in segments:
        _add_distances(totals, [update[segment.start : segment.stop] for update in updates])
    return totals


def drifts_of_scalars(
    contributions: Sequence[Contribution],
    round_index: int,
    seed: int,
    estimator: Estimator,
    segments: Sequence[Segment],
    device: torch.device,
) -> list[float]:
    """`drifts_of_updates` where the updates are regenerated, one tensor of the model at a time."""
    moves = [moves_of(part, round_index, seed, estimator, part.rate) for part in contributions]
    noise, totals = estimator.settings.noise, [0.0] * len(contributions)
    for segment in segments:
        updates = [update_from_zero(m, noise, segment.start, segment.stop, device) for m in moves]
        _add_distances(totals, updates)
    return totals


def _add_distances(totals: list[float], updates: Sequence[Tensor]) -> None:
    stacked = torch.stack(list(updates))  # (clients, elements of one tensor)
    distances = torch.linalg.vector_norm(stacked - stacked.mean(dim=0), dim=1, dtype=torch.float64)
    for i, distance in enumerate(distances.tolist()):
        totals[i] += distance
