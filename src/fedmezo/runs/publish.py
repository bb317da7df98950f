"""A run's fine-tune as one small file: what turns the base model into the adapter, and nothing else.

After the four bytes FMZL come a format version (one byte) and the SHA-256 of what follows: a zlib stream. Unpacked, it
holds the length of a JSON document (uint32), that document (the journal's header, the number of rounds, the hash of
the final state) and one column after the other: contributions of each round (uint32), then of each contribution client
and number of scalars (uint32), rate and weight (float32, exact, since both have 16 significant bits), and all scalars
(bfloat16). Everything is little-endian; the bytes of a column's numbers are sorted by significance, since high bytes
repeat themselves and low ones do not.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from fedmezo.atomic import replacing
from fedmezo.errors import RunError, StorageError
from fedmezo.federation.aggregate import apply_scalars_
from fedmezo.models.causal_lm import CausalLM
from fedmezo.records import Contribution, RoundRecord
from fedmezo.results.console import work_progress
from fedmezo.results.summary import human_bytes
from fedmezo.runs.card import card_of_log, write_card
from fedmezo.runs.journal import JOURNAL_FILE, Header, header_fields, header_of, read_journal
from fedmezo.runs.replay import initial_theta, open_model, replaying_estimator, require_free, require_scalars
from fedmezo.zo.arithmetic import decode_scalars, encode_scalars, state_hash

MAGIC = b"FMZL"
VERSION = 1
_START = struct.Struct("<4sB32s")
_LENGTH = struct.Struct("<I")
BYTES_PER_PARAMETER = 4


@dataclass(frozen=True, slots=True)
class PublishedLog:
    """What such a file holds."""

    header: Header
    records: tuple[RoundRecord, ...]  # without losses, counts and hashes
    state_hash: str  # after the last round


def export_log(folder: Path, file: Path, *, to_round: int | None = None) -> int:
    """Write a run's log to a file; returns the exit code.

    Args:
        folder: the run's folder.
        file: to be written.
        to_round: take only so many rounds, such as up to the best; None for all.

    Raises:
        RunError: the journal is damaged or cannot be replayed, or the file is there already.
        StorageError: the file cannot be written.
    """
    journal = read_journal(folder / JOURNAL_FILE, to_round)
    require_scalars(journal.header, folder)
    if to_round is not None and not 0 <= to_round <= journal.next_round:
        raise RunError(f"--to-round {to_round}: {folder / JOURNAL_FILE} has {journal.next_round} rounds")
    if file.exists():
        raise RunError(f"{file} is there already; nothing is overwritten: choose another file")
    content = encode_log(PublishedLog(journal.header, journal.records, journal.hashes[-1]))
    try:
        with replacing(file) as out:
            out.write(content)
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {error.strerror}") from error
    _say(
        f"{file}: {journal.next_round} of {journal.header.rounds} planned rounds in {human_bytes(len(content))}; the "
        f"adapter itself takes {human_bytes(BYTES_PER_PARAMETER * journal.header.num_parameters)}"
    )
    if journal.header.restored:
        _say(
            "the run started from a saved adapter (federate.restore_from), which has to be published too: fedmezo "
            f"import {file} --model BASE --restore-from ADAPTER"
        )
    return 0


def import_log(file: Path, base: str, out: Path | None = None, restore_from: Path | None = None) -> int:
    """Turn a published log into an adapter; returns the exit code.

    Args:
        file: that `export_log` wrote.
        base: name or folder of the base model.
        out: the adapter's folder; by default beside the file, under its name and `-adapter`.
        restore_from: the adapter that the run started from; None for a fresh one.

    Raises:
        RunError: the file is damaged or of another version, the run started from another adapter, or the result is
            not the published state.
        ModelError: the base model is another one, or the adapter that the run started from cannot be read.
        StorageError: the adapter cannot be written.
    """
    out = out or file.with_name(f"{file.stem}-adapter")
    require_free(out)
    try:
        log = decode_log(file.read_bytes(), str(file))
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror}") from error
    model = open_model(log.header, base)
    theta = _starting_theta(model, log.header, restore_from)
    estimator = replaying_estimator(log.header, log.records, theta)
    with work_progress(Console(), "replaying rounds") as show:
        for record in log.records:
            apply_scalars_(theta, record, log.header.seed, estimator)
            show(record.round + 1, len(log.records))
    if state_hash(theta) != log.state_hash:
        raise RunError(
            f"{file}: replay gives the state {state_hash(theta)[:16]}, not {log.state_hash[:16]} as published"
        )
    try:
        model.save_adapter(theta, out)
        write_card(card_of_log(log.header, len(log.records)), out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror}") from error
    _say(f"{out}: the adapter after {len(log.records)} rounds, state {log.state_hash}")
    return 0


def _starting_theta(model: CausalLM, header: Header, adapter: Path | None) -> Tensor:
    """Theta (d,) before round 0, from the adapter given or a fresh one, whichever the run started from."""
    if not header.restored and adapter is None:
        return initial_theta(model, header)
    if not header.restored:
        raise RunError(f"--restore-from {adapter}: the run started from a fresh adapter; leave this out")
    if adapter is None:
        raise RunError(
            f"the run started from a saved adapter, of the state {header.theta_hash[:16]}: give it with --restore-from"
        )
    theta = model.read_adapter(adapter)
    if (found := state_hash(theta)) != header.theta_hash:
        raise RunError(
            f"--restore-from {adapter}: the run started from another adapter: its state was {header.theta_hash[:16]}, "
            f"and this one's is {found[:16]}"
        )
    return theta


def encode_log(log: PublishedLog) -> bytes:
    """The content of the file."""
    parts = [part for record in log.records for part in record.contributions]
    document = {
        "header": header_fields(log.header),
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
        np.frombuffer(encode_scalars([g for part in parts for g in part.scalars or ()]), "<u2"),
    ]
    body = zlib.compress(b"".join([_LENGTH.pack(len(head)), head, *map(_planes, columns)]), 9)
    return _START.pack(MAGIC, VERSION, sha256(body).digest()) + body


def decode_log(data: bytes, where: str) -> PublishedLog:
    """The inverse of `encode_log`; `where` names the file in errors.

    Raises:
        RunError: not such a file, of another version, or damaged.
    """
    if len(data) < _START.size or not data.startswith(MAGIC):
        raise RunError(f"{where}: this is no log that `fedmezo export --as-log` wrote")
    _, version, digest = _START.unpack_from(data)
    if version != VERSION:
        raise RunError(f"{where}: format version {version}; this fedmezo reads {VERSION}")
    body = data[_START.size :]
    if sha256(body).digest() != digest:
        raise RunError(f"{where}: the file is damaged (its checksum does not fit); fetch it again")
    try:
        return _unpack(zlib.decompress(body))
    except (zlib.error, struct.error, ValueError, RecursionError, KeyError, TypeError) as error:
        raise RunError(f"{where}: the file cannot be read ({type(error).__name__}: {error})") from error


def _unpack(content: bytes) -> PublishedLog:
    (length,) = _LENGTH.unpack_from(content)
    document: dict[str, Any] = json.loads(content[_LENGTH.size : _LENGTH.size + length])
    columns = _Columns(content[_LENGTH.size + length :])
    sizes = columns.take("<u4", document["rounds"]).tolist()
    clients = columns.take("<u4", sum(sizes)).tolist()
    counts = columns.take("<u4", sum(sizes)).tolist()
    rates = columns.take("<f4", sum(sizes)).tolist()
    weights = columns.take("<f4", sum(sizes)).tolist()
    scalars = decode_scalars(columns.take("<u2", sum(counts)).tobytes())
    stops = np.cumsum(counts).tolist()
    parts = [
        Contribution(client, rate, weight, 0, 0.0, 0, scalars[stop - count : stop])
        for client, rate, weight, count, stop in zip(clients, rates, weights, counts, stops, strict=True)
    ]
    ends = np.cumsum(sizes).tolist()
    records = [
        RoundRecord(
            index, tuple(part.client for part in parts[end - size : end]), tuple(parts[end - size : end]), (), ""
        )
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    return PublishedLog(header_of(document["header"]), tuple(records), document["state_hash"])


class _Columns:
    """Reads one column after the other."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        width = np.dtype(dtype).itemsize
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


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
