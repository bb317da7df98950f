"""Many thetas in one forward pass: the frozen base runs once over all rows, each adapter layer once per lane.

A lane is one theta with its batch. The lanes' rows are laid under one another, padded on the right to the longest, and
go through a copy of the model that shares every base weight and whose adapter layers read all lanes' values at once.

Shapes: L lanes, b rows a lane, t tokens, v virtual tokens, r rank, d elements of theta, n positions of a lane (b t).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from peft import PeftModel, PrefixEncoder, PromptEmbedding, PromptEncoder
from peft.tuners import ia3, lora
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmezo.models.flat import ADAPTER_NAME, FlatParameters
from fedmezo.models.foreign import attempt
from fedmezo.models.label_loss import LossPath, choose_path, losses_agree, probe_of
from fedmezo.models.quantised import rounding_of
from fedmezo.records import IGNORE_LABEL, Batch, Segment

_LORA_MATRICES = {f"lora_{name}.{ADAPTER_NAME}.weight" for name in "AB"}


class LaneLora(nn.Module):
    """A LoRA layer whose A and B differ from lane to lane; the base layer's product is taken once over all rows.

    The low-rank product is in float32, as in PEFT: in half precision its own rounding would hide a perturbation of A.
    """

    def __init__(self, layer: lora.LoraLayer, segments: Mapping[str, Segment]) -> None:
        super().__init__()
        self.base_layer: nn.Module = layer.base_layer
        self.scaling: float = layer.scaling[ADAPTER_NAME]
        self.segments = tuple(segments[f"lora_{name}.{ADAPTER_NAME}.weight"] for name in "AB")
        self.a = self.b = torch.empty(0)

    def take(self, values: Sequence[Tensor]) -> None:
        """Use these A (L, r, in) and B (L, out, r)."""
        self.a, self.b = values

    def forward(self, x: Tensor) -> Tensor:
        """Map (L b, ..., in) to (L b, ..., out)."""
        base = self.base_layer(x)
        lanes = len(self.a)
        inputs = x.reshape(lanes, -1, x.shape[-1]).float()  # (L, n, in)
        low = torch.bmm(inputs, self.a.mT)  # (L, n, r)
        outputs = base.reshape(lanes, -1, base.shape[-1]).float()  # (L, n, out)
        return torch.baddbmm(outputs, low, self.b.mT, alpha=self.scaling).to(base.dtype).view_as(base)


class LaneIA3(nn.Module):
    """An (IA)3 layer whose scales differ from lane to lane."""

    def __init__(self, layer: ia3.Linear, segments: Mapping[str, Segment]) -> None:
        super().__init__()
        self.base_layer: nn.Module = layer.base_layer
        self.is_feedforward: bool = layer.is_feedforward
        self.segments = (segments[f"ia3_l.{ADAPTER_NAME}"],)
        self.scales = torch.empty(0)

    def take(self, values: Sequence[Tensor]) -> None:
        """Use these scales (L, in or out)."""
        self.scales = values[0].flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (L b, ..., in) to (L b, ..., out)."""
        return self.base_layer(self._scaled(x)) if self.is_feedforward else self._scaled(self.base_layer(x))

    def _scaled(self, x: Tensor) -> Tensor:
        return (x.reshape(len(self.scales), -1, x.shape[-1]) * self.scales[:, None]).to(x.dtype).view_as(x)


