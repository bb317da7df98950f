"""What every engine gives the training loop: a round's reports, and what they cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from fedmezo.errors import TrainingError
from fedmezo.federation.round import Federation, ServerState, close_round_, close_tallies_, plan_round
from fedmezo.federation.sums import Tally
from fedmezo.records import Refusal, Report, RoundPlan, RoundRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What came back from a round, and what it put on the wire, per client."""

    reports: tuple[Report, ...]
    bytes_down: Mapping[int, int]
    bytes_up: Mapping[int, int]
    num_batches: int  # that the clients worked through together
    refusals: tuple[Refusal, ...] = ()  # of what came instead of a report, or of one that cannot be
    tallies: Mapping[int, Tally] | None = None  # of each group under secure sums, in place of all reports


class Engine(Protocol):
    """Where clients run."""

    def barred(self, round_index: int) -> Set[int]:
        """The clients that have done wrong and are not to take part in this round."""
        ...

    def run_round(self, plan: RoundPlan, state: ServerState) -> RoundResult:
        """Send the plan to the cohort and collect its reports."""
        ...

    def gives_up(self) -> bool:
        """Whether there is no use in running the last round again, which had too few usable reports."""
        ...

    def recall(self, records: Sequence[RoundRecord]) -> None:
        """Hear of the rounds that an earlier process has closed, before the first one of this."""
        ...

    def close_round(self, plan: RoundPlan, record: RoundRecord) -> None:
        """Hear that the round of a plan is committed: whoever took part in it knows the state it started from."""
        ...


class ClosedRound(NamedTuple):
    """A round that was run and closed."""

    state: ServerState  # after it
    plan: RoundPlan
    record: RoundRecord
    result: RoundResult


def closed_round_(engine: Engine, federation: Federation, state: ServerState) -> ClosedRound:
    """Run a round and close it, theta being changed in place.

    With too few usable reports it is tried again, without who has been barred meanwhile.

    Raises:
        TrainingError: it had too few as often as the engine tries; theta is as it was.
    """
    refusals: tuple[Refusal, ...] = ()
    while True:
        plan = plan_round(federation, state, engine.barred(state.round))
        result = engine.run_round(plan, state)
        refusals += result.refusals
        try:
            if result.tallies is None:
                after, record = close_round_(federation, state, plan, result.reports, refusals)
            else:
                after, record = close_tallies_(federation, state, plan, result.tallies, refusals)
        except TrainingError as error:
            if engine.gives_up():
                raise
            logger.warning("%s. The round is tried again", error)
        else:
            return ClosedRound(after, plan, record, replace(result, refusals=refusals))
