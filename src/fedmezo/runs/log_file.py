"""The published log: a run's fine-tune as one small file, what turns the base model into the adapter and nothing else.

After the four bytes FMZL come a format version (one byte, that of the journal's format) and the SHA-256 of what
follows: a zlib stream. Unpacked, it holds the length of a JSON document (uint32), that document (the journal's header,
the number of rounds, the hash of the final state) and one column after the other: contributions of each round
(uint32), then of each contribution client and number of scalars (uint32), rate, weight and, where the rates are
scale-free, size (float32, exact, since they have 16 significant bits), and all scalars (bfloat16). Where clients share
directions the columns are: groups of each round, then of each number and coefficients, and all coefficients (float32,
exact like the rates). Everything is little-endian; the bytes of a column's numbers are sorted by significance, since
high bytes repeat themselves and low ones do not.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmezo.config.strict import read_strictly
from fedmezo.errors import RunError
from fedmezo.records import RoundRecord
from fedmezo.results.summary import human_bytes
from fedmezo.runs.format import FORMAT_VERSION, Header, LogDocument
from fedmezo.runs.log_rounds import ClientRounds, GroupRounds
from fedmezo.zo.arithmetic import encode_scalars

MAGIC = b"FMZL"
_START = struct.Struct("<4sB32s")
_LENGTH = struct.Struct("<I")
_UNPACKED_AT_LEAST = 32 << 20
_UNPACKED_PER_BYTE = 16
"""What a file may unpack to: so many bytes, or so many for each of its own. An honest one is far below both."""


@dataclass(frozen=True, slots=True)
class PublishedLog:
    """What such a file holds."""

    header: Header
    records: Sequence[RoundRecord]  # without losses, counts and hashes
    state_hash: str  # after the last round


def encode_log(log: PublishedLog) -> bytes:
    """The content of the file."""
    document = {
        "header": log.header.model_dump(),
        "rounds": len(log.records),
        "state_hash": log.state_hash,
    }
    head = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    columns = _columns_of_groups(log) if log.header.direction_groups else _columns_of_clients(log)
    body = zlib.compress(b"".join([_LENGTH.pack(len(head)), head, *map(_planes, columns)]), 9)
    return _START.pack(MAGIC, FORMAT_VERSION, sha256(body).digest()) + body


def _columns_of_clients(log: PublishedLog) -> list[NDArray[Any]]:
    parts = [part for record in log.records for part in record.contributions]
    return [
        np.array([len(record.contributions) for record in log.records], "<u4"),
        np.array([part.client for part in parts], "<u4"),
        np.array([len(part.scalars or ()) for part in parts], "<u4"),
        _exact([part.rate for part in parts]),
        _exact([part.weight for part in parts]),
        *([_exact([part.size for part in parts])] if log.header.scale_free else []),
        np.frombuffer(encode_scalars([g for part in parts for g in part.scalars or ()]), "<u2"),
    ]


def _columns_of_groups(log: PublishedLog) -> list[NDArray[Any]]:
    parts = [part for record in log.records for part in record.groups]
    return [
        np.array([len(record.groups) for record in log.records], "<u4"),
        np.array([part.group for part in parts], "<u4"),
        np.array([len(part.coefficients) for part in parts], "<u4"),
        _exact([coefficient for part in parts for coefficient in part.coefficients]),
    ]


def decode_log(data: bytes, where: str) -> PublishedLog:
    """The inverse of `encode_log`; `where` names the file in errors.

    Raises:
        RunError: not such a file, of another version, or damaged.
    """
    if len(data) < _START.size or not data.startswith(MAGIC):
        raise RunError(f"{where}: this is no log that `fedmezo export --as-log` wrote")
    _, version, digest = _START.unpack_from(data)
    if not 1 <= version <= FORMAT_VERSION:
        raise RunError(f"{where}: format version {version}; this fedmezo reads 1 to {FORMAT_VERSION}")
    body = data[_START.size :]
    if sha256(body).digest() != digest:
        raise RunError(f"{where}: the file is damaged (its checksum does not fit); fetch it again")
    try:
        return _unpack(_inflate(body), version)
    except (zlib.error, struct.error, ValueError, RecursionError) as error:
        raise RunError(f"{where}: the file cannot be read: {error}") from error


def _inflate(body: bytes) -> bytes:
    """Unpack a zlib stream, and no more of it than an honest file may hold."""
    limit = max(_UNPACKED_AT_LEAST, _UNPACKED_PER_BYTE * len(body))
    stream = zlib.decompressobj()
    content = stream.decompress(body, limit)
    if stream.unconsumed_tail:
        raise ValueError(f"its {human_bytes(len(body))} unpack to more than {human_bytes(limit)}")
    if not stream.eof or stream.unused_data:
        raise ValueError("its compressed part is cut short, or something follows it")
    return content


def _unpack(content: bytes, version: int) -> PublishedLog:
    (length,) = _LENGTH.unpack_from(content)
    if length > len(content) - _LENGTH.size:
        raise ValueError("it is shorter than it says")
    document = read_strictly(LogDocument, json.loads(content[_LENGTH.size : _LENGTH.size + length]), version)
    take = _Columns(content, _LENGTH.size + length).take
    sizes = take("<u4", document.rounds)
    parts = int(sizes.sum(dtype=np.uint64))
    owners, counts = take("<u4", parts), take("<u4", parts)
    if document.header.direction_groups:
        coefficients = take("<f4", int(counts.sum(dtype=np.uint64)))
        sums = GroupRounds(sizes, owners, counts, coefficients)
        sums.require_sound(document.header)
        return PublishedLog(document.header, sums, document.state_hash)
    rates, weights = take("<f4", parts), take("<f4", parts)
    scale = take("<f4", parts) if document.header.scale_free else np.zeros_like(rates)
    scalars = take("<u2", int(counts.sum(dtype=np.uint64)))
    records = ClientRounds(sizes, owners, counts, rates, weights, scale, scalars)
    records.require_sound(document.header)
    return PublishedLog(document.header, records, document.state_hash)


class _Columns:
    """Reads one column after the other."""

    def __init__(self, content: bytes, start: int) -> None:
        self._content = content
        self._at = start

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        width = np.dtype(dtype).itemsize
        if width * count > len(self._content) - self._at:
            raise ValueError("it is shorter than it says")
        planes = np.frombuffer(self._content, np.uint8, width * count, self._at).reshape(width, count)
        self._at += width * count
        return np.ascontiguousarray(planes.T).view(dtype).reshape(count)


def _planes(column: NDArray[Any]) -> bytes:
    """The first byte of every number, then the second of every number, and so on."""
    return column.view(np.uint8).reshape(len(column), column.itemsize).T.tobytes()


def _exact(values: list[float]) -> NDArray[np.float32]:
    column = np.array(values, "<f4")
    if column.tolist() != values:
        raise RunError("the journal holds a rate or weight of more than 16 significant bits")
    return column
