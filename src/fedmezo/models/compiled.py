"""The laned forward pass, made faster for a slower start: compiled on a CPU, captured as graphs on a GPU.

Both are compared with the eager form before they are used, and may differ from it in the last bits of a loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from transformers import PreTrainedModel

from fedmezo.models.label_loss import LabelLosses, LabelOnlyPath, LabelPositions, losses_agree, probe_of
from fedmezo.models.lanes import EagerForward, LaneForward, give
from fedmezo.models.quantised import rounding_of
from fedmezo.records import IGNORE_LABEL, Batch

logger = logging.getLogger(__name__)

LENGTH_STEP = 32
"""Sequences of a graph are padded to multiples of this many tokens: few graphs, and little padding."""

FEWEST_LABELS = 64
"""Label tokens of a graph are padded to powers of two from here on; they cost the output head alone."""

PROBE_LENGTH = 13
"""Tokens; no rank or number of lanes that anyone is likely to use."""

KERNELS_OF_BLOCKS = 2
"""Blocks that need more take too long to compile: some have code that depends on the layer's number."""


def compiled_forward(forward: EagerForward, base: PreTrainedModel, thetas: Tensor, rows: int) -> LaneForward | None:
    """The faster form of a laned forward pass; None where there is none, or one that gives other losses.

    The two are compared at the sizes that training will have but for the length, so that the kernel that is tried is
    the one that is used: a compiler takes sizes that are equal here to be equal always.

    Args:
        forward: the eager form; its model's blocks are compiled in place.
        base: the causal language model inside.
        thetas: lanes to compare the forms at, (lanes, d).
        rows: of a batch.
    """
    probe = probe_of(base, rows=rows * len(thetas), length=PROBE_LENGTH)
    tried = thetas, 0.5 * thetas  # a form that only repeats an earlier result is found out by the second
    with torch.inference_mode():
        expected = [forward(some, probe) for some in tried]
        faster = _captured(forward, base, probe) if thetas.device.type == "cuda" else _compiled(forward)
        found = None if faster is None else _losses(faster, tried, probe)
        if found is not None and all(map(losses_agree, found, expected, 2 * [rounding_of(base)])):
            return faster
    for block in _blocks(forward):
        block._compiled_call_impl = None  # what nn.Module.compile sets; there is no public way back
    return None


def _losses(faster: LaneForward, thetas: Sequence[Tensor], probe: Batch) -> list[Tensor] | None:
    """Losses at several thetas; None where there is no compiler, or what it makes is not what is wanted."""
    try:
        with torch._dynamo.config.patch(recompile_limit=KERNELS_OF_BLOCKS, fail_on_recompile_limit_hit=True):
            return [faster(one, probe) for one in thetas]
    except (RuntimeError, FailOnRecompileLimitHit):  # every failure of a compiler or of a capture is a RuntimeError
        return None


def _compiled(forward: EagerForward) -> LaneForward | None:
    blocks = _blocks(forward)
    for block in blocks:
        block.compile(dynamic=True)
    return forward if blocks else None


def _captured(forward: EagerForward, base: PreTrainedModel, probe: Batch) -> LaneForward | None:
    if not isinstance(forward.path, LabelOnlyPath):
        return None
    virtual = forward.path.hidden_states(probe.input_ids).shape[1] - probe.length
    longest = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    return GraphedForward(forward, virtual, longest, CudaCapture(base.device))


def _blocks(forward: EagerForward) -> list[nn.Module]:
    """The model's repeated layers. They share one kernel, so that compilation does not grow with the model's depth."""
    modules = forward.path.model.modules()
    stacks = [list(module) for module in modules if isinstance(module, nn.ModuleList) and len(module) > 1]
    return [block for stack in stacks if len({type(block) for block in stack}) == 1 for block in stack]


Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From work on fixed tensors to a way of doing it again that returns the same tensor with new content."""


class CudaCapture:
    """Captures work on one GPU as CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Capture`."""
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its own stream as the current one: the inner context puts the old one back.
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # PyTorch has no annotations here
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work()  # what libraries set up at a first call cannot be captured
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=self._pool):
                result = work()

        def again() -> Tensor:
            with torch.cuda.device(self._device):
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
        eager: the form to capture, with the label-only loss; used itself for sizes that cannot be captured.
        virtual: tokens that PEFT puts before those of a batch.
        longest: positions that the model has, virtual ones included; None for no limit.
        capture: how a graph is made.
    """

    def __init__(self, eager: EagerForward, virtual: int, longest: int | None, capture: Capture) -> None:
        assert isinstance(eager.path, LabelOnlyPath)
        self._eager = eager
        self._path = eager.path
        self._virtual = virtual
        self._longest = longest
        self._capture = capture
        self._graphs: dict[tuple[int, ...], _Graph | None] = {}  # None: cannot be captured
        self._thetas: dict[int, Tensor] = {}  # of each number of lanes, shared by its graphs

    def __call__(self, stacked: Tensor, batch: Batch) -> Tensor:
        """See `LaneForward`."""
        padding = (0, self._padding(batch.length))
        ids, labels = F.pad(batch.input_ids, padding), F.pad(batch.labels, padding, value=IGNORE_LABEL)
        positions = padded(LabelPositions.of(labels, self._virtual + ids.shape[1], stacked.device))
        size = (len(stacked), *ids.shape, len(positions.index))
        if size not in self._graphs:
            self._graphs[size] = self._captured(stacked, ids, positions)
        graph = self._graphs[size]
        if graph is None:
            return self._eager(stacked, batch)
        return graph(stacked, ids, positions.index, positions.targets, positions.counts)

    def _padding(self, length: int) -> int:
        """Tokens to add to so many: up to the next step, as far as the model has positions for them."""
        wanted = -length % LENGTH_STEP
        return wanted if self._longest is None else max(0, min(wanted, self._longest - self._virtual - length))

    def _captured(self, stacked: Tensor, ids: Tensor, positions: LabelPositions) -> _Graph | None:
        thetas = self._thetas.setdefault(len(stacked), stacked.clone())
        ids, index = ids.clone(), positions.index.clone()
        fixed = LabelPositions(index, positions.targets.clone(), positions.counts.clone(), positions.length)

        def work() -> Tensor:
            give(self._eager.layers, thetas)
            hidden = self._path.hidden_states(ids).flatten(0, 1)
            chosen = hidden[index.clamp(max=fixed.size - 1)]
            return LabelLosses(self._path.token_losses(chosen, fixed.targets), fixed).group_means(len(thetas))

        try:
            return _Graph((thetas, ids, index, fixed.targets, fixed.counts), self._capture(work))
        except RuntimeError as error:
            if not self._graphs:  # then nothing can be captured here
                raise
            logger.warning("a forward pass over %d x %d tokens stays without a graph: %s", *ids.shape, error)
            return None


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
