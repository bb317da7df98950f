"""The rows of tables: CSV and Parquet files, folders of `datasets.save_to_disk`, data sets on the Hugging Face hub."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedmezo.data.rows import Row
from fedmezo.errors import DataError

SAVED_MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files one of which is in every folder that `save_to_disk` writes."""


def csv_rows(path: Path, text: str) -> Iterator[Row]:
    """The rows of a CSV file with a heading; every value is a text.

    Raises:
        DataError: a row has more or fewer values than the heading, or the quoting is broken.
    """
    earlier = csv.field_size_limit(sys.maxsize)  # of the whole process; its default ends at 128 kB
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        _check_heading(path, reader.fieldnames or ())
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{where}: has not as many values as the heading, {len(reader.fieldnames or ())}")
            yield where, row
    except csv.Error as error:
        raise DataError(f"{path}, near line {reader.line_num + 1}: not valid CSV ({error})") from error
    finally:
        csv.field_size_limit(earlier)


def _check_heading(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    if "" in names or len(set(names)) < len(names):
        raise DataError(f"{path}, line 1: the heading has a column without a name, or one name twice: {names}")


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for start, batch in _numbered(file.iter_batches()):
                for number, row in enumerate(batch.to_pylist(), start=start + 1):
                    yield f"{path}, row {number}", row
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; put it there, or change data.root") from error
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _numbered(batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    start = 0
    for batch in batches:
        yield start, batch
        start += batch.num_rows


def is_saved(folder: Path) -> bool:
    """Whether this is a folder of `datasets.save_to_disk`."""
    return any((folder / name).is_file() for name in SAVED_MARKS)


def saved_rows(folder: Path, split: str) -> Iterator[Row]:
    """The rows of a folder that `datasets.save_to_disk` wrote; of several splits, those of one.

    Raises:
        DataError: it is damaged, or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: cannot be read as a folder of datasets.save_to_disk ({error})") from error
    if isinstance(found, DatasetDict):
        if split not in found:
            raise DataError(
                f"{folder}: there is no split {split!r} (data.table.split); there are {', '.join(map(repr, found))}"
            )
        found = found[split]
    return _rows_of(str(folder), found)


def hub_rows(name: str, subset: str, split: str, tried: Path) -> Iterator[Row]:
    """The rows of one split of a data set on the Hugging Face hub, or in its cache.

    Args:
        name: OWNER/NAME.
        subset: its configuration; empty for the only one.
        split: which part, in the syntax of `datasets.load_dataset`.
        tried: where nothing was found on this machine.

    Raises:
        DataError: there is no such data set, subset or split, or it cannot be had.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        found = load_dataset(name, subset or None, split=split)
    except (OSError, ValueError, RuntimeError, KeyError, DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data.type {name!r}: there is no {tried}, and from the Hugging Face hub (data.table.subset {subset!r}, "
            f"data.table.split {split!r}) it cannot be had: {reason}"
        ) from error
    return _rows_of(f"{name}, {split}", found)


def _rows_of(what: str, found: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(found, start=1):
        yield f"{what}, row {number}", row
