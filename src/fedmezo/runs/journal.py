"""The journal: an append-only log that, with the base model, gives the weights of every round bit for bit.

`journal.jsonl` holds one JSON object per line: a header, then a line per closed round, written last and flushed, so
that a line is the commit of its round, and an end once the results are written. Each line ends with `chain`, a hash of
its own text and of the line before it: a changed, missing, doubled or reordered line breaks the chain and is named.
Lines that are missing at the end break nothing, but the end is then missing too. Scalars are base64 of little-endian
bfloat16, coefficients of three bytes each; other floats are written so that they read back equal.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmezo.atomic import naming, read_whole, replacing
from fedmezo.config.markup import shorten
from fedmezo.config.strict import read_strictly
from fedmezo.errors import RunError
from fedmezo.records import Contribution, GroupSum, Refusal, RoundRecord
from fedmezo.runs.format import FORMAT_VERSION, EndLine, Header, RemarkLine, RoundLine, round_fault
from fedmezo.zo.arithmetic import encode_coefficients, encode_scalars

JOURNAL_FILE = "journal.jsonl"
_CHAIN_CHARACTERS = 32
_CHAIN_START = "0" * _CHAIN_CHARACTERS
_CHAIN_KEY = ',"chain":"'
_TAIL = len(_CHAIN_KEY) + _CHAIN_CHARACTERS + len('"}')


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal as read."""

    header: Header
    records: tuple[RoundRecord, ...]
    remarks: tuple[str, ...]  # what a forced resume overrode
    chain: str  # of the last line
    size: int  # bytes up to the end of the last complete line
    truncated: bool  # an incomplete last line follows
    ended: bool  # the run's results were written after the last round

    @property
    def next_round(self) -> int:
        """The first round that is not recorded."""
        return len(self.records)

    @property
    def hashes(self) -> list[str]:
        """The state hash before each round, and after the last."""
        return [self.header.theta_hash, *(record.state_hash for record in self.records)]


class JournalWriter:
    """Appends to a journal; every line is on disk when the call returns.

    Args:
        path: the file.
        chain: of its last line.
    """

    def __init__(self, path: Path, chain: str) -> None:
        self._path = path
        self._chain = chain

    @classmethod
    def create(cls, path: Path, header: Header) -> JournalWriter:
        """Start a new journal with its header: it is there whole or not at all.

        Raises:
            FileExistsError: there is one already.
        """
        if path.exists():
            raise FileExistsError(f"{path} is there already")
        line, chain = _line(_CHAIN_START, {"kind": "header", "format": FORMAT_VERSION, **header.model_dump()})
        with replacing(path) as file:
            file.write(line)
        return cls(path, chain)

    @classmethod
    def reopen(cls, path: Path, journal: Journal) -> JournalWriter:
        """Go on with a journal that was read; an incomplete last line is cut off."""
        if journal.truncated:
            with naming(path), path.open("r+b") as file:
                file.truncate(journal.size)
                os.fsync(file.fileno())
        return cls(path, journal.chain)

    def append(self, record: RoundRecord) -> None:
        """Commit a round."""
        self._append({"kind": "round", **_record_fields(record)})

    def remark(self, text: str) -> None:
        """Record something a later reader must know, such as a forced resume."""
        self._append({"kind": "remark", "text": text})

    def end(self, rounds: int) -> None:
        """Record that the run is over after so many rounds and its results are written."""
        self._append({"kind": "end", "rounds": rounds})

    def _append(self, fields: Mapping[str, Any]) -> None:
        line, chain = _line(self._chain, fields)
        with naming(self._path), self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._chain = chain


def read_journal(path: Path, to_round: int | None = None) -> Journal:
    """Read and check a journal.

    An incomplete last line, the trace of a write that was cut short, is left out and flagged.

    Args:
        path: the file.
        to_round: read only so many rounds; what follows them may be damaged.

    Raises:
        RunError: the file is missing, or a line is damaged, missing, doubled or out of order, with the line's number
            and how many rounds before it are sound.
    """
    try:
        content = read_whole(path)
    except OSError as error:
        raise RunError(f"{path}: the journal cannot be read: {error.strerror}") from error
    lines = content.split(b"\n")
    reader = _Reader(path)
    for number, line in enumerate(lines[:-1], start=1):
        if reader.header is not None and len(reader.records) == to_round:
            break
        reader.read(number, line)
    if reader.header is None:
        raise RunError(f"{path}: the journal has no complete header line, so nothing was committed; start a new run")
    return Journal(
        header=reader.header,
        records=tuple(reader.records),
        remarks=tuple(reader.remarks),
        chain=reader.chain,
        size=len(content) - len(lines[-1]),
        truncated=bool(lines[-1]),
        ended=reader.ended,
    )


