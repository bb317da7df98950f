"""Arrays kept on disk under a name that says what they were made from: for their owner alone, while they are used."""

from __future__ import annotations

import os
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmezo.atomic import replacing
from fedmezo.errors import DataError

Arrays = dict[str, NDArray[Any]]

DAYS_KEPT = 30
"""What nobody has read for so long is removed."""
_SECONDS_PER_DAY = 86400


def load_arrays(path: Path) -> Arrays | None:
    """Read what `save_arrays` wrote; None if there is nothing or it is damaged (its checksums are verified)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # np.load(path) may leave it open
            with suppress(PermissionError):
                os.fchmod(file.fileno(), 0o600)  # earlier versions let others read it
                os.utime(file.fileno())
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays to an `.npz` file, which appears only once complete, and remove those beside it that have expired.

    Others can read neither the file nor its folder. Raises DataError where it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(PermissionError):
            path.parent.chmod(0o700)
        _remove_expired(path.parent)
        with replacing(path) as file:
            os.fchmod(file.fileno(), 0o600)
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs take the names for other options
    except OSError as error:
        raise DataError(f"cannot write the cache of tokens {path}: {error}") from error


def _remove_expired(folder: Path) -> None:
    oldest = time.time() - DAYS_KEPT * _SECONDS_PER_DAY
    for path in folder.glob("*.npz"):
        with suppress(OSError):  # another process may be at it too
            if path.stat().st_mtime < oldest:
                path.unlink()
