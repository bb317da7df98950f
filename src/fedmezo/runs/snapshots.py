"""Theta at some rounds, on disk. A snapshot names its round and its hash and is checked against the journal's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fedmezo.atomic import replacing
from fedmezo.errors import RunError
from fedmezo.federation.course import hash_of
from fedmezo.zo.arithmetic import state_hash

SNAPSHOT_FOLDER = "snapshots"
_PREFIX = "theta_"
_SUFFIX = ".safetensors"
_MOMENT = "server."
FORMAT_VERSION = "1"


def snapshots_of(run_dir: Path) -> Path:
    """The folder of a run's snapshots."""
    return run_dir / SNAPSHOT_FOLDER


def snapshot_path(folder: Path, round_index: int) -> Path:
    """Where the state before `round_index` is kept."""
    return folder / f"{_PREFIX}{round_index:08d}{_SUFFIX}"


def snapshot_rounds(folder: Path) -> list[int]:
    """The rounds that have a snapshot, in ascending order."""
    names = (path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    return sorted(int(name) for name in names if name.isdigit())


def save_snapshot(
    folder: Path, round_index: int, theta: Tensor, theta_hash: str, moments: Mapping[str, Tensor] | None = None
) -> Path:
    """Write the state before `round_index`, atomically; returns the file.

    Args:
        folder: the run's snapshots.
        round_index: the round.
        theta: (d,), float32 or bfloat16.
        theta_hash: state hash of theta.
        moments: what the server's optimiser remembers, by name, each (d,) float32.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    path = snapshot_path(folder, round_index)
    metadata = {"format": FORMAT_VERSION, "round": str(round_index), "state_hash": theta_hash}
    tensors = {"theta": theta} | {f"{_MOMENT}{name}": moment for name, moment in (moments or {}).items()}
    metadata |= {f"{name}.hash": state_hash(moment) for name, moment in tensors.items() if name != "theta"}
    with replacing(path) as file:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(on_cpu, file.name, metadata)  # without a copy in memory
    return path


def load_snapshot(folder: Path, round_index: int, expected_hash: str) -> Tensor:
    """Read theta (d,) before `round_index`, on the CPU.

    Raises:
        RunError: the file is missing or damaged, or its theta is not the one the journal names.
    """
    path = snapshot_path(folder, round_index)
    tensors = _read(path)
    theta = tensors.pop("theta", None)
    if theta is None:
        raise RunError(f"{path}: the snapshot is damaged ('theta'); {_REMEDY}")
    found = state_hash(theta) if theta.dtype in (torch.float32, torch.bfloat16) else str(theta.dtype)
    if found != expected_hash and tensors:  # the state of a scalars run has the server's moments in it
        found = hash_of(theta, tensors)
    if found != expected_hash:
        raise RunError(f"{path}: its state is {found[:16]}, but the journal says {expected_hash[:16]}; {_REMEDY}")
    return theta


def load_moments(folder: Path, round_index: int) -> dict[str, Tensor]:
    """Read what the server's optimiser remembers before `round_index`, on the CPU; nothing where it has none.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = snapshot_path(folder, round_index)
    tensors = _read(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    for name, tensor in tensors.items():
        whole = tensor.dtype == torch.float32 and metadata.get(f"{name}.hash") == state_hash(tensor)
        if name != "theta" and not whole:
            raise RunError(f"{path}: the snapshot is damaged ({name} is not what was written)")
    return {name.removeprefix(_MOMENT): tensor for name, tensor in tensors.items() if name.startswith(_MOMENT)}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        path.stat()  # its error says what is wrong, in the words of the system
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except OSError as error:
        raise RunError(f"{path}: the snapshot cannot be read: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise RunError(f"{path}: the snapshot is damaged ({error}); {_REMEDY}") from error
    return tensors


def delete_snapshots(folder: Path, rounds: Sequence[int]) -> None:
    """Remove the snapshots of some rounds, where they are there."""
    for round_index in rounds:
        snapshot_path(folder, round_index).unlink(missing_ok=True)


_REMEDY = "remove it, and an earlier snapshot or the journal alone is used, if the run's protocol is scalars"
