"""Keys of a client: what it has in common with each other client alone, and what is derived from that.

X25519 agrees on a key between two clients over a server that relays; HKDF makes of it a key for every purpose and
round, none of which says anything about another. Both are those of the package `cryptography`.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from fedmezo.errors import RunError
from fedmezo.federation.joining import KEY_BYTES
from fedmezo.privacy.extra import SMALLEST_GROUP

SESSION_BYTES = 16
SEED_BYTES = 16

_MEMBER = struct.Struct("<I32s")  # client, public key


class BreachError(RunError):
    """A message asks for what would show one client's part, or cannot be part of the protocol."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What two clients have in common.

    Args:
        secret: known to the two of them.
    """

    secret: bytes

    def derive(self, purpose: str, context: bytes, length: int = KEY_BYTES) -> bytes:
        """A key for one purpose in one round, as `Group.context` names it."""
        return HKDFExpand(SHA256(), length, purpose.encode() + b"\0" + context).derive(self.secret)


class KeyPair:
    """A client's key for one run; a new one is made of the operating system's random numbers."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def own(self, session: bytes) -> Pair:
        """A secret of the client's own, to derive keys from like those that it has in common with others."""
        private = self._private.private_bytes_raw()
        return Pair(HKDF(SHA256(), KEY_BYTES, session, b"fedmezo own").derive(private))

    def pair(self, other: bytes, session: bytes) -> Pair:
        """What this client has in common with the one whose public key is `other`.

        Args:
            other: public key.
            session: of the run, so that the same keys give another secret in another run.

        Raises:
            BreachError: the bytes are no public key.
        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError as error:  # of another length, or a point that gives the same secret to everybody
            raise BreachError(f"{other.hex()} is no public key: {error}") from error
        both = b"".join(sorted((self.public, other)))
        return Pair(HKDF(SHA256(), KEY_BYTES, session, b"fedmezo pair" + both).derive(shared))


def fingerprint(public: bytes) -> str:
    """A public key in a form that people can compare."""
    digest = hashlib.sha256(public).hexdigest()[:32]
    return " ".join(digest[i : i + 4] for i in range(0, len(digest), 4))


@dataclass(frozen=True)
class Group:
    """The clients of one sum, in ascending order.

    Args:
        session: of the run.
        round: of the sum.
        members: the clients.
        keys: the public key of each.
        fewest: members whose parts must be in the sum.

    Raises:
        BreachError: fewer than three, out of order, or two of them with one key.
    """

    session: bytes
    round: int
    members: tuple[int, ...]
    keys: tuple[bytes, ...]
    fewest: int

    def __post_init__(self) -> None:
        if len(self.members) < SMALLEST_GROUP:
            raise BreachError(
                f"a group of {len(self.members)} clients is too small to hide any; needs {SMALLEST_GROUP}"
            )
        if list(self.members) != sorted(set(self.members)) or len(set(self.keys)) != len(self.members):
            raise BreachError(f"round {self.round}: a group names a client or a key twice, or out of order")

    @cached_property
    def context(self) -> bytes:
        """A name of this group in this round: whoever was told of another group derives other keys."""
        pairs = b"".join(_MEMBER.pack(*pair) for pair in zip(self.members, self.keys, strict=True))
        return hashlib.sha256(self.session + struct.pack("<I", self.round) + pairs).digest()

    def key_of(self, client: int) -> bytes:
        """The public key of a member."""
        return self.keys[self.members.index(client)]


def fewest_left(members: int, tolerated: float) -> int:
    """How many of a group must stay for its sum, where a share of it, below a half, may leave; one always may."""
    return max(2, members - max(1, int(members * tolerated)))
