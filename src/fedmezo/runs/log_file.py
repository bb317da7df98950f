"""The published log: a run's fine-tune as one small file, what turns the base model into the adapter and nothing else.

After the four bytes FMZL come a format version (one byte, that of the journal's format) and the SHA-256 of what
follows: a zlib stream. Unpacked, it holds the length of a JSON document (uint32), that document (the journal's header,
the number of rounds, the hash of the final state) and one column after the other: contributions of each round
(uint32), then of each contribution client and number of scalars (uint32), rate, weight and, where the rates are
scale-free, size (float32, exact, since they have 16 significant bits), and all scalars (bfloat16). Everything is
little-endian; the bytes of a column's numbers are sorted by significance, since high bytes repeat themselves and low
ones do not.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from operator import eq
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fedmezo.config.schema import MAX_STEPS
from fedmezo.config.strict import read_strictly
from fedmezo.errors import RunError
from fedmezo.records import Contribution, RoundRecord
from fedmezo.results.summary import human_bytes
from fedmezo.runs.format import FORMAT_VERSION, Header, LogDocument
from fedmezo.zo.arithmetic import LARGEST_FACTOR, decode_scalars, encode_scalars
from fedmezo.zo.replay import LARGEST_SHARE

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
    parts = [part for record in log.records for part in record.contributions]
    document = {
        "header": log.header.model_dump(),
        "rounds": len(log.records),
        "state_hash": log.state_hash,
    }
    head = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    columns = [
        np.array([len(record.contributions) for record in log.records], "<u4"),
        np.array([part.client for part in parts], "<u4"),
        np.array([len(part.scalars or ()) for part in parts], "<u4"),
        _exact([part.rate for part in parts]),
        _exact([part.weight for part in parts]),
        *([_exact([part.size for part in parts])] if log.header.scale_free else []),
        np.frombuffer(encode_scalars([g for part in parts for g in part.scalars or ()]), "<u2"),
    ]
    body = zlib.compress(b"".join([_LENGTH.pack(len(head)), head, *map(_planes, columns)]), 9)
    return _START.pack(MAGIC, FORMAT_VERSION, sha256(body).digest()) + body


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
    clients, counts = take("<u4", parts), take("<u4", parts)
    rates, weights = take("<f4", parts), take("<f4", parts)
    scale = take("<f4", parts) if document.header.scale_free else np.zeros_like(rates)
    scalars = take("<u2", int(counts.sum(dtype=np.uint64)))
    records = _Records(sizes, clients, counts, rates, weights, scale, scalars)
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


class _Records(Sequence[RoundRecord]):
    """The rounds of a log, each made from the columns when it is asked for: as objects they need far more memory.

    Args:
        sizes: (rounds,) contributions of each round.
        clients: (contributions,) who made them.
        counts: (contributions,) scalars of each.
        rates: (contributions,) float32.
        weights: (contributions,) float32.
        scale: (contributions,) float32, sizes of scalars before each.
        scalars: bfloat16 as uint16, of one contribution after the other.
    """

    def __init__(
        self,
        sizes: NDArray[np.uint32],
        clients: NDArray[np.uint32],
        counts: NDArray[np.uint32],
        rates: NDArray[np.float32],
        weights: NDArray[np.float32],
        scale: NDArray[np.float32],
        scalars: NDArray[np.uint16],
    ) -> None:
        self._stops = np.cumsum(sizes, dtype=np.int64)
        self._clients, self._rates, self._weights, self._scale = clients, rates, weights, scale
        self._scalar_stops = np.cumsum(counts, dtype=np.int64)
        self._scalars = scalars

    def __len__(self) -> int:
        return len(self._stops)

    @overload
    def __getitem__(self, index: int) -> RoundRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RoundRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> RoundRecord | tuple[RoundRecord, ...]:
        if isinstance(index, slice):
            return tuple(self._record(i) for i in range(*index.indices(len(self))))
        return self._record(range(len(self))[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(other) == len(self) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of any sequence that is compared by its items

    def _record(self, index: int) -> RoundRecord:
        first = int(self._stops[index - 1]) if index else 0
        parts = tuple(self._part(i) for i in range(first, int(self._stops[index])))
        return RoundRecord(index, tuple(part.client for part in parts), parts, (), "")

    def _part(self, index: int) -> Contribution:
        first = int(self._scalar_stops[index - 1]) if index else 0
        scalars = decode_scalars(self._scalars[first : self._scalar_stops[index]].tobytes())
        rate, weight = float(self._rates[index]), float(self._weights[index])
        size = float(self._scale[index])
        return Contribution(int(self._clients[index]), rate, weight, 0, 0.0, 0, scalars, size=size)

    def require_sound(self, header: Header) -> None:
        """ValueError unless every number may stand in a journal of that header; see `format.ContributionLine`."""
        columns = (
            ("rate", self._rates, LARGEST_FACTOR),
            ("weight", self._weights, 1.0),
            ("size", self._scale, LARGEST_FACTOR),
        )
        for name, column, largest in columns:
            with np.errstate(invalid="ignore"):
                sound = (column >= 0) & (column <= largest) & (column.view("<u4") & 0xFF == 0)
            if not sound.all():
                raise ValueError(f"it holds a {name} of {column[~sound][0]}; needs 0 to {largest:g} in 16 bits")
        rounds = np.repeat(np.arange(len(self), dtype=np.uint64), np.diff(self._stops, prepend=0))
        if len(np.unique(rounds << np.uint64(32) | self._clients)) < len(self._clients):
            raise ValueError("it holds two contributions of a client to one round")
        counts = np.diff(self._scalar_stops, prepend=0)
        if counts.max(initial=0) > MAX_STEPS * header.directions:
            raise ValueError(f"it holds {counts.max()} scalars of a client; needs at most {MAX_STEPS} steps")
        sizes = self._scalars & 0x7FFF  # of bfloat16: the sign taken off, they are in order
        if sizes.max(initial=0) >= 0x7F80:
            raise ValueError("it holds scalars that are not finite")
        some = counts > 0
        greatest = np.maximum.reduceat(sizes, (self._scalar_stops - counts)[some]) if some.any() else sizes[:0]
        reach = (greatest.astype("<u4") << 16).view("<f4").astype(float)
        moved = np.maximum(reach, LARGEST_SHARE if header.scale_free else 0.0) * self._rates[some]
        if moved.max(initial=0.0) > LARGEST_FACTOR:
            raise ValueError("it holds rates and scalars that are too large to move theta")


def _planes(column: NDArray[Any]) -> bytes:
    """The first byte of every number, then the second of every number, and so on."""
    return column.view(np.uint8).reshape(len(column), column.itemsize).T.tobytes()


def _exact(values: list[float]) -> NDArray[np.float32]:
    column = np.array(values, "<f4")
    if column.tolist() != values:
        raise RunError("the journal holds a rate or weight of more than 16 significant bits")
    return column
