"""All clients in this process, one group after the other. Messages are measured, not made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmezo.engines.rounds import RoundResult
from fedmezo.federation.clients import ClientWork
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.messages import report_size, task_size
from fedmezo.federation.round import ServerState
from fedmezo.records import ClientData, Report, RoundPlan, RoundRecord

if TYPE_CHECKING:  # its libraries are an extra
    from fedmezo.privacy.rehearsal import Rehearsal


@dataclass(frozen=True, slots=True)
class Simulation:
    """Runs the clients of a round in groups, so that memory does not grow with their number.

    Args:
        work: the clients' local steps.
        data: every client's training examples.
        downlink: what each client knows.
        group_size: clients that are in memory, and may share a forward, at once.
        rehearsal: sums the reports so that only the sums are seen; None to hand them over.
    """

    work: ClientWork
    data: Mapping[int, ClientData]
    downlink: Downlink
    group_size: int = 1
    rehearsal: Rehearsal | None = None

    def barred(self, round_index: int) -> Set[int]:
        """None: the clients are ours."""
        return frozenset()

    def gives_up(self) -> bool:
        """At once: the same reports would come again."""
        return True

    def recall(self, records: Sequence[RoundRecord]) -> None:
        """Nothing to learn of clients that are ours."""

    def run_round(self, plan: RoundPlan, state: ServerState) -> RoundResult:
        """Send the plan to the cohort and collect its reports."""
        tasks = plan.tasks()
        down = {task.client: task_size(task, self.downlink.way(task.client, state)) for task in tasks}
        reports: list[Report] = []
        for first in range(0, len(tasks), self.group_size):
            reports += self.work.run(tasks[first : first + self.group_size], state.theta, state.hash, self.data)
        batches = sum(self.data[client].num_batches for client in plan.cohort)
        if self.rehearsal is not None:
            return _summed(self.rehearsal, plan, reports, down, batches)
        up = {report.client: report_size(report) for report in reports}
        return RoundResult(tuple(reports), down, up, batches)

    def close_round(self, plan: RoundPlan, record: RoundRecord) -> None:
        """Remember a committed round; everybody in its cohort knows the state it started from."""
        self.downlink.close(record, plan.cohort)


def _summed(
    rehearsal: Rehearsal, plan: RoundPlan, reports: Sequence[Report], down: Mapping[int, int], num_batches: int
) -> RoundResult:
    """The round of which the sums alone are known; a client without a finite loss does not take part in them."""
    outcome = rehearsal.sum_up(plan, [report for report in reports if math.isfinite(report.train_loss)])
    received = {client: count + outcome.bytes_down[client] for client, count in down.items()}
    return RoundResult((), received, outcome.bytes_up, num_batches, tallies=outcome.tallies)