class _Reader:
    """Reads line after line and keeps the chain."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chain = _CHAIN_START
        self.version = FORMAT_VERSION
        self.header: Header | None = None
        self.records: list[RoundRecord] = []
        self.remarks: list[str] = []
        self.ended = False

    def read(self, number: int, line: bytes) -> None:
        fields = self._checked(number, line)
        try:
            self._take(number, fields.pop("kind", None), fields)
        except ValueError as error:
            raise RunError(f"{self._place(number)}: {error}; {self._sound()}") from error

    def _take(self, number: int, kind: object, fields: dict[str, Any]) -> None:
        if (kind == "header") != (number == 1):
            raise ValueError(f"a line of kind {shorten(kind)} is not expected here")
        match kind:
            case "header":
                self.header = read_strictly(Header, fields, self.version)
            case "round":
                self._take_round(read_strictly(RoundLine, fields, self.version))
            case "remark":
                self.remarks.append(read_strictly(RemarkLine, fields, self.version).text)
            case "end" if read_strictly(EndLine, fields, self.version).rounds == len(self.records):
                self.ended = True
            case _:
                raise ValueError(f"a line of kind {shorten(kind)} is not expected here")

    def _take_round(self, line: RoundLine) -> None:
        assert self.header is not None, "the first line is the header"
        if line.round != len(self.records):
            raise ValueError(f"round: got {line.round}; needs {len(self.records)}, the one after the last")
        if (fault := round_fault(line, self.header)) is not None:
            raise ValueError(fault)
        self.records.append(_record(line))
        self.ended = False  # a forced resume may go on behind an end

    def _checked(self, number: int, line: bytes) -> dict[str, Any]:
        """The fields of a line whose chain fits, without chain and format."""
        try:
            text = line.decode()
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self._place(number)}: it is not valid JSON ({error}); {self._sound()}") from error
        if not isinstance(fields, dict):
            raise RunError(f"{self._place(number)}: it is no JSON object; {self._sound()}")
        if number == 1:
            self.version = known_version(fields.pop("format", None), self._place(number))
        chain = _chained(self.chain, text[:-_TAIL] + "}")
        if fields.pop("chain", None) != chain or text[-_TAIL:] != f'{_CHAIN_KEY}{chain}"}}':
            raise RunError(
                f"{self._place(number)}: the line was changed, or a line before it is missing, doubled or out of order "
                f"(its chain hash does not fit); {self._sound()}"
            )
        self.chain = chain
        return fields

    def _place(self, number: int) -> str:
        return f"{self.path}, line {number}"

    def _sound(self) -> str:
        if not self.records:
            return "no round before it can be used"
        count = len(self.records)
        return f"rounds 0 to {count - 1} before it are sound (fedmezo replay RUN --to-round {count})"


def _line(previous: str, fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """A line with its end, and its chain."""
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    chain = _chained(previous, body)
    return f'{body[:-1]}{_CHAIN_KEY}{chain}"}}\n'.encode(), chain


def _chained(previous: str, body: str) -> str:
    return hashlib.sha256((previous + body).encode()).hexdigest()[:_CHAIN_CHARACTERS]


def known_version(version: object, place: str) -> int:
    """The version of a format that this program reads.

    Raises:
        RunError: it is another one.
    """
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        read = f"formats 1 to {FORMAT_VERSION}" if FORMAT_VERSION > 1 else "format 1"
        raise RunError(
            f"{place}: journal format {shorten(version)} was written by another version of fedmezo; this one reads "
            f"{read}"
        )
    return version


def _record_fields(record: RoundRecord) -> dict[str, Any]:
    shared = (
        {"common_rate": record.common_rate, "groups": [_group_fields(part) for part in record.groups]}
        if record.groups
        else {}
    )
    return {
        "round": record.round,
        "cohort": list(record.cohort),
        "clients": [_contribution_fields(part) for part in record.contributions],
        **shared,
        **({} if record.epsilon is None else {"epsilon": record.epsilon}),
        "refused": [asdict(refusal) for refusal in record.refusals],
        "state_hash": record.state_hash,
    }


def _group_fields(part: GroupSum) -> dict[str, Any]:
    fields = asdict(part) | {"coefficients": base64.b64encode(encode_coefficients(part.coefficients)).decode()}
    return {key: value for key, value in fields.items() if value is not None}


def _contribution_fields(part: Contribution) -> dict[str, Any]:
    fields = asdict(part)
    if part.scalars is not None:
        fields["scalars"] = base64.b64encode(encode_scalars(part.scalars)).decode()
    if not part.size:
        del fields["size"]
    return {key: value for key, value in fields.items() if value is not None}


def _record(line: RoundLine) -> RoundRecord:
    return RoundRecord(
        round=line.round,
        cohort=line.cohort,
        contributions=tuple(Contribution(**{**dict(part), "size": part.size or 0.0}) for part in line.clients),
        refusals=tuple(Refusal(**dict(refusal)) for refusal in line.refused),
        state_hash=line.state_hash,
        groups=tuple(GroupSum(**dict(part)) for part in line.groups or ()),
        common_rate=line.common_rate or 0.0,
        epsilon=line.epsilon,
    )
