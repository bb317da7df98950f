"""One federated round as the server sees it: plan, then close. Between the two, an engine runs the clients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from fedmezo.errors import TrainingError
from fedmezo.federation.aggregate import (
    SCALARS,
    ReportRules,
    apply_updates_,
    average_weights,
    drifts_of_scalars,
    drifts_of_updates,
    sort_reports,
)
from fedmezo.federation.course import Course, hash_of
from fedmezo.federation.groups import deal, settle, tallies_of
from fedmezo.federation.rates import (
    MODEL_DIFF,
    ClientHistory,
    RateStrategy,
    client_rates,
    common_rate,
    known_size,
    remember,
)
from fedmezo.federation.robust import MEAN
from fedmezo.federation.schedule import CONSTANT, RateSchedule
from fedmezo.federation.server_optimizers import FEDAVG, PLAIN_AVERAGE, Moments, ServerOptimizer, server_step_
from fedmezo.federation.sums import Coding, FixedPoint, Tally
from fedmezo.federation.trust import Trust, train_loss
from fedmezo.records import Contribution, GroupSum, Refusal, Report, RoundPlan, RoundRecord, Segment
from fedmezo.zo.arithmetic import round_coefficient, state_hash
from fedmezo.zo.noise import Purpose, Stream, permutation

HOST = torch.device("cpu")

Weigh: TypeAlias = Callable[[Sequence[Report]], Sequence[float]]
"""From the usable reports of a round, in the cohort's order, to the weight of each in the average."""


@dataclass(frozen=True, slots=True)
class Federation:
    """The choices of a federated run that the server needs in each round.

    Args:
        seed: run seed.
        num_clients: clients of the federation.
        cohort_size: clients sampled in each round, from 1 to `num_clients`.
        min_clients: usable reports without which a round cannot be closed.
        equal_weights: every usable report weighs the same, whatever its number of examples.
        weigh: weights of a program's own instead, which the journal keeps as it keeps any.
        groups: how many groups of clients share directions; 0 where each client has its own.
        aggregation: how a group's scalars become one for each direction: `mean`, or a rule of `federation.robust`.
        coding: how the reports of a group are summed, where not as they are; see `fixed_point`.
        strategy: the learning rates.
        schedule: what is left of them in each round.
        tells_losses: clients' losses are known; not where noise hides clients or examples.
        trusting: take every round, whatever its loss; else see `federation.trust`.
        rules: what a report must look like; holds the protocol and the estimator.
        segments: the trainable tensors.
        server: what becomes of the average.
        lone_client: the only client that ever takes part, where one trains alone.
        device: where directions are generated. Theta itself is on the host, so that a GPU has room for the clients'.
    """

    seed: int
    num_clients: int
    cohort_size: int
    min_clients: int
    equal_weights: bool
    strategy: RateStrategy
    rules: ReportRules
    segments: tuple[Segment, ...]
    schedule: RateSchedule = CONSTANT
    tells_losses: bool = True
    trusting: bool = True
    server: ServerOptimizer = PLAIN_AVERAGE
    lone_client: int | None = None
    weigh: Weigh | None = None
    groups: int = 0
    aggregation: str = MEAN
    coding: Coding | None = None
    device: torch.device = HOST

    def codes(self) -> Coding:
        """How the reports of a group are summed."""
        return self.coding or self.fixed_point()

    def fixed_point(self) -> FixedPoint:
        """How the reports of a group are summed as they are.

        Raises:
            ConfigError: they cannot be; see there.
        """
        rules = self.rules
        assert rules.estimator is not None, "groups share the directions of zeroth-order clients"
        assert rules.steps is not None, "which all take as many steps"
        assert rules.most_examples is not None, "and so as many examples at most"
        scalars, largest = rules.steps * rules.estimator.directions, rules.estimator.largest
        return FixedPoint(scalars, self.cohort_size, rules.most_examples, largest, self.equal_weights)


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """All that the server carries from round to round."""

    round: int  # the next round to run; theta is the state before it
    theta: Tensor  # (d,) float32
    hash: str  # state hash of theta
    histories: dict[int, ClientHistory]
    moments: Moments = field(default_factory=dict)  # of the server's optimiser
    trust: Trust = field(default_factory=Trust)  # in the rate, unless every round is taken


def initial_state(theta: Tensor) -> ServerState:
    """The state before round 0."""
    return ServerState(0, theta, state_hash(theta), {})


