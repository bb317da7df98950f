"""A client's side of a secure sum: it masks its words once, and then helps to take away the masks of the sum alone.

After Bonawitz et al. (CCS 2017). Each word goes out with two kinds of masks on it. Those of pairs cancel out between
two members whose words are both there; where one has gone, the other tells that mask. The client's own mask is taken
away by a majority of its keepers. Whoever has both of one client has its words: so a member tells of another either the
mask of the pair or a share of the other's own, never both, and it takes every member that helps to learn all of the
first, more than one of the others to learn the second.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedmezo.privacy.keys import BreachError, Group, KeyPair, Pair
from fedmezo.privacy.masks import Words, mask
from fedmezo.privacy.shares import deal, keeping, open_share


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """What a client sends in place of its words."""

    words: Words
    sealed: tuple[bytes, ...]  # shares of its seed for the last of its keepers


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a client tells when others have gone.

    Args:
        seeds: of the masks that it had in common with each of them.
        sealed: shares of its own seed anew, for the last of its keepers among those who are left.
    """

    seeds: dict[int, bytes]
    sealed: tuple[bytes, ...]


@dataclass(slots=True, eq=False)
class _Round:
    """What a client has told in the round in hand."""

    group: Group
    seed: bytes  # of its own mask
    gone: set[int] = field(default_factory=set)  # of whom it has told the masks of pairs
    shared: bool = False  # it has told shares, and so what stays in the sum is settled


class Member:
    """One client in all rounds of a run.

    Args:
        client: which.
        session: of the run.
        keys: of the client in this run.
    """

    def __init__(self, client: int, session: bytes, keys: KeyPair) -> None:
        self.client = client
        self.session = session
        self.public = keys.public
        self._keys = keys
        self._known: dict[int, bytes] = {}
        self._pairs: dict[int, Pair] = {client: keys.own(session)}
        self._last = -1  # round whose words it has masked
        self._round: _Round | None = None

    def mask(self, group: Group, words: Words) -> Masked:
        """The client's words for a round under all its masks.

        Raises:
            BreachError: the group is not of this run or does not hold this client, the round was masked already, or a
                member's key is another than before.
        """
        if group.session != self.session or self.client not in group.members:
            raise BreachError(f"round {group.round}: client {self.client} is in no such group")
        if group.round <= self._last:
            raise BreachError(f"round {group.round}: its words went out already, and two sums would tell them apart")
        if group.key_of(self.client) != self.public:
            raise BreachError(f"round {group.round}: the group has another key for client {self.client}")
        for other, public in zip(group.members, group.keys, strict=True):
            self._meet(other, public)
        seed, sealed = deal(self.client, self._pairs, keeping(group))
        self._last, self._round = group.round, _Round(group, seed)
        total = words + self_mask(seed, group, len(words))
        for other in group.members:
            if other != self.client:
                total += signed_mask(self._pair_seed(group, other), self.client, other, len(words))
        return Masked(total, sealed)

    def tell_pairs(self, round_index: int, gone: Collection[int]) -> Pairs:
        """The seeds of the masks that it has in common with members whose words are not in the sum, and new shares.

        Args:
            round_index: of the round in hand.
            gone: all such members.

        Raises:
            BreachError: shares were told already, too few would be left, or a member is back that had gone.
        """
        this = self._of(round_index)
        if this.shared:
            raise BreachError(
                f"round {round_index}: who is in the sum is settled, and it cannot lose a member any more"
            )
        self._require_remainder(this, gone)
        this.gone |= set(gone)
        _, sealed = deal(self.client, self._pairs, keeping(this.group, this.gone), this.seed)
        return Pairs({other: self._pair_seed(this.group, other) for other in sorted(this.gone)}, sealed)

    def tell_shares(self, round_index: int, gone: Collection[int], wards: Mapping[int, bytes]) -> dict[int, bytes]:
        """Its shares of the seeds of members whose words are in the sum.

        Args:
            round_index: of the round in hand.
            gone: all members whose words are not.
            wards: members, each with the share that it sealed for this client; empty where it follows from their key.

        Raises:
            BreachError: a ward has gone, others had gone before, or it keeps no share of a ward.
        """
        this = self._of(round_index)
        if this.gone != set(gone):
            raise BreachError(
                f"round {round_index}: {sorted(gone)} are said to have gone, but before {sorted(this.gone)}"
            )
        self._require_remainder(this, gone)
        if lost := this.gone & wards.keys():
            raise BreachError(
                f"round {round_index}: client {min(lost)} had gone, and its pair's mask is told; with a share of its "
                "own mask its words could be read"
            )
        circle = keeping(this.group, this.gone)
        shares = {
            ward: open_share(ward, self.client, self._pairs[ward], circle, sealed)
            for ward, sealed in wards.items()
            if circle.place(self.client, ward)
        }
        this.shared = True
        return shares

    def _of(self, round_index: int) -> _Round:
        if self._round is None or self._round.group.round != round_index:
            raise BreachError(f"round {round_index}: client {self.client} has masked no words of this round")
        return self._round

    def _require_remainder(self, this: _Round, gone: Collection[int]) -> None:
        group = this.group
        left = set(group.members) - set(gone)
        if not set(gone) <= set(group.members) or self.client not in left or not this.gone <= set(gone):
            raise BreachError(f"round {group.round}: {sorted(gone)} cannot be those of the group who have gone")
        if len(left) < group.fewest:
            raise BreachError(f"round {group.round}: a sum of {len(left)} clients would be left; needs {group.fewest}")

    def _meet(self, other: int, public: bytes) -> None:
        """Remember a member's key; another one for the same client is refused as long as this run lasts."""
        if self._known.setdefault(other, public) != public:
            raise BreachError(f"client {other} has another key than before, which somebody else may have made")
        if other not in self._pairs:
            self._pairs[other] = self._keys.pair(public, self.session)

    def _pair_seed(self, group: Group, other: int) -> bytes:
        return self._pairs[other].derive("mask", group.context)


def signed_mask(seed: bytes, client: int, other: int, words: int) -> Words:
    """The mask of a pair as `client` adds it: the lower number adds what the higher one subtracts."""
    common = mask(seed, words)
    return common if client < other else np.negative(common)


def self_mask(seed: bytes, group: Group, words: int) -> Words:
    """A client's own mask from its seed."""
    return mask(Pair(seed).derive("own mask", group.context), words)
