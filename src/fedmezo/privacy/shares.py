"""Shares of the seed of a client's own mask, so that others can take the mask away when the client has gone.

Shamir's scheme over GF(2^128), from the package `pycryptodome`. A client's keepers are itself and those after it in the
group's order, of those who are left. Any majority of the keepers' shares gives the seed, fewer say nothing about it.
As many shares as may be chosen freely follow from the keys that client and keeper have in common, and so fix the
polynomial without a byte being sent; only the others are sealed and sent.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedmezo.privacy.keys import SEED_BYTES, BreachError, Group, Pair

MOST_KEEPERS = 5
SEALED_BYTES = SEED_BYTES + 16
_NONCE = bytes(12)  # every key seals one share


@dataclass(frozen=True, slots=True)
class Keeping:
    """Who keeps shares of whose seed, among those of a group who are left.

    Args:
        members: who are left, in ascending order.
        context: names the group, the round, and those who are left.
        anew: somebody has gone, and a seed that was chosen before is shared again.
    """

    members: tuple[int, ...]
    context: bytes
    anew: bool

    def keepers(self, owner: int) -> tuple[int, ...]:
        """Who keeps a share of a member's seed, the member first; the place of a share is counted from 1."""
        at = self.members.index(owner)
        return (*self.members[at:], *self.members[:at])[:MOST_KEEPERS]

    @property
    def enough(self) -> int:
        """How many shares give a seed."""
        return min(len(self.members), MOST_KEEPERS) // 2 + 1

    @property
    def derived(self) -> int:
        """How many shares, the first, are derived; a seed that is there already is one point of the polynomial."""
        return self.enough - 1 if self.anew else self.enough

    @property
    def num_sealed(self) -> int:
        """How many shares of a seed are sealed and sent."""
        return min(len(self.members), MOST_KEEPERS) - self.derived

    def place(self, keeper: int, owner: int) -> int:
        """The place of a keeper's share of a member's seed.

        Raises:
            BreachError: it keeps none.
        """
        if owner not in self.members or keeper not in (keepers := self.keepers(owner)):
            raise BreachError(f"client {keeper} keeps no share of client {owner}'s seed")
        return keepers.index(keeper) + 1


def keeping(group: Group, gone: Collection[int] = ()) -> Keeping:
    """Who keeps whose shares once some of a group have gone."""
    if not gone:
        return Keeping(group.members, group.context, anew=False)
    left = tuple(member for member in group.members if member not in gone)
    return Keeping(left, hashlib.sha256(group.context + struct.pack(f"<{len(left)}I", *left)).digest(), anew=True)


def deal(
    owner: int, pairs: Mapping[int, Pair], circle: Keeping, seed: bytes | None = None
) -> tuple[bytes, tuple[bytes, ...]]:
    """A seed, and its sealed shares for those keepers who cannot derive theirs.

    Args:
        owner: whose seed it is.
        pairs: what it has in common with each keeper; its own secret for itself.
        circle: who keeps shares.
        seed: one that was chosen before; None for a new one.
    """
    keepers = circle.keepers(owner)
    derived = [_derived_share(pairs[keeper], owner, circle) for keeper in keepers[: circle.derived]]
    points = ([] if seed is None else [(0, seed)]) + list(enumerate(derived, 1))
    sealed = [
        _box(pairs[keepers[place - 1]], owner, circle).encrypt(_NONCE, _value_at(place, points), None)
        for place in range(circle.derived + 1, len(keepers) + 1)
    ]
    return restore(points) if seed is None else seed, tuple(sealed)


def open_share(owner: int, keeper: int, pair: Pair, circle: Keeping, sealed: bytes) -> bytes:
    """A keeper's share of `owner`'s seed; `sealed` is not looked at where the keeper derives it.

    Raises:
        BreachError: it keeps none, or the sealed share is of another round, owner or keeper, or was changed.
    """
    if circle.place(keeper, owner) <= circle.derived:
        return _derived_share(pair, owner, circle)
    try:
        return _box(pair, owner, circle).decrypt(_NONCE, sealed, None)
    except InvalidTag as error:
        raise BreachError(
            f"what is said to be a share of client {owner}'s seed is not one it sealed for this round and keeper"
        ) from error


def restore(points: list[tuple[int, bytes]]) -> bytes:
    """The seed from shares at different places, as many as are needed."""
    return bytes(Shamir.combine(points))


def _value_at(place: int, points: list[tuple[int, bytes]]) -> bytes:
    """The polynomial through the points at another place: its value at 0 once every place is moved by this one.

    Addition in GF(2^128) is an exclusive or, of places too.
    """
    return restore([(at ^ place, value) for at, value in points])


def _derived_share(pair: Pair, owner: int, circle: Keeping) -> bytes:
    return pair.derive(f"share {owner}", circle.context, SEED_BYTES)


def _box(pair: Pair, owner: int, circle: Keeping) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(pair.derive(f"seal {owner}", circle.context))
