"""What every engine gives the training loop: a round's reports, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Protocol

from fedmezo.federation.round import ServerState
from fedmezo.records import Refusal, Report, RoundPlan, RoundRecord


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What came back from a round, and what it put on the wire, per client."""

    reports: tuple[Report, ...]
    bytes_down: Mapping[int, int]
    bytes_up: Mapping[int, int]
    num_batches: int  # that the clients worked through together
    refusals: tuple[Refusal, ...] = ()  # of what came instead of a report, or of one that cannot be


class Engine(Protocol):
    """Where clients run."""

    def barred(self, round_index: int) -> Set[int]:
        """The clients that have done wrong and are not to take part in this round."""
        ...

    def run_round(self, plan: RoundPlan, state: ServerState) -> RoundResult:
        """Send the plan to the cohort and collect its reports."""
        ...

    def close_round(self, plan: RoundPlan, record: RoundRecord) -> None:
        """Hear that the round of a plan is committed: whoever took part in it knows the state it started from."""
        ...
