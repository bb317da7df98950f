"""Writing a file so that its reader sees all of it or none of it, and so that a failure names it; reading it whole."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

_PART = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `path` that takes its place when the block ends well; otherwise it is removed.

    Folders that are missing are made. The file and its name are on disk when the block is left. Raises OSError.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid4().hex}{_PART}")
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block say which file it is about, as one of a write (a full disk) does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def read_whole(path: Path) -> bytes:
    """All of a file. Raises OSError: also for a device or a pipe, of which there may be no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.read_bytes()


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed inside `replacing` left in a folder that no other process writes."""
    for part in folder.glob(f".*{_PART}"):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Put a folder's new names on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
