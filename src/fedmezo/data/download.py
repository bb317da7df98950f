"""Fetching one file over HTTP: whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from fedmezo.atomic import replacing
from fedmezo.data.parse import what_instead_of_data
from fedmezo.errors import DataError

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes received so far and the bytes in all (None where the server does not say)."""

MAX_BYTES = 256 * 2**20  # ten times the largest file that we fetch
TIMEOUT_SECONDS = 30.0  # for connecting and for each read, not for the whole file
_CHUNK_BYTES = 64 * 2**10


def ignore_progress(bytes_done: int, bytes_total: int | None) -> None:
    """Report to nobody."""


def download(
    url: str,
    path: Path,
    on_progress: OnProgress = ignore_progress,
    max_bytes: int = MAX_BYTES,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Fetch `url` into `path`, which appears only once complete.

    Raises DataError, naming the address and where to put the file by hand: no connection, an HTTP error, a
    connection that ends early, a file over `max_bytes`, a web page or Git LFS pointer instead of data, a full disk.
    """
    try:
        request = Request(url, headers={"User-Agent": "fedmezo"})
        with urlopen(request, timeout=timeout_seconds) as response, replacing(path) as file:
            _copy(response, file, on_progress, max_bytes)
    except (OSError, HTTPException, _AnswerError) as error:
        raise DataError(
            f"cannot download {url}: {_reason(error)}. To do without, fetch that file elsewhere and put it at {path}"
        ) from error


class _AnswerError(Exception):
    """The server answered, but not with the file."""


def _copy(response: HTTPResponse, file: BinaryIO, on_progress: OnProgress, max_bytes: int) -> None:
    length = response.headers.get("Content-Length")
    bytes_total = int(length) if length else None
    _check_size(bytes_total or 0, max_bytes)
    bytes_done = 0
    while chunk := response.read(_CHUNK_BYTES):
        if bytes_done == 0 and (what := what_instead_of_data(chunk)):
            raise _AnswerError(f"the server sent {what}")
        bytes_done += len(chunk)
        _check_size(bytes_done, max_bytes)
        file.write(chunk)
        on_progress(bytes_done, bytes_total)
    if bytes_total is not None and bytes_done != bytes_total:  # http.client is silent about a short body
        raise _AnswerError(f"the connection ended after {bytes_done} of {bytes_total} bytes")


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise _AnswerError(f"the file has more than {max_bytes} bytes, the most that is accepted")


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        error.close()
        return f"HTTP {error.code} {error.reason}"
    return str(error) or type(error).__name__
