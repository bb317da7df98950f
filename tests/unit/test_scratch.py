"""Folders for a while: gone with their process, or with the next start if it was killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmezo.scratch import scratch_folder

HOLD = "from fedmezo.scratch import scratch_folder\nwith scratch_folder() as f:\n print(f, flush=True)\n input()"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # where the answer is kept
    yield tmp_path
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_it_goes_with_the_block(root: Path) -> None:
    with scratch_folder() as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").touch()
        assert folder.parent == root
        assert folder.name.startswith("fedmezo-")
    assert list(root.iterdir()) == []


def test_what_a_killed_process_left_goes_at_the_next_start_and_what_others_use_stays(root: Path) -> None:
    (root / "other").mkdir()
    (root / "fedmezo-file").touch()
    (root / "fedmezo-link").symlink_to(root / "other")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        (left / "data").touch()
        with scratch_folder() as ours, scratch_folder() as another:
            assert (left / "data").exists()  # its process lives
            assert ours.exists()
            assert ours != another
        process.kill()
        process.wait()
        assert left.exists()
    with scratch_folder():
        assert not left.exists()
    assert sorted(path.name for path in root.iterdir()) == ["fedmezo-file", "fedmezo-link", "other"]