def plan_round(federation: Federation, state: ServerState, barred: Collection[int] = ()) -> RoundPlan:
    """The cohort, a function of (seed, round), in ascending order, and each member's rate.

    Whoever is barred gives place to the next in order; as many of them stay as are needed for the fewest reports.
    """
    seed, here = federation.seed, state.round
    cohort = cohort_of(federation, here, barred)
    share = federation.schedule.share(here) * state.trust.share
    if federation.groups:
        rates = (common_rate(federation.strategy, seed, here, share),) * len(cohort)
        return RoundPlan(here, cohort, rates, groups=deal(seed, here, len(cohort), federation.groups))
    rates = client_rates(federation.strategy, seed, here, cohort, state.histories, share)
    return RoundPlan(here, cohort, rates, known_size(state.histories))


def cohort_of(federation: Federation, round_index: int, barred: Collection[int] = ()) -> tuple[int, ...]:
    """Who takes part in a round, in ascending order."""
    if federation.lone_client is not None:
        return (federation.lone_client,)
    order = permutation(Stream(federation.seed, Purpose.COHORT, round_index), federation.num_clients)
    if not barred:
        return tuple(sorted(order[: federation.cohort_size].tolist()))
    by_turn: list[int] = order.tolist()
    welcome = [client for client in by_turn if client not in barred][: federation.cohort_size]
    missing = max(0, federation.min_clients - len(welcome))
    return tuple(sorted(welcome + [client for client in by_turn if client in barred][:missing]))


def close_round_(
    federation: Federation,
    state: ServerState,
    plan: RoundPlan,
    reports: Sequence[Report],
    earlier: Sequence[Refusal] = (),
) -> tuple[ServerState, RoundRecord]:
    """Average the usable reports into theta, which is changed in place, and record what was done.

    Args:
        federation: the server's choices.
        state: before the round.
        plan: of the round.
        reports: of its clients.
        earlier: what was refused before it was a report.

    Raises:
        TrainingError: fewer than `min_clients` reports are usable; theta is as it was.
    """
    accepted, refused = sort_reports(plan, state.hash, reports, federation.rules, state.histories)
    refusals = [*earlier, *refused]
    if len(accepted) < federation.min_clients:
        raise TrainingError(_too_few(federation, plan, len(accepted), refusals))
    if plan.groups:
        tallies = tallies_of(plan, accepted, federation.codes(), federation.aggregation)
        return close_tallies_(federation, state, plan, tallies, refusals)
    contributions = _contributions(plan, accepted, _weights(federation, accepted))
    if federation.strategy.name == MODEL_DIFF:
        contributions = _with_drifts(federation, state, contributions, accepted)
    record = RoundRecord(plan.round, plan.cohort, contributions, tuple(refusals), state_hash="")
    if not federation.trusting and not state.trust.takes(train_loss(record)):
        record = replace(record, contributions=tuple(replace(part, weight=0.0) for part in contributions))
    if federation.rules.protocol == SCALARS:
        after = replay_round_(federation, state, record)
    else:
        moments = _average_(federation, state, record.contributions, accepted)
        after = _after(federation, state, record, moments, state_hash(state.theta))
    return after, replace(record, state_hash=after.hash)


def close_tallies_(
    federation: Federation,
    state: ServerState,
    plan: RoundPlan,
    tallies: Mapping[int, Tally],
    refusals: Sequence[Refusal] = (),
) -> tuple[ServerState, RoundRecord]:
    """Close a round of which each group's sum is known, and no report; see `close_round_`.

    Args:
        federation: the server's choices.
        state: before the round.
        plan: of the round.
        tallies: by group.
        refusals: of reports that are not in the sums.

    Raises:
        TrainingError: fewer than `min_clients` clients are in the sums; theta is as it was.
    """
    estimator = federation.rules.estimator
    assert estimator is not None, "groups share the directions of zeroth-order clients"
    counted = {group: tally for group, tally in tallies.items() if tally.weight > 0}
    clients = sum(tally.clients for tally in counted.values())
    if clients < max(1, federation.min_clients):
        raise TrainingError(_too_few(federation, plan, clients, refusals))
    rate = plan.rates[0]
    groups = settle(counted, rate, estimator.directions)
    record = RoundRecord(plan.round, (), (), tuple(refusals), state_hash="", groups=groups, common_rate=rate)
    if not federation.trusting and not state.trust.takes(train_loss(record)):
        record = replace(record, groups=tuple(map(_untaken, groups)))
    after = replay_round_(federation, state, record)
    return after, replace(record, state_hash=after.hash)