class LanePrompt(nn.Module):
    """Virtual tokens (or the keys and values of a prefix) that differ from lane to lane.

    They are made lane by lane by PEFT's encoder, whose tensors are the lane's meanwhile. They are exchanged, never
    written to: the live tensors may be views of a theta that belongs to someone else.
    """

    def __init__(self, encoder: nn.Module, segments: Mapping[str, Segment]) -> None:
        super().__init__()
        self.encoder = encoder
        self.embedding = encoder.get_submodule("embedding")  # PEFT asks it for its device
        self.segments = tuple(segments.values())
        self.live = [encoder.get_parameter(name) for name in segments]
        self.values: Sequence[Tensor] = ()

    def take(self, values: Sequence[Tensor]) -> None:
        """Use these tensors of the encoder, each (L, *shape)."""
        self.values = values

    def forward(self, indices: Tensor) -> Tensor:
        """Map the numbers of the virtual tokens (L b, v), the same in each row, to their vectors (L b, v, ...)."""
        kept = [parameter.data for parameter in self.live]
        made = []
        for lane in zip(*self.values, strict=True):
            self._exchange(lane)
            made.append(self.encoder(indices[:1]))
        self._exchange(kept)
        return torch.cat(made).repeat_interleave(len(indices) // len(made), dim=0)

    def _exchange(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.live, values, strict=True):
            parameter.data = value


LaneLayer: TypeAlias = LaneLora | LaneIA3 | LanePrompt


class LaneForward(Protocol):
    """One forward pass over some lanes."""

    def __call__(self, stacked: Tensor, batch: Batch) -> Tensor:
        """The mean loss of each lane, (L,) float32: row j of `stacked` (L, d) on the j-th of L parts of the batch."""
        ...


class EagerForward:
    """The laned model, called."""

    def __init__(self, path: LossPath, layers: Sequence[LaneLayer]) -> None:
        self.path = path
        self.layers = layers

    def __call__(self, stacked: Tensor, batch: Batch) -> Tensor:
        """See `LaneForward`."""
        give(self.layers, stacked)
        return self.path(batch).group_means(len(stacked))


def laned_losses(forward: LaneForward, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
    """Mean loss over the label tokens of batch j at theta j, (L,): one pass for all batches with as many rows."""
    sizes = sorted({batch.num_examples for batch in batches})
    if len(sizes) == 1:
        return forward(thetas if isinstance(thetas, Tensor) else _stacked(thetas), join(batches))
    losses = thetas[0].new_empty(len(thetas))
    for rows in sizes:
        lanes = [lane for lane, batch in enumerate(batches) if batch.num_examples == rows]
        some = _stacked([thetas[lane] for lane in lanes])
        losses[lanes] = forward(some, join([batches[lane] for lane in lanes]))
    return losses


def _stacked(thetas: Sequence[Tensor]) -> Tensor:
    """(L, d), outside inference mode: a compiler would make another kernel for tensors made in it."""
    with torch.inference_mode(mode=False):
        return torch.stack(list(thetas))


def give(layers: Sequence[LaneLayer], stacked: Tensor) -> None:
    """Let each layer use its part of the lanes' thetas, (L, d)."""
    for layer in layers:
        layer.take([stacked[:, s.start : s.stop].view(-1, *s.shape) for s in layer.segments])


def with_lanes(model: PeftModel, flat: FlatParameters, path: LossPath) -> tuple[EagerForward | None, list[str]]:
    """The laned form of a model where there is one that agrees with it, else None and a notice for the user.

    Args:
        model: with its adapter, in evaluation mode; the laned form shares all its tensors.
        flat: its trainable tensors.
        path: its loss at the live tensors.
    """
    base = base_of(model)
    forward = attempt(lambda: _laned_form(model, flat))
    if forward is not None and _agree(forward, path, flat, probe_of(base), rounding_of(base)):
        return forward, []
    return None, [
        f"train.lanes: {type(base).__name__} with this adapter has no laned form: one perturbed copy of the adapter is "
        "evaluated at a time"
    ]


def _laned_form(model: PeftModel, flat: FlatParameters) -> EagerForward | None:
    copied = _with_lane_layers(model, flat)
    if copied is None:
        return None
    layers = [module for module in copied.modules() if isinstance(module, LaneLora | LaneIA3 | LanePrompt)]
    give(layers, spread(flat.flat()))
    path, _ = choose_path(copied, base_of(copied))
    return EagerForward(path, layers)


def base_of(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside a model with an adapter, or the model itself where nothing is around it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def spread(theta: Tensor, lanes: int = 2) -> Tensor:
    """Thetas around one, (lanes, d), far enough apart to tell lanes that are mixed up."""
    step = 0.02 * torch.sin(torch.arange(len(theta), dtype=theta.dtype, device=theta.device))
    return torch.stack([theta + (1 - lane) * step for lane in range(0, 2 * lanes, 2)])


def _agree(forward: LaneForward, path: LossPath, flat: FlatParameters, probe: Batch, dtype: torch.dtype) -> bool:
    """Whether two lanes of one row each have the losses that the live tensors give."""
    theta = flat.flat()
    thetas = spread(theta)
    alone = []
    with torch.inference_mode():
        for one, batch in zip(thetas, rows_of(probe), strict=True):
            flat.load(one)
            alone.append(path(batch).mean())
        flat.load(theta)
        together = attempt(lambda: forward(thetas, probe))
    return together is not None and losses_agree(together, torch.stack(alone), dtype)


def rows_of(batch: Batch) -> list[Batch]:
    """The rows of a batch, each as a batch of its own."""
    parts = (batch.input_ids, batch.attention_mask, batch.labels)
    return [Batch(*(part[i : i + 1] for part in parts)) for i in range(batch.num_examples)]


def _with_lane_layers(model: PeftModel, flat: FlatParameters) -> nn.Module | None:
    """A copy of the model that shares all its tensors and computes all lanes at once.

    None where part of the adapter is of a kind that has no laned form.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    segments = {id(p): segment for p, segment in zip(flat.parameters, flat.segments, strict=True)}
    elements = 0
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            laned = _laned(child, segments)
            if laned is not None:
                setattr(parent, name, laned)
                elements += sum(segment.stop - segment.start for segment in laned.segments)
    if elements != flat.segments[-1].stop:
        return None
    if not copied.active_peft_config.is_prompt_learning:
        return base_of(copied)
    prompt = copied.prompt_encoder[ADAPTER_NAME]
    indices = copied.prompt_tokens[ADAPTER_NAME].to(flat.device)
    copied.prompt_tokens[ADAPTER_NAME] = indices  # PEFT leaves them on the host and copies them in each forward pass
    if not isinstance(prompt.encoder, PrefixEncoder):
        untyped: Any = copied  # an attribute in place of a method
        untyped.get_prompt = _prompts_of(prompt, indices)
    return copied


def _prompts_of(prompt: nn.Module, indices: Tensor) -> Callable[..., Tensor]:
    """In place of PEFT's `get_prompt`, which makes one row and repeats it: the prompts of all rows, (L b, v, h)."""

    def get_prompt(batch_size: int, task_ids: None = None) -> Tensor:
        made: Tensor = prompt(indices.expand(batch_size, -1))
        return made

    return get_prompt


def _laned(layer: nn.Module, segments: Mapping[int, Segment]) -> LaneLayer | None:
    """The laned form of an adapter's layer; None for any other module."""
    own = {name: segments[id(p)] for name, p in layer.named_parameters() if id(p) in segments}
    if isinstance(layer, lora.LoraLayer) and own.keys() == _LORA_MATRICES:
        return LaneLora(layer, own)
    if isinstance(layer, ia3.Linear):
        return LaneIA3(layer, own)
    if isinstance(layer, PromptEmbedding | PrefixEncoder | PromptEncoder):
        return LanePrompt(layer, own)
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
