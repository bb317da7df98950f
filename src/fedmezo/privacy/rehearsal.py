"""Secure sums with every party in one process: what a simulation runs, to the bytes that would cross the wire."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedmezo.federation.joining import KEY_BYTES
from fedmezo.federation.sums import Coding, Tally
from fedmezo.privacy.collector import Collector, Question
from fedmezo.privacy.keys import SESSION_BYTES, Group, KeyPair, fewest_left
from fedmezo.privacy.member import Member
from fedmezo.privacy.messages import (
    decode_masked,
    decode_pairs,
    decode_shares,
    encode_masked,
    encode_pairs,
    encode_question,
    encode_shares,
    wrapping_size,
)
from fedmezo.records import Report, RoundPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a round.

    Args:
        tallies: by group.
        bytes_down: by client, beyond its task.
        bytes_up: by client, in place of its report.
    """

    tallies: dict[int, Tally]
    bytes_down: dict[int, int]
    bytes_up: dict[int, int]


@dataclass(slots=True, eq=False)
class Rehearsal:
    """All clients of a run, each with keys of its own, and the server.

    Args:
        coding: how reports are summed.
        tolerated: share of a group that may leave.
    """

    coding: Coding
    tolerated: float
    _session: bytes = field(default_factory=lambda: secrets.token_bytes(SESSION_BYTES))
    _members: dict[int, Member] = field(default_factory=dict)

    def sum_up(self, plan: RoundPlan, reports: Sequence[Report]) -> Outcome:
        """The sums of a round's groups; a client of the plan without a report has left before it masked.

        A group of which too few are left has no sum.
        """
        outcome = Outcome({}, {}, {})
        by_client = {report.client: report for report in reports}
        for number in sorted(set(plan.groups)):
            members = tuple(c for c, group in zip(plan.cohort, plan.groups, strict=True) if group == number)
            tally = self._sum_group(self._group(plan.round, members, outcome), by_client, outcome)
            if tally is None:
                logger.warning("round %d: too few clients of group %d are left for a sum", plan.round, number)
            else:
                outcome.tallies[number] = tally
        return outcome

    def _group(self, round_index: int, clients: tuple[int, ...], outcome: Outcome) -> Group:
        for client in clients:
            outcome.bytes_down[client], outcome.bytes_up[client] = wrapping_size(len(clients)), 0
            if client not in self._members:
                self._members[client] = Member(client, self._session, KeyPair())
                outcome.bytes_up[client] += KEY_BYTES
        keys = tuple(self._members[client].public for client in clients)
        return Group(self._session, round_index, clients, keys, fewest_left(len(clients), self.tolerated))

    def _sum_group(self, group: Group, reports: Mapping[int, Report], outcome: Outcome) -> Tally | None:
        collector = Collector(group, self.coding.length)
        for client in group.members:
            if client in reports:
                masked = self._members[client].mask(group, self.coding.words(reports[client]))
                message = encode_masked(group.round, client, masked, self.coding.widths)
                outcome.bytes_up[client] += len(message)
                collector.take_words(client, decode_masked(message, self.coding.widths)[2])
        collector.close()
        while questions := collector.questions():
            for question in questions:
                self._answer(collector, question, outcome)
        if collector.is_lost:
            return None
        return self.coding.tally(collector.sum_of_width(self.coding.widths))

    def _answer(self, collector: Collector, question: Question, outcome: Outcome) -> None:
        member = self._members[question.client]
        outcome.bytes_down[question.client] += len(encode_question(question))
        if question.wards:
            shares = member.tell_shares(question.round, question.gone, question.wards)
            answer = encode_shares(question, shares)
            collector.take_shares(question, decode_shares(answer, question))
        else:
            answer = encode_pairs(question, member.tell_pairs(question.round, question.gone))
            collector.take_pairs(question, decode_pairs(answer, question))
        outcome.bytes_up[question.client] += len(answer)