def _untaken(group: GroupSum) -> GroupSum:
    return replace(group, coefficients=(0.0,) * len(group.coefficients))


def replay_round_(federation: Federation, state: ServerState, record: RoundRecord) -> ServerState:
    """The state after a recorded round of the `scalars` protocol; theta is changed in place."""
    estimator, host = federation.rules.estimator, state.theta.device
    assert estimator is not None, "the scalars protocol has zeroth-order clients"
    theta = state.theta.to(federation.device)
    moments = {name: moment.to(federation.device) for name, moment in state.moments.items()}
    after = Course(federation.seed, estimator, federation.server).advance_(theta, moments, record)
    state.theta.copy_(theta)
    on_host = {name: moment.to(host) for name, moment in after.items()}
    return _after(federation, state, record, on_host, hash_of(state.theta, on_host))


def _average_(
    federation: Federation, state: ServerState, contributions: Sequence[Contribution], accepted: Sequence[Report]
) -> Moments:
    """Move theta by the reported updates; returns the moments of the server's optimiser."""
    updates = [report.update for report in accepted if report.update is not None]
    if not any(part.weight for part in contributions):
        return state.moments
    if federation.server.method == FEDAVG:  # added one by one: no second vector of the model's size
        apply_updates_(state.theta, contributions, updates)
        return {}
    delta = apply_updates_(torch.zeros_like(state.theta), contributions, updates)
    return server_step_(state.theta, delta, state.moments, federation.server)


def _after(
    federation: Federation, state: ServerState, record: RoundRecord, moments: Moments, digest: str
) -> ServerState:
    histories = remember(state.histories, record, federation.rules.estimator)
    trust = trust_after(federation, state.trust, record)
    return ServerState(record.round + 1, state.theta, digest, histories, moments, trust)


def trust_after(federation: Federation, trust: Trust, record: RoundRecord) -> Trust:
    """The trust in the rate after a recorded round."""
    return trust if federation.trusting else trust.after(train_loss(record))


def _weights(federation: Federation, accepted: Sequence[Report]) -> list[float]:
    if federation.weigh is None:
        return average_weights(accepted, equal=federation.equal_weights)
    own = [float(weight) for weight in federation.weigh(accepted)]
    if len(own) != len(accepted) or not all(0 <= weight <= 1 for weight in own):
        raise TrainingError(f"the weights {own} of {len(accepted)} reports must be as many numbers from 0 to 1")
    return [round_coefficient(weight) for weight in own]


def _contributions(plan: RoundPlan, accepted: Sequence[Report], weights: Sequence[float]) -> tuple[Contribution, ...]:
    rates = dict(zip(plan.cohort, plan.rates, strict=True))
    return tuple(
        Contribution(
            client=report.client,
            rate=rates[report.client],
            weight=weight,
            num_examples=report.num_examples,
            train_loss=report.train_loss,
            skipped_steps=report.skipped_steps,
            scalars=report.scalars,
            size=plan.size,
        )
        for report, weight in zip(accepted, weights, strict=True)
    )


def _with_drifts(
    federation: Federation, state: ServerState, contributions: Sequence[Contribution], accepted: Sequence[Report]
) -> tuple[Contribution, ...]:
    estimator, segments = federation.rules.estimator, federation.segments
    if federation.rules.protocol == SCALARS and estimator is not None:
        drifts = drifts_of_scalars(contributions, state.round, federation.seed, estimator, segments, federation.device)
    else:
        drifts = drifts_of_updates([r.update for r in accepted if r.update is not None], segments)
    return tuple(replace(part, drift=drift) for part, drift in zip(contributions, drifts, strict=True))


def _too_few(federation: Federation, plan: RoundPlan, usable: int, refusals: Sequence[Refusal]) -> str:
    reasons = dict.fromkeys(f"client {refusal.client}: {refusal.reason}" for refusal in refusals)
    return (
        f"round {plan.round}: {usable} usable reports of {len(plan.cohort)} clients, but at least "
        f"{federation.min_clients} are needed (federate.min_clients). {'; '.join(reasons) or 'no report was refused'}"
    )
