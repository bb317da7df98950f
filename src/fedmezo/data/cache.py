"""Arrays kept on disk under a name that says what they were made from."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmezo.atomic import replacing
from fedmezo.errors import DataError

Arrays = dict[str, NDArray[Any]]


def load_arrays(path: Path) -> Arrays | None:
    """Read what `save_arrays` wrote; None if there is nothing or it is damaged (its checksums are verified)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # np.load(path) may leave it open
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays to an `.npz` file, which appears only once complete. Raises DataError where that is impossible."""
    try:
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs take the names for other options
    except OSError as error:
        raise DataError(f"cannot write the cache of tokens {path}: {error}") from error
