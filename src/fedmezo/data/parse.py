"""Reading examples from files: JSON, JSON Lines, CSV and Parquet, with the place of whatever is wrong in them."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedmezo.atomic import read_whole
from fedmezo.data.oddities import Oddities, object_of
from fedmezo.data.rows import Layout, Row, example_of, kind_of
from fedmezo.data.tables import csv_rows, parquet_rows
from fedmezo.errors import DataError
from fedmezo.records import Example

logger = logging.getLogger(__name__)

FILE_SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
"""Of the files that can be read."""


def read_examples(path: Path, layout: Layout) -> list[Example]:
    """Read a list of objects (`.json`), an object per line (`.jsonl`, `.jsonl.gz`), or a table (`.csv`, `.parquet`).

    Blank lines are skipped. Raises DataError naming the file, the line, row or item (counted from 1) and the field.
    """
    return examples_of(f"{path}: the file", _rows(path), layout)


def examples_of(what: str, rows: Iterable[Row], layout: Layout) -> list[Example]:
    """The examples of a table's rows; `what` names it. Raises DataError if there is none, or naming a row."""
    examples, oddities = [], Oddities()
    for where, row in rows:
        examples.append(example_of(where, row, layout))
        oddities.note(where, row, examples[-1])
    if not examples:
        raise DataError(f"{what} holds no example")
    for notice in oddities.notices(len(examples)):
        logger.warning(notice)
    return examples


def _rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        return parquet_rows(path)
    text = _read_text(path)
    if path.suffix == ".csv":
        return csv_rows(path, text)
    return _lines(path, text) if ".jsonl" in path.suffixes else _items(path, text)


def what_instead_of_data(head: bytes) -> str | None:
    """Name what a file's first bytes show it to be when a download went wrong; None for anything else."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the data (fetch it with `git lfs pull`)"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page instead of the data (take the address of the raw file)"
    return None


def _read_text(path: Path) -> str:
    content = _read_bytes(path).removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as Windows editors write it
    if not content.strip():
        raise DataError(f"{path}: the file is empty")
    if what := what_instead_of_data(content):
        raise DataError(f"{path}: the file is {what}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not valid UTF-8 (byte 0x{content[error.start]:02x})") from error


def _read_bytes(path: Path) -> bytes:
    try:
        content = read_whole(path)
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; put it there, or change data.root") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): U+2028 may stand in a text
        if line.strip():
            yield f"{path}, line {number}", _parse(path, line, number)


def _items(path: Path, text: str) -> Iterator[Row]:
    rows = _parse(path, text, 1)
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds {kind_of(rows)} where a list of objects is expected")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, item {number}", row


def _parse(path: Path, text: str, first_line: int) -> object:
    where = path if path.suffix == ".json" else f"{path}, line {first_line}"  # these errors have no position
    try:
        value: object = json.loads(text, object_pairs_hook=object_of)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{path}, line {line}, column {error.colno}: not valid JSON ({error.msg}){_hint(path, text, error)}"
        ) from error
    except RecursionError as error:
        raise DataError(f"{where}: lists or objects are nested too deeply") from error
    except ValueError as error:  # Python refuses to convert so many digits
        raise DataError(f"{where}: a whole number has too many digits") from error
    return value


def _hint(path: Path, text: str, error: json.JSONDecodeError) -> str:
    if path.suffix == ".json" and error.msg == "Extra data":
        return "; if each line holds an object, call the file .jsonl"
    if path.suffix != ".json" and text.startswith("["):
        return "; if the file holds one list, call it .json"
    return ""
