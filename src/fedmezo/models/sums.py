"""Checksums of the weights of a whole model that we saved, in a file beside them that `sha256sum -c` reads too.

Models without that file, which others saved, are taken as they are.
"""

from __future__ import annotations

from hashlib import file_digest
from pathlib import Path

from fedmezo.atomic import replacing
from fedmezo.errors import ModelError

SUMS_FILE = "weights.sha256"
_WEIGHTS = "*.safetensors"
_REMEDY = "copy it again, or make it anew from the journal: fedmezo replay RUN --out FOLDER"


def write_sums(folder: Path) -> None:
    """Write the checksums of a model's weights. Raises OSError."""
    lines = [f"{_sum(path)}  {path.name}\n" for path in sorted(folder.glob(_WEIGHTS))]
    with replacing(folder / SUMS_FILE) as file:
        file.write("".join(lines).encode())


def check_sums(folder: Path) -> None:
    """Make sure that a model's weights are those that were written, if the folder says which.

    Raises:
        ModelError: a file is damaged, missing or more than there should be.
    """
    path = folder / SUMS_FILE
    if not path.is_file():
        return
    try:
        lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        written = {name: value for value, name in lines}
        found = {file.name: _sum(file) for file in folder.glob(_WEIGHTS)}
    except OSError as error:
        raise ModelError(f"{error.filename or path}: the model cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged ({error}); {_REMEDY}") from error
    if wrong := sorted(name for name in written.keys() | found.keys() if written.get(name) != found.get(name)):
        raise ModelError(f"{folder / wrong[0]} is not what was written (its checksum does not fit); {_REMEDY}")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
