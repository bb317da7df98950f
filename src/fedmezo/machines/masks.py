"""A site's side of secure sums: what it tells of its reports, and what it refuses to tell.

Bytes in, bytes out, like `site`. The keys are of one session of the server and are lost with this process.
"""

from __future__ import annotations

import logging
import math

from fedmezo.errors import RunError
from fedmezo.federation.joining import UNKNOWN, Reason, RefusedTask, encode_refusal
from fedmezo.federation.sums import Coding
from fedmezo.privacy.keys import SESSION_BYTES, BreachError, Group, KeyPair, fewest_left, fingerprint
from fedmezo.privacy.member import Member
from fedmezo.privacy.messages import (
    decode_question,
    encode_masked,
    encode_pairs,
    encode_shares,
    is_question,
    is_wrapped,
    unwrap_task,
)
from fedmezo.records import Report

logger = logging.getLogger(__name__)


class Masks:
    """One session's keys and what was told with them.

    Args:
        client: of this site.
        session: of the server.
        coding: makes words of a report.
        tolerated: share of a group that may leave.
        fewest: clients that a group has at least.

    Raises:
        ValueError: the session is none.
    """

    def __init__(self, client: int, session: bytes, coding: Coding, tolerated: float, fewest: int) -> None:
        if len(session) != SESSION_BYTES:
            raise ValueError(f"it has {len(session)} bytes, not {SESSION_BYTES}")
        self._member = Member(client, session, KeyPair())
        self._coding = coding
        self._least = fewest_left(fewest, tolerated)
        self._known: set[bytes] = set()
        self._sent: dict[bytes, bytes] = {}  # the last masked words, by the name of their group
        logger.info("reports are masked; the key of client %d is %s", client, fingerprint(self.public_key))

    @property
    def public_key(self) -> bytes:
        """What others agree with this site on a key by."""
        return self._member.public

    def unwrap(self, message: bytes) -> tuple[Group | None, bytes]:
        """A task's group, and the task; no group where the server names none.

        Raises:
            RunError: the group is too small to hide anybody, or a sum of too few is wanted.
        """
        if not is_wrapped(message):
            return None, message
        group, task = unwrap_task(message)
        if group.fewest < self._least:
            raise BreachError(f"round {group.round}: a sum of {group.fewest} is wanted; needs {self._least} at least")
        return group, task

    def masked(self, group: Group, report: Report) -> bytes:
        """The answer to a task: its report under masks.

        Raises:
            RunError: it has no finite loss, or the group is not one to sum with.
        """
        if not math.isfinite(report.train_loss):
            raise RunError("no local step had a finite loss")
        if group.context in self._sent:  # the answer was lost on its way; the same words are no second sum
            return self._sent[group.context]
        for client, key in zip(group.members, group.keys, strict=True):
            if key not in self._known:
                logger.info("sums with client %d, whose key is %s", client, fingerprint(key))
        self._known.update(group.keys)
        masked = self._member.mask(group, self._coding.words(report))
        self._sent = {group.context: encode_masked(group.round, self._member.client, masked, self._coding.widths)}
        return self._sent[group.context]

    @staticmethod
    def is_question(message: bytes) -> bool:
        """Whether a message asks about masked words."""
        return is_question(message)

    def answer(self, message: bytes) -> bytes:
        """What is asked, or a no.

        Raises:
            RunError: the message cannot be read.
        """
        question = decode_question(message)
        try:
            if question.client != self._member.client:
                raise BreachError(f"the question is for client {question.client}")
            if question.wards:
                shares = self._member.tell_shares(question.round, question.gone, question.wards)
                return encode_shares(question, shares)
            return encode_pairs(question, self._member.tell_pairs(question.round, question.gone))
        except BreachError as error:
            logger.error("round %d: refused to tell: %s", question.round, error)
            refusal = RefusedTask(self._member.client, question.round, Reason.FAILED, UNKNOWN, str(error))
            return encode_refusal(refusal)
