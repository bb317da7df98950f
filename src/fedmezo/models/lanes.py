"""Many thetas in one forward pass: the frozen base runs once over all rows, each adapter layer once per lane.

A lane is one theta with its batch. The lanes' rows are laid under one another, padded on the right to the longest, and
go through a copy of the model that shares every base weight and whose adapter layers read all lanes' values at once.

Shapes: L lanes, b rows a lane, t tokens, v virtual tokens, r rank, d elements of theta, n positions of a lane (b t).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, PrefixEncoder, PromptEmbedding, PromptEncoder
from peft.tuners import ia3, lora
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmezo.models.flat import ADAPTER_NAME, FlatParameters
from fedmezo.models.label_loss import LossPath, choose_path, losses_agree, probe_of
from fedmezo.records import IGNORE_LABEL, Batch, Segment


class LaneThetas:
    """Where the laned layers of a model find their values; set before each forward pass."""

    def __init__(self) -> None:
        self.stacked = torch.empty(0, 0)  # (L, d) float32

    def __len__(self) -> int:
        return len(self.stacked)

    def view(self, segment: Segment) -> Tensor:
        """One tensor of every lane, (L, *shape)."""
        return self.stacked[:, segment.start : segment.stop].view(-1, *segment.shape)


class LaneLora(nn.Module):
    """A LoRA layer whose A and B differ from lane to lane; the base layer's product is taken once over all rows.

    The low-rank product is in float32, as in PEFT: in half precision its own rounding would hide a perturbation of A.
    """

    def __init__(self, layer: lora.Linear, thetas: LaneThetas, a: Segment, b: Segment) -> None:
        super().__init__()
        self.base_layer: nn.Module = layer.base_layer
        self.scaling: float = layer.scaling[ADAPTER_NAME]
        self.thetas, self.a, self.b = thetas, a, b
        self.segments = (a, b)

    def forward(self, x: Tensor) -> Tensor:
        """Map (L b, ..., in) to (L b, ..., out)."""
        base = self.base_layer(x)
        lanes = len(self.thetas)
        inputs = x.reshape(lanes, -1, x.shape[-1]).float()  # (L, n, in)
        low = torch.bmm(inputs, self.thetas.view(self.a).mT)  # (L, n, r)
        outputs = base.reshape(lanes, -1, base.shape[-1]).float()  # (L, n, out)
        return torch.baddbmm(outputs, low, self.thetas.view(self.b).mT, alpha=self.scaling).to(base.dtype).view_as(base)


class LaneIA3(nn.Module):
    """An (IA)3 layer whose scales differ from lane to lane."""

    def __init__(self, layer: ia3.Linear, thetas: LaneThetas, scale: Segment) -> None:
        super().__init__()
        self.base_layer: nn.Module = layer.base_layer
        self.is_feedforward: bool = layer.is_feedforward
        self.thetas, self.scale = thetas, scale
        self.segments = (scale,)

    def forward(self, x: Tensor) -> Tensor:
        """Map (L b, ..., in) to (L b, ..., out)."""
        return self.base_layer(self._scaled(x)) if self.is_feedforward else self._scaled(self.base_layer(x))

    def _scaled(self, x: Tensor) -> Tensor:
        lanes = len(self.thetas)
        scales = self.thetas.view(self.scale).view(lanes, 1, -1)
        return (x.reshape(lanes, -1, x.shape[-1]) * scales).to(x.dtype).view_as(x)


class LanePrompt(nn.Module):
    """Virtual tokens (or the keys and values of a prefix) that differ from lane to lane.

    They are made lane by lane by PEFT's encoder, whose tensors are the lane's meanwhile. They are exchanged, never
    written to: the live tensors may be views of a theta that belongs to someone else.
    """

    def __init__(self, encoder: nn.Module, thetas: LaneThetas, segments: Mapping[str, Segment]) -> None:
        super().__init__()
        self.encoder = encoder
        self.embedding = encoder.get_submodule("embedding")  # PEFT asks it for its device
        self.thetas, self.segments = thetas, tuple(segments.values())
        self.live = [encoder.get_parameter(name) for name in segments]

    def forward(self, indices: Tensor) -> Tensor:
        """Map the numbers of the virtual tokens (L b, v), the same in each row, to their vectors (L b, v, ...)."""
        values = [self.thetas.view(segment) for segment in self.segments]
        kept = [parameter.data for parameter in self.live]
        made = []
        for lane in range(len(self.thetas)):
            self._exchange([value[lane] for value in values])
            made.append(self.encoder(indices[:1]))
        self._exchange(kept)
        return torch.cat(made).repeat_interleave(len(indices) // len(made), dim=0)

    def _exchange(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.live, values, strict=True):
            parameter.data = value


class LanedLosses:
    """The loss of each lane, in one forward pass for all lanes whose batches have as many rows."""

    def __init__(self, path: LossPath, thetas: LaneThetas) -> None:
        self._path = path
        self._thetas = thetas

    def __call__(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """Mean loss over the label tokens of batch j at theta j, (L,) float32."""
        stacked = thetas if isinstance(thetas, Tensor) else torch.stack(list(thetas))
        losses = stacked.new_empty(len(stacked))
        for rows in sorted({batch.num_examples for batch in batches}):
            lanes = [lane for lane, batch in enumerate(batches) if batch.num_examples == rows]
            here = stacked if len(lanes) == len(stacked) else stacked[lanes]
            losses[lanes] = self._forward(here, join([batches[lane] for lane in lanes]))
        return losses

    def _forward(self, stacked: Tensor, batch: Batch) -> Tensor:
        self._thetas.stacked = stacked
        return self._path(batch).group_means(len(stacked))


def laned_losses(model: PeftModel, flat: FlatParameters, path: LossPath) -> tuple[LanedLosses | None, list[str]]:
    """The laned form of a model's loss where there is one that agrees with it, else None and a notice for the user.

    Args:
        model: with its adapter, in evaluation mode; the laned form shares all its tensors.
        flat: its trainable tensors.
        path: its loss at the live tensors.
    """
    base = base_of(model)
    thetas = LaneThetas()
    copied = _with_lanes(model, flat, thetas)
    if copied is not None:
        thetas.stacked = _spread(flat.flat())
        lane_path, _ = choose_path(copied, base_of(copied))
        laned = LanedLosses(lane_path, thetas)
        if _agree(laned, path, flat, probe_of(base), base.dtype):
            return laned, []
    return None, [
        f"train.lanes: {type(base).__name__} with this adapter has no laned form: one perturbed copy of the adapter is "
        "evaluated at a time"
    ]


def base_of(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside a model with an adapter, or the model itself where nothing is around it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def _spread(theta: Tensor) -> Tensor:
    """Two thetas to either side of one, (2, d), far enough apart to tell lanes that are mixed up."""
    step = 0.02 * torch.sin(torch.arange(len(theta), dtype=theta.dtype, device=theta.device))
    return torch.stack([theta + step, theta - step])


def _agree(laned: LanedLosses, path: LossPath, flat: FlatParameters, probe: Batch, dtype: torch.dtype) -> bool:
    """Whether two lanes of one row each have the losses that the live tensors give."""
    theta = flat.flat()
    thetas = _spread(theta)
    batches = [
        Batch(*(part[i : i + 1] for part in (probe.input_ids, probe.attention_mask, probe.labels))) for i in (0, 1)
    ]
    alone = []
    with torch.inference_mode():
        for one, batch in zip(thetas, batches, strict=True):
            flat.load(one)
            alone.append(path(batch).mean())
        flat.load(theta)
        try:
            together = laned(thetas, batches)
        except RuntimeError:
            return False
    return losses_agree(together, torch.stack(alone), dtype)


def _with_lanes(model: PeftModel, flat: FlatParameters, thetas: LaneThetas) -> nn.Module | None:
    """A copy of the model that shares all its tensors and computes all lanes at once.

    None where part of the adapter is of a kind that has no laned form.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    segments = {id(p): segment for p, segment in zip(flat.parameters, flat.segments, strict=True)}
    elements = 0
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            laned = _laned(child, thetas, segments)
            if laned is not None:
                setattr(parent, name, laned)
                elements += sum(segment.stop - segment.start for segment in laned.segments)
    if elements != flat.segments[-1].stop:
        return None
    if not copied.active_peft_config.is_prompt_learning:
        return base_of(copied)
    prompt = copied.prompt_encoder[ADAPTER_NAME]
    if not isinstance(prompt.encoder, PrefixEncoder):
        untyped: Any = copied  # an attribute in place of a method
        untyped.get_prompt = _prompts_of(prompt, copied.prompt_tokens[ADAPTER_NAME].to(flat.device))
    return copied


