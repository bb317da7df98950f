"""The messages of secure sums, to the byte: masked words, a question about them, and its answer.

All numbers are little-endian. They go between the same parties, in the same way, as tasks and reports.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from fedmezo.errors import RunError
from fedmezo.federation.joining import KEY_BYTES
from fedmezo.federation.messages import VERSION, unpack
from fedmezo.privacy import masks
from fedmezo.privacy.collector import Question
from fedmezo.privacy.extra import WRAPPED
from fedmezo.privacy.keys import SEED_BYTES, Group
from fedmezo.privacy.member import Masked, Pairs
from fedmezo.privacy.shares import SEALED_BYTES

_HEAD = struct.Struct("<4sBII")  # magic, version, round, client
_COUNTS = struct.Struct("<II")  # of a question: members who have gone, wards
_CLIENT = struct.Struct("<I")
_GROUP = struct.Struct("<4sBI16sII")  # magic, version, round, session, fewest members of the sum, members
_MEMBER = struct.Struct("<I32s")  # client, public key


def encode_masked(round_index: int, client: int, masked: Masked, widths: Sequence[int]) -> bytes:
    """A client's masked words, in place of its report."""
    head = _HEAD.pack(b"FMZM", VERSION, round_index, client)
    return head + masks.pack(masked.words, widths) + b"".join(masked.sealed)


def is_masked(data: bytes) -> bool:
    """Whether an answer to a task is masked words."""
    return data.startswith(b"FMZM")


def decode_masked(data: bytes, widths: Sequence[int]) -> tuple[int, int, Masked]:
    """The inverse of `encode_masked`: round, client and words.

    Raises:
        RunError: not such a message, of another version, or of another length.
    """
    _, _, round_index, client = unpack(_HEAD, data, b"FMZM")
    at = _HEAD.size + sum(widths)
    sealed = data[at:]
    if len(sealed) % SEALED_BYTES:
        raise RunError(f"masked words of {len(data)} bytes hold no whole number of shares")
    return round_index, client, Masked(masks.unpack(data[_HEAD.size : at], widths), _rows(sealed, SEALED_BYTES))


def encode_question(question: Question) -> bytes:
    """What the server asks a member after the words."""
    head = _HEAD.pack(b"FMZQ", VERSION, question.round, question.client)
    gone = b"".join(map(_CLIENT.pack, question.gone))
    wards = b"".join(_CLIENT.pack(ward) + sealed.ljust(SEALED_BYTES, b"\0") for ward, sealed in _wards(question))
    return head + _COUNTS.pack(len(question.gone), len(question.wards)) + gone + wards


def is_question(data: bytes) -> bool:
    """Whether a message to a client is a question about masked words."""
    return data.startswith(b"FMZQ")


def decode_question(data: bytes) -> Question:
    """The inverse of `encode_question`; the share of a ward that needs none is not empty but zeros.

    Raises:
        RunError: not such a message, of another version, or of another length than it announces.
    """
    _, _, round_index, client = unpack(_HEAD, data, b"FMZQ")
    body = data[_HEAD.size :]
    if len(body) < _COUNTS.size:
        raise RunError("a question about masked words is cut short")
    num_gone, num_wards = _COUNTS.unpack_from(body)
    rows, size = body[_COUNTS.size :], _CLIENT.size + SEALED_BYTES
    if len(rows) != _CLIENT.size * num_gone + size * num_wards:
        raise RunError(f"a question about masked words does not name {num_gone} and {num_wards} clients")
    split = _CLIENT.size * num_gone
    gone = tuple(client for (client,) in _CLIENT.iter_unpack(rows[:split]))
    wards = {}
    for at in range(split, len(rows), size):
        (ward,) = _CLIENT.unpack_from(rows, at)
        wards[ward] = rows[at + _CLIENT.size : at + size]
    return Question(client, round_index, gone, wards)


def encode_pairs(question: Question, told: Pairs) -> bytes:
    """A member's answer where others have gone, in the order in which the question names them."""
    return _answer(question) + b"".join(told.seeds[client] for client in question.gone) + b"".join(told.sealed)


def encode_shares(question: Question, told: Mapping[int, bytes]) -> bytes:
    """A member's answer about its wards, in ascending order."""
    return _answer(question) + b"".join(told[ward] for ward, _ in _wards(question))


def decode_pairs(data: bytes, question: Question) -> Pairs:
    """The inverse of `encode_pairs`.

    Raises:
        RunError: not such a message, or no answer to the question.
    """
    body = _answered(data, question)
    split = KEY_BYTES * len(question.gone)
    if len(body) < split or (len(body) - split) % SEALED_BYTES:
        raise RunError(f"an answer of {len(body)} bytes does not tell of {len(question.gone)} clients")
    seeds = dict(zip(question.gone, _rows(body[:split], KEY_BYTES), strict=True))
    return Pairs(seeds, _rows(body[split:], SEALED_BYTES))


def decode_shares(data: bytes, question: Question) -> dict[int, bytes]:
    """The inverse of `encode_shares`.

    Raises:
        RunError: not such a message, or no answer to the question.
    """
    body = _answered(data, question)
    if len(body) != SEED_BYTES * len(question.wards):
        raise RunError(f"an answer of {len(body)} bytes does not tell {len(question.wards)} shares")
    return dict(zip((ward for ward, _ in _wards(question)), _rows(body, SEED_BYTES), strict=True))


def is_told(data: bytes) -> bool:
    """Whether a message is an answer about masked words."""
    return data.startswith(b"FMZA")


def wrap_task(group: Group, task: bytes) -> bytes:
    """A client's task, behind the group whose sum is to be taken."""
    pairs = zip(group.members, group.keys, strict=True)
    head = _GROUP.pack(WRAPPED, VERSION, group.round, group.session, group.fewest, len(group.members))
    return head + b"".join(_MEMBER.pack(*pair) for pair in pairs) + task


def is_wrapped(data: bytes) -> bool:
    """Whether a message to a client is a task whose answer is to be masked."""
    return data.startswith(WRAPPED)


def unwrap_task(data: bytes) -> tuple[Group, bytes]:
    """The inverse of `wrap_task`.

    Raises:
        RunError: not such a message, of another version, cut short, or with a group that can hide nobody.
    """
    _, _, round_index, session, fewest, count = unpack(_GROUP, data, WRAPPED)
    stop = _GROUP.size + _MEMBER.size * count
    if not count or stop > len(data):
        raise RunError(f"a task of a secure sum does not name the {count} members of its group")
    members, keys = zip(*_MEMBER.iter_unpack(data[_GROUP.size : stop]), strict=True)
    return Group(session, round_index, members, keys, fewest), data[stop:]


def wrapping_size(members: int) -> int:
    """Bytes that `wrap_task` adds to a task."""
    return _GROUP.size + _MEMBER.size * members


def _wards(question: Question) -> list[tuple[int, bytes]]:
    return sorted(question.wards.items())


def _rows(data: bytes, size: int) -> tuple[bytes, ...]:
    return tuple(data[i : i + size] for i in range(0, len(data), size))


def _answer(question: Question) -> bytes:
    return _HEAD.pack(b"FMZA", VERSION, question.round, question.client)


def _answered(data: bytes, question: Question) -> bytes:
    _, _, round_index, client = unpack(_HEAD, data, b"FMZA")
    if (round_index, client) != (question.round, question.client):
        raise RunError(f"an answer of client {client} about round {round_index} answers no question")
    return data[_HEAD.size :]
