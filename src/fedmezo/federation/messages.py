"""The messages between server and clients, to the byte: what would cross the wire is what is counted.

All numbers are little-endian. Rates and weights have 16 significant bits and scalars are bfloat16, so that a float32
and 2 bytes carry them exactly, and 3 bytes the coefficients of a group's sum. A client that knows the state of an
earlier round is brought up to date with the cheaper of the scalars in between, or of the groups' sums, and theta
itself. That also bounds the history a server must keep: records that weigh more than theta are never sent.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedmezo.errors import RunError
from fedmezo.records import ClientTask, Contribution, GroupSum, Report, RoundRecord
from fedmezo.zo.arithmetic import (
    BYTES_PER_COEFFICIENT,
    LARGEST_FACTOR,
    decode_coefficients,
    decode_scalars,
    encode_coefficients,
    encode_scalars,
    factor_fault,
    largest,
)
from fedmezo.zo.noise import MAX_ROUNDS
from fedmezo.zo.replay import LARGEST_SHARE

VERSION = 2
_TASK = struct.Struct("<4sBIIffB32s")  # magic, version, round, client, rate, size, kind of the catch-up, state hash
_OF_GROUP = struct.Struct("<I")  # after the head of a task whose client shares directions: its group
_ROUND = struct.Struct("<IH")  # round, contributions or groups
_PART = struct.Struct("<IfffI")  # client, rate, weight, size, scalars
_GROUP = struct.Struct("<II")  # group, coefficients
_REPORT = struct.Struct(
    "<4sBIIIdIBI32s"
)  # magic, version, round, client, examples, loss, skipped, kind, values, state hash
_SCALARS, _THETA = 0, 1
MOST_MOMENTS = 2
"""Of a server's optimiser: the kind of a catch-up by theta is 1 and their number."""
_SHARED = 16
"""Added to the kind of a task whose client shares directions: its group follows, and records are of sums."""
BYTES_PER_PARAMETER = 4

DecodeRound: TypeAlias = Callable[[memoryview, int, int, int], tuple[RoundRecord, int]]
"""From a message's body, a place in it, the round and how many parts it has, to its record and the place behind it."""


@dataclass(frozen=True, slots=True, eq=False)
class CatchUp:
    """How a client gets from the state it knows to the state of a round: by records, or by that state itself."""

    records: tuple[RoundRecord, ...] = ()
    theta: Tensor | None = None
    moments: tuple[Tensor, ...] = ()  # of the server's optimiser, each (d,), that go with theta


def records_size(records: Sequence[RoundRecord]) -> int:
    """Bytes of the scalars of some rounds, or of their groups' sums."""
    parts = [part for record in records for part in record.contributions]
    scalars = sum(len(part.scalars or ()) for part in parts)
    groups = [group for record in records for group in record.groups]
    coefficients = sum(len(group.coefficients) for group in groups)
    sums = _GROUP.size * len(groups) + BYTES_PER_COEFFICIENT * coefficients
    return _ROUND.size * len(records) + _PART.size * len(parts) + 2 * scalars + sums


def catch_up(
    known_round: int,
    round_index: int,
    theta: Tensor,
    history: Sequence[RoundRecord],
    moments: tuple[Tensor, ...] = (),
) -> CatchUp:
    """The cheaper way from the state before `known_round` to theta, the state before `round_index`.

    Args:
        known_round: the client knows the state before this round.
        round_index: the round that is about to run.
        theta: (d,) the present state.
        history: consecutive closed rounds up to the last; it may begin anywhere.
        moments: of the server's optimiser, which are part of the state.
    """
    needed = [record for record in history if record.round >= known_round]
    complete = len(needed) == round_index - known_round
    if complete and records_size(needed) <= BYTES_PER_PARAMETER * len(theta):
        return CatchUp(records=tuple(needed))
    return CatchUp(theta=theta, moments=moments)


def bounded_history(history: Sequence[RoundRecord], num_parameters: int) -> list[RoundRecord]:
    """The newest records that together weigh no more than theta: older ones can never be the cheaper way."""
    kept: list[RoundRecord] = []
    size = 0
    for record in reversed(history):
        size += records_size([record])
        if size > BYTES_PER_PARAMETER * num_parameters:
            break
        kept.append(record)
    return kept[::-1]


