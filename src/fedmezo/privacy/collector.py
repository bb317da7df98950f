"""The server's side of a secure sum: who is in it, what it has to ask for, and the sum.

First the members' masked words come. Whoever sends none has gone, and all others are asked for the masks that they had
in common with it; whoever does not answer has gone too. Only when all of those left have answered, or nobody had gone,
shares of their own masks are asked for, and who is in the sum is settled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmezo.privacy.keys import BreachError, Group
from fedmezo.privacy.masks import Words, pack, unpack
from fedmezo.privacy.member import Masked, Pairs, self_mask, signed_mask
from fedmezo.privacy.shares import Keeping, keeping, restore


@dataclass(frozen=True, slots=True)
class Question:
    """What the server asks a member.

    Args:
        client: whom.
        round: of the sum.
        gone: members whose words are not in it; their pairs' masks are asked for where no ward is named.
        wards: members of whose seeds it keeps shares, each with the sealed one, or nothing where it derives it.
    """

    client: int
    round: int
    gone: tuple[int, ...]
    wards: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Collector:
    """One group's sum in one round.

    Args:
        group: whose.
        length: words of a member.
    """

    group: Group
    length: int
    masked: dict[int, Masked] = field(default_factory=dict)
    closed: bool = False  # no more words are taken
    gone: set[int] = field(default_factory=set)
    _pairs: dict[int, Pairs] = field(default_factory=dict)  # by who told
    _shares: dict[int, dict[int, bytes]] = field(default_factory=dict)  # by whose seed, by place
    _silent: set[int] = field(default_factory=set)  # have told no share when they were asked

    def take_words(self, client: int, masked: Masked) -> None:
        """A member's masked words.

        Raises:
            BreachError: they are no member's, come twice or too late, or are not as many as they must be.
        """
        if client not in self.group.members or self.closed or client in self.masked:
            raise BreachError(f"round {self.group.round}: masked words of client {client} are not expected")
        if len(masked.words) != self.length or len(masked.sealed) != keeping(self.group).num_sealed:
            raise BreachError(f"client {client} sent {len(masked.words)} words and {len(masked.sealed)} shares")
        self.masked[client] = masked

    def close(self) -> None:
        """Take no more words: whoever has sent none has gone."""
        self.closed = True
        self.gone = set(self.group.members) - self.masked.keys()

    def leave(self, client: int) -> None:
        """A member does not answer: before the sum is settled it has gone, afterwards others tell in its place."""
        if self._shares or not self._waits_for_pairs():
            self._silent.add(client)
        else:
            self.gone.add(client)

    @property
    def is_lost(self) -> bool:
        """Whether there will be no sum: too few are left, or too few of the keepers of one of them."""
        if not self.closed:
            return False
        if len(self._left()) < self.group.fewest:
            return True
        if self._waits_for_pairs():
            return False
        return any(len(self._askable(ward)) + len(self._told(ward)) < self._circle.enough for ward in self._left())

    @property
    def is_complete(self) -> bool:
        """Whether the sum can be made."""
        enough = all(len(self._told(ward)) >= self._circle.enough for ward in self._left())
        return self.closed and not self.is_lost and not self._waits_for_pairs() and enough

    def questions(self) -> list[Question]:
        """What to ask next, of each member once; nothing where the sum is complete or lost."""
        if not self.closed or self.is_lost:
            return []
        gone = tuple(sorted(self.gone))
        if waiting := self._waits_for_pairs():
            return [Question(client, self.group.round, gone) for client in waiting]
        wards: dict[int, dict[int, bytes]] = {}
        for ward in self._left():
            missing = max(0, self._circle.enough - len(self._told(ward)))
            for keeper in self._askable(ward)[:missing]:
                wards.setdefault(keeper, {})[ward] = self._sealed(ward, keeper)
        return [Question(client, self.group.round, gone, wards[client]) for client in sorted(wards)]

    def take_pairs(self, question: Question, pairs: Pairs) -> None:
        """A member's answer about those who have gone.

        Raises:
            BreachError: it does not answer the question.
        """
        if set(pairs.seeds) != set(question.gone) or len(pairs.sealed) != keeping(self.group, question.gone).num_sealed:
            raise BreachError(f"client {question.client} does not tell of those it was asked about")
        self._pairs[question.client] = pairs

    def take_shares(self, question: Question, shares: Mapping[int, bytes]) -> None:
        """A member's shares of its wards' seeds.

        Raises:
            BreachError: they do not answer the question.
        """
        if set(shares) != set(question.wards):
            raise BreachError(f"client {question.client} does not tell the shares that it was asked for")
        for ward, share in shares.items():
            self._shares.setdefault(ward, {})[self._circle.place(question.client, ward)] = share

    def total(self) -> tuple[tuple[int, ...], Words]:
        """Who is in the sum, and the sum of their words modulo 2^64."""
        assert self.is_complete, "asked for once it is"
        left = self._left()
        total = np.zeros(self.length, np.int64)
        for client in left:
            points = sorted(self._shares[client].items())[: self._circle.enough]
            total += self.masked[client].words
            total -= self_mask(restore(points), self.group, self.length)
            for other in self.gone:
                total -= signed_mask(self._pairs[client].seeds[other], client, other, self.length)
        return tuple(left), total

    def sum_of_width(self, widths: Sequence[int]) -> Words:
        """The sum as signed words, of words that were sent in so many bytes each."""
        return unpack(pack(self.total()[1], widths), widths)

    @property
    def _circle(self) -> Keeping:
        return keeping(self.group, self.gone)

    def _left(self) -> list[int]:
        return sorted(self.masked.keys() - self.gone)

    def _waits_for_pairs(self) -> list[int]:
        """Who is left and has not told of everybody who has gone."""
        if not self.gone:
            return []
        told = {client for client, pairs in self._pairs.items() if pairs.seeds.keys() == self.gone}
        return [client for client in self._left() if client not in told]

    def _told(self, ward: int) -> Mapping[int, bytes]:
        return self._shares.get(ward, {})

    def _askable(self, ward: int) -> Sequence[int]:
        """The keepers of a ward's seed who are there and have told no share yet."""
        here = [keeper for keeper in self._circle.keepers(ward) if keeper not in self._silent]
        return [keeper for keeper in here if self._circle.place(keeper, ward) not in self._told(ward)]

    def _sealed(self, ward: int, keeper: int) -> bytes:
        circle, sealed = self._circle, (self._pairs[ward] if self.gone else self.masked[ward]).sealed
        place = circle.place(keeper, ward)
        return b"" if place <= circle.derived else sealed[place - circle.derived - 1]
