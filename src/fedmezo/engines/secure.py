"""Secure sums over a transport: who is in which group, whose words are there, and what is asked of whom.

The groups of a round are fixed once the clients that can be reached are ready, since each must know the others' keys
before it masks. A client that cannot be reached then, or that comes with a new key, is left out of the round.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from fedmezo.errors import RunError
from fedmezo.federation.sums import Coding, Tally
from fedmezo.privacy.collector import Collector, Question
from fedmezo.privacy.extra import SMALLEST_GROUP
from fedmezo.privacy.keys import SESSION_BYTES, Group, fewest_left
from fedmezo.privacy.member import Masked
from fedmezo.privacy.messages import (
    decode_masked,
    decode_pairs,
    decode_shares,
    encode_question,
    is_masked,
    wrap_task,
)
from fedmezo.records import RoundPlan

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class SecureSums:
    """The server's side of the sums of a run.

    Args:
        coding: what words mean.
        tolerated: share of a group that may leave.
    """

    coding: Coding
    tolerated: float
    session: bytes = field(default_factory=lambda: secrets.token_bytes(SESSION_BYTES))
    is_stale: bool = False  # a client has come with another key: all need a new session
    _keys: dict[int, bytes] = field(default_factory=dict)
    _collectors: dict[int, Collector] = field(default_factory=dict)  # of the round in hand, by group
    _of_client: dict[int, int] = field(default_factory=dict)
    _asked: dict[int, Question] = field(default_factory=dict)

    def renew(self) -> None:
        """Begin a new session, for which all clients make new keys."""
        self.session, self.is_stale = secrets.token_bytes(SESSION_BYTES), False
        self._keys.clear()

    def meet(self, client: int, public_key: bytes) -> None:
        """Note a client's key.

        Raises:
            RunError: it has none.
        """
        if not public_key:
            raise RunError("it has no key to mask its reports with")
        self.is_stale |= self._keys.setdefault(client, public_key) != public_key

    def deal(self, plan: RoundPlan, ready: Collection[int]) -> set[int]:
        """Fix the groups of a round; returns who is in one."""
        self._collectors, self._of_client, self._asked = {}, {}, {}
        for number in sorted(set(plan.groups)):
            members = [c for c, group in zip(plan.cohort, plan.groups, strict=True) if group == number and c in ready]
            fewest = max(fewest_left(len(members), self.tolerated), self.coding.fewest)
            if len(members) < max(SMALLEST_GROUP, fewest):
                logger.warning("round %d: group %d has %d clients, too few for a sum", plan.round, number, len(members))
                continue
            keys = tuple(self._keys[client] for client in members)
            group = Group(self.session, plan.round, tuple(members), keys, fewest)
            self._collectors[number] = Collector(group, self.coding.length)
            self._of_client |= dict.fromkeys(members, number)
        return set(self._of_client)

    def wrap(self, client: int, task: bytes) -> bytes:
        """A client's task, with its group."""
        return wrap_task(self._collector(client).group, task)

    def words_in(self, client: int, message: bytes) -> tuple[int, Masked] | None:
        """The round of a client's masked words, and the words; None for any other message.

        Raises:
            RunError: they cannot be read, or are another client's.
        """
        if not is_masked(message):
            return None
        round_index, sender, masked = decode_masked(message, self.coding.widths)
        if sender != client:
            raise RunError(f"it speaks for client {sender}")
        return round_index, masked

    def take_words(self, client: int, masked: Masked) -> None:
        """A client's masked words of the round in hand.

        Raises:
            RunError: they are not expected.
        """
        self._collector(client).take_words(client, masked)

    def close(self) -> None:
        """Take no more words."""
        for collector in self._collectors.values():
            collector.close()

    def questions(self) -> Iterator[tuple[int, bytes]]:
        """What to ask whom next, once for each client that has not answered; nothing when all sums are made or lost."""
        for collector in self._collectors.values():
            for question in collector.questions():
                if question.client not in self._asked:
                    self._asked[question.client] = question
                    yield question.client, encode_question(question)

    @property
    def waits_for(self) -> set[int]:
        """Who has not answered yet."""
        return set(self._asked)

    def take_told(self, client: int, message: bytes) -> None:
        """A client's answer.

        Raises:
            RunError: it is none.
        """
        question, collector = self._asked[client], self._collector(client)
        if question.wards:
            collector.take_shares(question, decode_shares(message, question))
        else:
            collector.take_pairs(question, decode_pairs(message, question))
        del self._asked[client]

    def leave(self, client: int) -> None:
        """A client does not answer what it was asked."""
        del self._asked[client]
        self._collector(client).leave(client)

    def tallies(self) -> dict[int, Tally]:
        """What the sums say that could be made, by group."""
        made = {}
        for number, collector in self._collectors.items():
            if collector.is_lost:
                logger.warning("group %d: too few clients are left for a sum", number)
            else:
                made[number] = self.coding.tally(collector.sum_of_width(self.coding.widths))
        return made

    def _collector(self, client: int) -> Collector:
        if client not in self._of_client:
            raise RunError(f"client {client} is in no group of this round")
        return self._collectors[self._of_client[client]]