def encode_task(task: ClientTask, state_hash: str, way: CatchUp) -> bytes:
    """The server's message to a client at the start of a round."""
    kind = _SCALARS if way.theta is None else _THETA + len(way.moments)
    kind += 0 if task.group is None else _SHARED
    head = _TASK.pack(b"FMZT", VERSION, task.round, task.client, task.rate, task.size, kind, bytes.fromhex(state_hash))
    head += b"" if task.group is None else _OF_GROUP.pack(task.group)
    if way.theta is not None:
        return head + b"".join(map(_encode_vector, (way.theta, *way.moments)))
    encode = _encode_record if task.group is None else _encode_sums
    return head + b"".join(map(encode, way.records))


def decode_task(data: bytes) -> tuple[ClientTask, str, CatchUp]:
    """The inverse of `encode_task`; a record's losses and counts are not sent and read as 0.

    Raises:
        RunError: not such a message, of another version, cut short, or with numbers that no server sends.
    """
    _, _, round_index, client, rate, size, shared_kind, digest = unpack(_TASK, data, b"FMZT")
    shares, kind = divmod(shared_kind, _SHARED)
    if shares > 1 or kind > _THETA + MOST_MOMENTS:
        raise RunError(
            f"a task message brings values of kind {shared_kind}; this program reads 0 to {_THETA + MOST_MOMENTS}, and "
            f"{_SHARED} more where clients share directions"
        )
    if not (0 <= rate <= LARGEST_FACTOR and 0 <= size <= LARGEST_FACTOR) or round_index >= MAX_ROUNDS:
        raise RunError(f"a task message of round {round_index} and with the rate {rate:g} is none that a server sends")
    body, group = memoryview(data)[_TASK.size :], None
    if shares:
        if len(body) < _OF_GROUP.size:
            raise RunError(f"a task message of {len(data)} bytes is cut short before its group")
        (group,), body = _OF_GROUP.unpack_from(body), body[_OF_GROUP.size :]
    decode = _decode_sums if shares else _decode_own
    way = CatchUp(records=_decode_records(body, decode)) if kind == _SCALARS else _decode_state(body, kind)
    return ClientTask(round_index, client, rate, size, group), digest.hex(), way


def task_size(task: ClientTask, way: CatchUp) -> int:
    """Bytes of the message that `encode_task` makes, without making it."""
    head = _TASK.size + (0 if task.group is None else _OF_GROUP.size)
    if way.theta is not None:
        return head + BYTES_PER_PARAMETER * len(way.theta) * (1 + len(way.moments))
    return head + records_size(way.records)


def encode_report(report: Report) -> bytes:
    """A client's answer."""
    if report.update is not None:
        kind, count, body = _THETA, len(report.update), _encode_vector(report.update)
    else:
        scalars = report.scalars or ()
        kind, count, body = _SCALARS, len(scalars), encode_scalars(scalars)
    head = _REPORT.pack(
        b"FMZR",
        VERSION,
        report.round,
        report.client,
        report.num_examples,
        report.train_loss,
        report.skipped_steps,
        kind,
        count,
        bytes.fromhex(report.state_hash),
    )
    return head + body


def decode_report(data: bytes) -> Report:
    """The inverse of `encode_report`; what it says is for the aggregation to judge.

    Raises:
        RunError: not such a message, of another version, or cut short.
    """
    _, _, round_index, client, examples, loss, skipped, kind, count, digest = unpack(_REPORT, data, b"FMZR")
    _require_known(kind)
    body = memoryview(data)[_REPORT.size :]
    if len(body) != count * (BYTES_PER_PARAMETER if kind == _THETA else 2):
        raise RunError(f"a report message of {len(data)} bytes does not hold the {count} values it announces")
    return Report(
        round=round_index,
        client=client,
        state_hash=digest.hex(),
        num_examples=examples,
        train_loss=loss,
        skipped_steps=skipped,
        scalars=None if kind == _THETA else decode_scalars(bytes(body)),
        update=_decode_vector(body) if kind == _THETA else None,
    )


def report_size(report: Report) -> int:
    """Bytes of the message that `encode_report` makes, without making it."""
    if report.update is not None:
        return _REPORT.size + BYTES_PER_PARAMETER * len(report.update)
    return _REPORT.size + 2 * len(report.scalars or ())


def unpack(layout: struct.Struct, data: bytes, magic: bytes) -> tuple[Any, ...]:
    """The fields of a message's head, magic and version among them.

    Raises:
        RunError: another kind of message, another version, or too short.
    """
    if len(data) < layout.size or not data.startswith(magic):
        raise RunError(f"{len(data)} bytes starting with {data[:4]!r} are no {magic.decode()} message")
    fields = layout.unpack_from(data)
    if fields[1] != VERSION:
        raise RunError(f"the message has format version {fields[1]}; this program reads {VERSION}")
    return fields


