"""A run's folder is its own, is held by one process, and remembers what a resumed run is compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedmezo.errors import RunError
from fedmezo.runs.directory import (
    differences,
    environment,
    locked,
    new_run_directory,
    read_environment,
    write_environment,
)


def test_no_run_takes_the_folder_of_another(tmp_path: Path) -> None:
    folders = [new_run_directory(tmp_path / "runs", "name") for _ in range(3)]
    assert [folder.name for folder in folders] == ["name", "name-2", "name-3"]


def test_an_outdir_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match=r"runs.*folder"):
        new_run_directory(tmp_path / "runs", "name")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    hold = f"from pathlib import Path\nfrom fedmezo.runs.directory import locked\nwith locked(Path({str(tmp_path)!r})):"
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold} print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process is working on this run"), locked(tmp_path):
            pass
        other.kill()  # the lock goes with it
        other.wait()
        with locked(tmp_path):
            pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"), locked(tmp_path / "missing"):
        pass


def test_the_environment_reads_back(tmp_path: Path) -> None:
    description = environment(torch.device("cpu"), lanes=4, compiled=False)
    write_environment(tmp_path, description, {"seed": 1, "train": {"lr": 0.1}})
    document = read_environment(tmp_path)
    assert document["lanes"] == 4
    assert document["threads"] == torch.get_num_threads()
    assert document["versions"]["torch"] == torch.__version__
    assert document["config"] == {"seed": 1, "train": {"lr": 0.1}}
    assert differences(document, json.loads(json.dumps(description)), frozenset({"config", "started", "version"})) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "damaged"),
        pytest.param("[" * 100_000, "damaged", id="deep"),
        ("[]", "format version None"),
        ('{"version": 9}', "format version 9"),
    ],
)
def test_a_damaged_environment_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "environment.json").write_text(content)
    with pytest.raises(RunError, match=rf"environment.json: .*{message}"):
        read_environment(tmp_path)


def test_differences_are_named_by_key() -> None:
    then = {"a": 1, "b": {"c": [1, 2], "d": 0.1, "gone": 1}, "x": {"y": 1}}
    now = {"a": 1, "b": {"c": [1, 3], "d": 0.1, "new": None}, "x": {"y": 2}}
    assert differences(then, now, frozenset({"x"})) == [
        "b.c: [1, 2] then, [1, 3] now",
        "b.gone: 1 then, nothing now",
        "b.new: nothing then, None now",
    ]
    assert differences(then, then, frozenset()) == []
