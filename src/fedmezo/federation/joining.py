"""How a client joins a run on several machines, and how it says no: the messages beside tasks and reports.

A setup is what a client must know before its first task, a ready message its answer. A refusal answers a task that
the client cannot do from the state it knows. All numbers are little-endian; the setup's settings are JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from fedmezo.errors import RunError
from fedmezo.federation.messages import VERSION, unpack
from fedmezo.zo.noise import MAX_ROUNDS

_SETUP = struct.Struct("<4sBII32s32s")  # magic, version, client, round, base hash, hash of initial theta
_READY = struct.Struct("<4sBIqII")  # magic, version, client, known round, examples, batches of a round
_REFUSAL = struct.Struct("<4sBIIBq")  # magic, version, client, round, reason, known round
LARGEST_SETUP = 1 << 20
LARGEST_REFUSAL = 1 << 16
"""Bytes of a message; settings and the reason of a refusal take a small part of them."""
LONGEST_REASON = 10_000
"""Characters of it."""
KEY_BYTES = 32
"""Of a public key."""
_SESSION, _LONGEST_SESSION = "session", 64
UNKNOWN = -1
"""The known round of a client that does not know the state before any round."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a client needs to know of a run."""

    client: int
    round: int  # the next one to run
    base_hash: str
    theta_hash: str  # of the theta that clients can derive from the base model and the seed
    settings: Mapping[str, Any]  # the part of the configuration that client work depends on
    session: str = ""  # of secure sums: clients make new keys for each


@dataclass(frozen=True, slots=True)
class Ready:
    """A client that has loaded its model and its data."""

    client: int
    known_round: int  # it knows the state before this round, or UNKNOWN
    num_examples: int
    num_batches: int  # in a round
    public_key: bytes = b""  # under secure sums, for this session


class Reason(IntEnum):
    """Why a client refuses."""

    NOT_SET_UP = 1  # it has had no setup: its process is new
    OTHER_STATE = 2  # the state it knows, with what was sent, does not give the state of the round
    STALE = 3  # the round lies behind the state that the client knows
    FAILED = 4  # its work failed, or the setup asks for what is not there


@dataclass(frozen=True, slots=True)
class RefusedTask:
    """A client's no to a setup or a task."""

    client: int
    round: int
    reason: Reason
    known_round: int
    text: str


def encode_setup(setup: Setup) -> bytes:
    """The server's first message to a client."""
    hashes = bytes.fromhex(setup.base_hash), bytes.fromhex(setup.theta_hash)
    head = _SETUP.pack(b"FMZS", VERSION, setup.client, setup.round, *hashes)
    settings = {**setup.settings, _SESSION: setup.session} if setup.session else setup.settings
    return head + json.dumps(settings, separators=(",", ":"), sort_keys=True).encode()


def decode_setup(data: bytes) -> Setup:
    """The inverse of `encode_setup`.

    Raises:
        RunError: not such a message, of another version, or without sound settings.
    """
    _, _, client, round_index, base, theta = unpack(_SETUP, data, b"FMZS")
    if round_index >= MAX_ROUNDS or len(data) > LARGEST_SETUP:
        raise RunError(f"a setup message of {len(data)} bytes, for round {round_index}, is none that a server sends")
    try:
        settings = json.loads(data[_SETUP.size :])
    except (ValueError, RecursionError) as error:
        raise RunError(f"a setup message of {len(data)} bytes holds no valid settings: {error}") from error
    if not isinstance(settings, dict):
        raise RunError(f"a setup message of {len(data)} bytes holds no mapping of settings")
    session = settings.pop(_SESSION, "")
    if not isinstance(session, str) or len(session) > _LONGEST_SESSION:
        raise RunError("a setup message names a session that is none")
    return Setup(client, round_index, base.hex(), theta.hex(), settings, session)


def is_setup(data: bytes) -> bool:
    """Whether a message to a client is a setup."""
    return data.startswith(b"FMZS")


def encode_ready(ready: Ready) -> bytes:
    """A client's answer to a setup."""
    head = _READY.pack(b"FMZY", VERSION, ready.client, ready.known_round, ready.num_examples, ready.num_batches)
    return head + ready.public_key


def encode_refusal(refusal: RefusedTask) -> bytes:
    """A client's no."""
    head = _REFUSAL.pack(b"FMZN", VERSION, refusal.client, refusal.round, refusal.reason.value, refusal.known_round)
    return head + refusal.text[:LONGEST_REASON].encode(errors="replace")


def decode_joining(data: bytes) -> Ready | RefusedTask | None:
    """The inverse of `encode_ready` and `encode_refusal`; None for any other message.

    Raises:
        RunError: of another version, cut short, too long, or with a round that cannot be.
    """
    if data.startswith(b"FMZY"):
        _, _, client, known, examples, batches = unpack(_READY, data, b"FMZY")
        ready = Ready(client, known, examples, batches, data[_READY.size :])
        _require_length(data, _READY.size + (KEY_BYTES if ready.public_key else 0))
        if len(ready.public_key) not in (0, KEY_BYTES):
            raise RunError(f"a client's public key has {KEY_BYTES} bytes, not {len(ready.public_key)}")
        _require_round(ready.known_round)
        return ready
    if not data.startswith(b"FMZN"):
        return None
    _, _, client, round_index, reason, known = unpack(_REFUSAL, data, b"FMZN")
    _require_length(data, LARGEST_REFUSAL)
    _require_round(known)
    try:
        text = data[_REFUSAL.size :].decode()
        return RefusedTask(client, round_index, Reason(reason), known, text)
    except ValueError as error:
        raise RunError(f"a refusal message cannot be read: {error}") from error


def _require_length(data: bytes, most: int) -> None:
    if len(data) > most:
        raise RunError(f"a message of {len(data)} bytes starting with {data[:4]!r} has {most} at most")


def _require_round(known: int) -> None:
    if not UNKNOWN <= known <= MAX_ROUNDS:
        raise RunError(f"a client cannot know the state before round {known}")
