"""Folders for the time of a process, in the temporary directory; what killed processes left of them is removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "fedmezo-"
_UNLOCKED_PREFIX = ".fedmezo-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of this process alone, with a short path as sockets need; it goes when the block ends.

    It is locked while the process lives, however that ends. Whoever makes the next one removes those without a lock.
    """
    root = Path(tempfile.gettempdir())
    _sweep(root)
    made = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX, dir=root))  # by another name until it is locked
    descriptor = os.open(made, os.O_RDONLY)
    folder = root / made.name.removeprefix(".")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        made.rename(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove this user's folders that no process holds."""
    for path in root.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # gone by now, or not ours to touch
            if path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)