def _require_known(kind: int) -> None:
    if kind not in (_SCALARS, _THETA):
        raise RunError(f"a message holds values of kind {kind}; this program reads {_SCALARS} and {_THETA}")


def _encode_record(record: RoundRecord) -> bytes:
    parts = [_ROUND.pack(record.round, len(record.contributions))]
    for part in record.contributions:
        scalars = part.scalars or ()
        parts += [_PART.pack(part.client, part.rate, part.weight, part.size, len(scalars)), encode_scalars(scalars)]
    return b"".join(parts)


def _encode_sums(record: RoundRecord) -> bytes:
    parts = [_ROUND.pack(record.round, len(record.groups))]
    for group in record.groups:
        parts += [_GROUP.pack(group.group, len(group.coefficients)), encode_coefficients(group.coefficients)]
    return b"".join(parts)


def _decode_records(body: memoryview, decode: DecodeRound) -> tuple[RoundRecord, ...]:
    records: list[RoundRecord] = []
    at = 0
    try:
        while at < len(body):
            round_index, count = _ROUND.unpack_from(body, at)
            at += _ROUND.size
            record, at = decode(body, at, round_index, count)
            if records and round_index != records[-1].round + 1:
                raise RunError(f"a task message brings round {round_index} out of order")
            records.append(record)
    except struct.error as error:
        raise RunError(f"a task message is cut short at byte {at} of its records") from error
    return tuple(records)


def _decode_own(body: memoryview, at: int, round_index: int, count: int) -> tuple[RoundRecord, int]:
    parts = []
    for _ in range(count):
        part, at = _decode_part(body, at)
        parts.append(part)
    cohort = tuple(part.client for part in parts)
    if len(set(cohort)) < count:
        raise RunError(f"a task message brings a client in round {round_index} twice")
    return RoundRecord(round_index, cohort, tuple(parts), (), state_hash=""), at


def _decode_sums(body: memoryview, at: int, round_index: int, count: int) -> tuple[RoundRecord, int]:
    groups = []
    for _ in range(count):
        group, coefficients = _GROUP.unpack_from(body, at)
        start = at + _GROUP.size
        at = start + BYTES_PER_COEFFICIENT * coefficients
        if at > len(body):
            raise struct.error
        try:
            values = decode_coefficients(bytes(body[start:at]))
        except ValueError as error:
            raise RunError(f"a task message brings what group {group} did in round {round_index}: {error}") from error
        groups.append(GroupSum(group, 0, 0, 0.0, 0, values))
    if len({group.group for group in groups}) < count:
        raise RunError(f"a task message brings a group in round {round_index} twice")
    return RoundRecord(round_index, (), (), (), state_hash="", groups=tuple(groups)), at


def _decode_part(body: memoryview, at: int) -> tuple[Contribution, int]:
    client, rate, weight, size, count = _PART.unpack_from(body, at)
    start = at + _PART.size
    stop = start + 2 * count
    if stop > len(body):
        raise struct.error
    scalars = decode_scalars(bytes(body[start:stop]))
    reach = max(largest(scalars), LARGEST_SHARE)  # a scale-free rate is applied to shares of a size
    if (fault := factor_fault(rate, weight, reach)) is not None or not 0 <= size <= LARGEST_FACTOR:
        raise RunError(f"a task message brings what client {client} did, and {fault or f'its size is {size:g}'}")
    return Contribution(client, rate, weight, 0, 0.0, 0, scalars, size=size), stop


def _decode_state(body: memoryview, vectors: int) -> CatchUp:
    """Theta and as many moments as make up so many vectors of one length."""
    if len(body) % (BYTES_PER_PARAMETER * vectors):
        raise RunError(f"{len(body)} bytes are no {vectors} float32 vectors of one length")
    theta, *moments = _decode_vector(body).view(vectors, -1)
    return CatchUp(theta=theta, moments=tuple(moments))


def _encode_vector(vector: Tensor) -> bytes:
    return vector.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).tobytes()


def _decode_vector(body: memoryview) -> Tensor:
    if not body or len(body) % BYTES_PER_PARAMETER:
        raise RunError(f"{len(body)} bytes are no vector of float32 values")
    return torch.frombuffer(bytearray(body), dtype=torch.float32)
