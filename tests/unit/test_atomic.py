"""A file is replaced whole or not at all, and a failure says which file it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fedmezo.atomic import naming, remove_leftovers, replacing


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    with replacing(path) as file:
        file.write(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(path):
        raise KeyError
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'"), replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == []


def test_only_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    for name in (".file.0f.part", "file.part", ".lock", "file"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "file", "file.part"]
    remove_leftovers(tmp_path / "missing")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as it was"), naming(tmp_path):
        raise ValueError("as it was")