def _prompts_of(prompt: nn.Module, indices: Tensor) -> Callable[..., Tensor]:
    """In place of PEFT's `get_prompt`, which makes one row and repeats it: the prompts of all rows, (L b, v, h)."""

    def get_prompt(batch_size: int, task_ids: None = None) -> Tensor:
        made: Tensor = prompt(indices.expand(batch_size, -1))
        return made

    return get_prompt


def _laned(
    layer: nn.Module, thetas: LaneThetas, segments: Mapping[int, Segment]
) -> LaneLora | LaneIA3 | LanePrompt | None:
    """The laned form of an adapter's layer; None for any other module."""
    own = {name: segments[id(p)] for name, p in layer.named_parameters() if id(p) in segments}
    if isinstance(layer, lora.Linear) and len(own) == 2:
        return LaneLora(layer, thetas, own[f"lora_A.{ADAPTER_NAME}.weight"], own[f"lora_B.{ADAPTER_NAME}.weight"])
    if isinstance(layer, ia3.Linear):
        return LaneIA3(layer, thetas, own[f"ia3_l.{ADAPTER_NAME}"])
    if isinstance(layer, PromptEmbedding | PrefixEncoder | PromptEncoder):
        return LanePrompt(layer, thetas, own)
    return None


def join(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches under one another, padded on the right to the longest."""
    length = max(batch.length for batch in batches)

    def stack(rows: list[Tensor], value: int) -> Tensor:
        return torch.cat([F.pad(row, (0, length - row.shape[1]), value=value) for row in rows])

    return Batch(
        input_ids=stack([batch.input_ids for batch in batches], 0),
        attention_mask=stack([batch.attention_mask for batch in batches], 0),
        labels=stack([batch.labels for batch in batches], IGNORE_LABEL),
    )
