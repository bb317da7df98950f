"""Snapshots read back to the bit, and are refused when they are not the state that was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedmezo.errors import RunError
from fedmezo.runs.snapshots import delete_snapshots, load_snapshot, save_snapshot, snapshot_path, snapshot_rounds
from fedmezo.zo.arithmetic import state_hash

THETA = torch.linspace(-1, 1, 11)
HASH = state_hash(THETA)


def test_reads_back_to_the_bit(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    assert snapshot_rounds(folder) == []
    for round_index in (50, 3, 100):
        save_snapshot(folder, round_index, THETA + round_index, state_hash(THETA + round_index))
    assert snapshot_rounds(folder) == [3, 50, 100]
    assert torch.equal(load_snapshot(folder, 50, state_hash(THETA + 50)), THETA + 50)
    delete_snapshots(folder, [3, 4])
    assert sorted(path.name for path in folder.iterdir()) == [
        "theta_00000050.safetensors",
        "theta_00000100.safetensors",
    ]


def test_other_files_are_no_snapshots(tmp_path: Path) -> None:
    save_snapshot(tmp_path, 1, THETA, HASH)
    (tmp_path / ".theta_00000002.safetensors.0123.part").write_bytes(b"cut")
    (tmp_path / "theta_best.safetensors").write_bytes(b"")
    assert snapshot_rounds(tmp_path) == [1]


def test_another_state_is_refused(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, 1, THETA + 1, HASH)
    with pytest.raises(RunError, match=rf"{path}: its state is .*, but the journal says {HASH[:16]}; remove it"):
        load_snapshot(tmp_path, 1, HASH)


def test_every_flipped_bit_is_refused_or_without_effect(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, 1, THETA, HASH)
    content = path.read_bytes()
    refused = 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            assert torch.equal(load_snapshot(tmp_path, 1, HASH), THETA)  # say a letter of the file's metadata
        except RunError as error:
            assert str(path) in str(error)  # noqa: PT017 (either outcome is right)
            refused += 1
    assert refused >= 4 * len(THETA)


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 100])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = snapshot_path(tmp_path, 1)
    path.write_bytes(content)
    with pytest.raises(RunError, match="the snapshot is damaged"):
        load_snapshot(tmp_path, 1, HASH)
    assert path.read_bytes() == content


def test_a_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"theta_00000001.safetensors: the snapshot cannot be read: No such file"):
        load_snapshot(tmp_path, 1, HASH)
    safetensors.torch.save_file({"theta": THETA.double()}, snapshot_path(tmp_path, 1))
    with pytest.raises(RunError, match=r"its state is torch.float64"):
        load_snapshot(tmp_path, 1, HASH)
