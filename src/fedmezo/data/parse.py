"""Reading examples from JSON and JSON Lines files, with the place of whatever is wrong in them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmezo.errors import DataError
from fedmezo.records import Example


def _as_it_is(example: Example) -> Example:
    return example


@dataclass(frozen=True, slots=True)
class Layout:
    """The field names under which a file keeps an example. `input` and `category` may be absent or null: then ''."""

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    category: str = "category"
    empty_output: bool = False  # accepted? Then the target is the end-of-sequence token alone
    finish: Callable[[Example], Example] = _as_it_is  # what remains to be done to the texts


def read_examples(path: Path, layout: Layout) -> list[Example]:
    """Read a list of objects (`.json`), or an object per line (`.jsonl`, `.jsonl.gz`); blank lines are skipped.

    Raises DataError naming the file, the line or item (both counted from 1) and the field.
    """
    text = _read_text(path)
    rows = _lines(path, text) if ".jsonl" in path.suffixes else _items(path, text)
    examples = [_example(where, row, layout) for where, row in rows]
    if not examples:
        raise DataError(f"{path}: the file holds no example")
    return examples


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
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; put it there, or change data.root") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _lines(path: Path, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): U+2028 may stand in a text
        if line.strip():
            yield f"{path}, line {number}", _parse(path, line, number)


def _items(path: Path, text: str) -> Iterator[tuple[str, object]]:
    rows = _parse(path, text, 1)
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds {_kind(rows)} where a list of objects is expected")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, item {number}", row


def _parse(path: Path, text: str, first_line: int) -> object:
    where = path if path.suffix == ".json" else f"{path}, line {first_line}"  # these errors have no position
    try:
        value: object = json.loads(text)
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


def _example(where: str, row: object, layout: Layout) -> Example:
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: holds {_kind(row)} where an object with the field {layout.instruction!r} is expected"
        )
    example = Example(
        instruction=_text(where, row, layout.instruction),
        input=_optional_text(where, row, layout.input),
        output=_text(where, row, layout.output),
        category=_optional_text(where, row, layout.category),
    )
    if not example.output and not layout.empty_output:
        raise DataError(f"{where}: field {layout.output!r} is empty; write the answer there or remove the example")
    return layout.finish(example)


def _optional_text(where: str, row: dict[str, object], field: str) -> str:
    return "" if row.get(field) is None else _text(where, row, field)


def _text(where: str, row: dict[str, object], field: str) -> str:
    if field not in row:
        raise DataError(f"{where}: field {field!r} is missing (there are: {', '.join(map(repr, row)) or 'none'})")
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: field {field!r} is {_kind(value)} where a text is expected")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: field {field!r} holds half of a surrogate pair (\\ud800 to \\udfff)")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
