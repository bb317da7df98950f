"""The laned forward pass, made faster for a slower start: compiled on a CPU, captured as graphs on a GPU.

Both are compared with the eager form before they are used, and may differ from it in the last bits of a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmezo.models.label_loss import LabelLosses, LabelOnlyPath, LabelPositions, losses_agree, probe_of
from fedmezo.models.lanes import EagerForward, LaneForward, LaneLayer, give
from fedmezo.records import IGNORE_LABEL, Batch

LENGTH_STEP = 32
"""Sequences of a graph are padded to multiples of this many tokens: few graphs, and little padding."""

FEWEST_LABELS = 64
"""Label tokens of a graph are padded to powers of two from here on; they cost the output head alone."""


PROBE = {"rows": 4, "length": 11}
"""Of two lanes: sizes that differ from each other and from a rank, since a compiler takes equal ones to be one."""


def compiled_forward(forward: EagerForward, base: PreTrainedModel, stacked: Tensor) -> LaneForward | None:
    """The faster form of a laned forward pass; None where there is none, or one that gives other losses.

    Args:
        forward: the eager form; its model's blocks are compiled in place.
        base: the causal language model inside.
        stacked: two lanes to compare the forms at, (2, d).
    """
    probe = probe_of(base, **PROBE)
    with torch.inference_mode():
        expected = forward(stacked, probe)
        try:
            faster = _faster(forward, probe)
            found = None if faster is None else faster(stacked, probe)
        except RuntimeError:  # no compiler, one that fails, or an operation that cannot be captured
            found = None
        if found is not None and losses_agree(found, expected, base.dtype):
            return faster
    for block in _blocks(forward):
        block._compiled_call_impl = None  # what nn.Module.compile sets; there is no public way back
    return None


def _faster(forward: EagerForward, probe: Batch) -> LaneForward | None:
    if probe.input_ids.device.type == "cuda":
        if not isinstance(forward.path, LabelOnlyPath):
            return None
        virtual = forward.path.hidden_states(probe.input_ids).shape[1] - probe.length
        return GraphedForward(forward.path, forward.layers, virtual, CudaCapture())
    blocks = _blocks(forward)
    for block in blocks:
        block.compile(dynamic=True)
    return forward if blocks else None


def _blocks(forward: EagerForward) -> list[nn.Module]:
    """The model's repeated layers. They share one kernel, so that compilation does not grow with the model's depth."""
    modules = forward.path.model.modules()
    stacks = [list(module) for module in modules if isinstance(module, nn.ModuleList) and len(module) > 1]
    return [block for stack in stacks if len({type(block) for block in stack}) == 1 for block in stack]


Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From work on fixed tensors to a way of doing it again that returns the same tensor with new content."""


class CudaCapture:
    """Captures work as CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Capture`."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # PyTorch has no annotations here
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # what libraries set up at a first call cannot be captured
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()

        def again() -> Tensor:
            graph.replay()
            return result

        return again


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    inputs: tuple[Tensor, ...]
    again: Callable[[], Tensor]

    def __call__(self, *values: Tensor) -> Tensor:
        for kept, value in zip(self.inputs, values, strict=True):
            kept.copy_(value, non_blocking=True)
        return self.again().clone()


class GraphedForward:
    """A laned forward pass of few launches: one graph for each padded size that is met.

    Args:
        path: the laned model's loss.
        layers: its laned layers.
        virtual: tokens that PEFT puts before those of a batch.
        capture: how a graph is made.
    """

    def __init__(self, path: LabelOnlyPath, layers: Sequence[LaneLayer], virtual: int, capture: Capture) -> None:
        self._path = path
        self._layers = layers
        self._virtual = virtual
        self._capture = capture
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._thetas: dict[int, Tensor] = {}  # of each number of lanes, shared by its graphs

    def __call__(self, stacked: Tensor, batch: Batch) -> Tensor:
        """See `LaneForward`."""
        padding = (0, -batch.length % LENGTH_STEP)
        ids, labels = F.pad(batch.input_ids, padding), F.pad(batch.labels, padding, value=IGNORE_LABEL)
        positions = padded(LabelPositions.of(labels, self._virtual + ids.shape[1], stacked.device))
        size = (len(stacked), *ids.shape, len(positions.index))
        if size not in self._graphs:
            self._graphs[size] = self._captured(stacked, ids, positions)
        return self._graphs[size](stacked, ids, positions.index, positions.targets, positions.counts)

    def _captured(self, stacked: Tensor, ids: Tensor, positions: LabelPositions) -> _Graph:
        thetas = self._thetas.setdefault(len(stacked), stacked.clone())
        ids, index = ids.clone(), positions.index.clone()
        fixed = LabelPositions(index, positions.targets.clone(), positions.counts.clone(), positions.length)

        def work() -> Tensor:
            give(self._layers, thetas)
            hidden = self._path.hidden_states(ids).flatten(0, 1)
            chosen = hidden[index.clamp(max=fixed.size - 1)]
            return LabelLosses(self._path.token_losses(chosen, fixed.targets), fixed).group_means(len(thetas))

        return _Graph((thetas, ids, index, fixed.targets, fixed.counts), self._capture(work))


def padded(positions: LabelPositions) -> LabelPositions:
    """The same label tokens, and further ones that belong to no position, so that few numbers of them are met."""
    n = len(positions.index)
    missing = max(FEWEST_LABELS, 1 << max(0, n - 1).bit_length()) - n
    return LabelPositions(
        index=F.pad(positions.index, (0, missing), value=positions.size),
        targets=F.pad(positions.targets, (0, missing)),
        counts=positions.counts,
        length=positions.length,
    )
