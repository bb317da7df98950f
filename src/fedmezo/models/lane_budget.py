"""How many lanes a device has room for: measured once, on the longest batch that a run can meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedmezo.records import IGNORE_LABEL, Batch, Trainable
from fedmezo.zo.estimators.protocol import Estimator

SHARE_OF_MEMORY = 1 / 8
"""Of the device's whole memory, so that the same machine always gives the same number."""

LANES_ON_CPU = 8
"""From about six lanes on, a CPU core is busy with arithmetic and further lanes only push each other out of cache."""


def fitting_lanes(bytes_per_lane: int, wanted: int, device: torch.device, *, streamed: bool = False) -> int:
    """The largest number of lanes up to `wanted` that the budget has room for, at least 1.

    Where the model is `streamed`, a pass reads its weights from the disk, once for all lanes: the more, the better.
    """
    if device.type == "cpu" and not streamed:
        wanted = min(wanted, LANES_ON_CPU)
    return max(1, min(wanted, int(SHARE_OF_MEMORY * device_memory(device)) // bytes_per_lane))


def bytes_per_lane(model: Trainable, longest: Batch, theta: Tensor, estimator: Estimator) -> int:
    """What a lane adds to memory at most: half of what a forward pass of two needs, and its share of vectors.

    The vectors, of d elements each, are a float32 copy for each lane, and its share of a client's bfloat16 directions
    and float32 theta.
    """
    pair = theta.to(model.device).expand(2, -1).contiguous()
    activations = peak_memory_of(lambda: model.losses(pair, [longest, longest]), model.device) // 2
    return activations + len(theta) * (4 + (2 * estimator.directions + 4) // estimator.losses_per_step)


def device_memory(device: torch.device) -> int:
    """Memory of the device in bytes, used or not."""
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        return total
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def longest_batch(rows: int, length: int, device: torch.device) -> Batch:
    """A batch of the largest size: every token but the first of each row is a label."""
    labels = torch.ones(rows, length, dtype=torch.int64)
    ids = labels.to(device, copy=True)
    labels[:, 0] = IGNORE_LABEL
    return Batch(ids, torch.ones_like(ids), labels)


def peak_memory_of(work: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that `work` has allocated at a time on the device."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        work()
        peak: int = torch.cuda.max_memory_allocated(device)
        return peak - before
    allocations = _Allocations()
    with allocations:
        work()
    return allocations.peak


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch has no annotations here
    """Adds up the storages that operations made and that are still alive; kernels' own scratch space is not seen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.peak = 0
        self._live: dict[int, tuple[Any, int]] = {}  # by storage: a weak reference and its size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.clear()
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]  # as above

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if (key := _storage(tensor)) not in given:  # else a view, or an operation in place
                storage = tensor.untyped_storage()
                self._live[key] = _weak(storage), storage.nbytes()
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


_weak: Any = reductions.StorageWeakRef  # without annotations


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
