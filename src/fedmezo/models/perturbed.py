"""Forward passes over perturbed weights that are never made: all lanes share one model, and each adds its own part.

A lane is one client's weights within a round, W minus the steps it has made, perturbed for one probe: W + sum c_k z_k.
Where the directions z_k have low rank, z = S T' / sqrt(r), a layer takes one product with W for the rows of all lanes
and adds S (c T' x) / sqrt(r) for each lane, as with a LoRA layer of rank K r. Lanes of one client have all their
directions in common and differ in coefficients alone. Norms, and whatever has no such form, get each lane's own tensors
and are called lane by lane; so is every layer where the directions are dense.

Shapes: L lanes in G groups of P each, b rows a lane, t tokens, n positions of a group (P b t), K directions of a group,
r rank, h hidden size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedmezo.models.flat import FlatParameters
from fedmezo.models.label_loss import LabelLosses, LabelOnlyPath, LabelPositions, LossPath, PlainPath
from fedmezo.records import IGNORE_LABEL, Batch, Segment
from fedmezo.zo.low_rank import LowRankNoise, SignRows
from fedmezo.zo.noise import Directions
from fedmezo.zo.replay import Move, apply_range_


class Lanes(Protocol):
    """How the weights of some lanes differ from theta."""

    @property
    def lanes(self) -> int:
        """Their number."""
        ...

    def only(self, lane: int) -> Lanes:
        """One of them alone."""
        ...

    def tensors(self, segment: Segment, base: Tensor) -> Iterator[Tensor]:
        """A tensor of each lane in turn, from that of theta; one may take the place of the one before it."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LowRankLanes:
    """Implements `Lanes` for directions of low rank.

    Args:
        noise: where the signs of each tensor are.
        octets: packed signs of the directions of each group, (G, K, bytes) uint8.
        coefficients: c, (G, P, K) float32; 0 for a direction that is none of a lane's.
    """

    noise: LowRankNoise
    octets: Tensor
    coefficients: Tensor

    @property
    def lanes(self) -> int:
        """L = G P."""
        return self.coefficients.shape[0] * self.coefficients.shape[1]

    def only(self, lane: int) -> LowRankLanes:
        """See `Lanes`."""
        group, place = divmod(lane, self.coefficients.shape[1])
        own = self.coefficients[group : group + 1, place : place + 1]
        return replace(self, octets=self.octets[group : group + 1], coefficients=own)

    def tensors(self, segment: Segment, base: Tensor) -> Iterator[Tensor]:
        """See `Lanes`."""
        rows = self.rows_of(segment)
        if rows.n == 0:
            yield from self.vectors(rows, base)
            return
        s, t = self.s_of(rows), self.t_of(rows)
        c = self.scaled(rows)
        for lane in range(self.lanes):
            group, place = divmod(lane, c.shape[1])
            yield torch.addmm(base.view(rows.m, rows.n), s[group].mT * c[group, place], t[group]).view_as(base)

    def vectors(self, rows: SignRows, base: Tensor) -> Tensor:
        """A vector of each lane, (L, *shape)."""
        steps = torch.bmm(self.coefficients, self.s_of(rows))  # (G, P, size)
        return base + steps.view(-1, *base.shape)

    def rows_of(self, segment: Segment) -> SignRows:
        """Where the signs of a tensor are."""
        return self.noise.sign_rows[self.noise.segments.index(segment)]

    def s_of(self, rows: SignRows) -> Tensor:
        """S' of all directions of each group, (G, K r, m) float32."""
        return rows.s_of(self.octets).flatten(1, 2)

    def t_of(self, rows: SignRows) -> Tensor:
        """T' likewise, (G, K r, n)."""
        return rows.t_of(self.octets).flatten(1, 2)

    def s_at(self, rows: SignRows, indices: Tensor) -> Tensor:
        """The rows of S at indices (G, n) int64, as (G, K r, n) float32."""
        packed = rows.s_octets(self.octets).flatten(1, 2)  # (G, K r, bytes)
        octets = packed.gather(2, (indices >> 3).unsqueeze(1).expand(-1, packed.shape[1], -1))
        bits = octets.bitwise_right_shift((indices & 7).to(torch.uint8).unsqueeze(1)).bitwise_and_(1)
        return bits.to(torch.float32).mul_(-2).add_(1)

    def scaled(self, rows: SignRows) -> Tensor:
        """c / sqrt(r) for each row of S' and T', (G, P, K r)."""
        return (self.coefficients / math.isqrt(rows.rank)).repeat_interleave(rows.rank, dim=2)


@dataclass(frozen=True, slots=True, eq=False)
class DenseLanes:
    """Implements `Lanes` for any directions: tensors of one lane at a time are all that is in memory beside theta.

    Args:
        noise: the distribution.
        steps: the moves that each lane's client has made.
        probes: the move of each lane from there.
    """

    noise: Directions
    steps: Sequence[Sequence[Move]]
    probes: Sequence[Sequence[Move]]

    @property
    def lanes(self) -> int:
        """L."""
        return len(self.steps)

    def only(self, lane: int) -> DenseLanes:
        """See `Lanes`."""
        return replace(self, steps=self.steps[lane : lane + 1], probes=self.probes[lane : lane + 1])

    def tensors(self, segment: Segment, base: Tensor) -> Iterator[Tensor]:
        """See `Lanes`; the steps are made once for lanes of one client that follow one another."""
        made: Sequence[Move] | None = None
        before = base
        for steps, probe in zip(self.steps, self.probes, strict=True):
            if steps is not made:
                before, made = self._moved(base, steps, segment), steps
            yield self._moved(before, probe, segment)

    def _moved(self, tensor: Tensor, moves: Sequence[Move], segment: Segment) -> Tensor:
        if not moves:
            return tensor
        return apply_range_(tensor.flatten().clone(), moves, self.noise, segment.start).view(segment.shape)


class PerturbedLinear(nn.Module):
    """A linear layer, or GPT-2's with a transposed weight: one product with the weight, and each lane's own part."""

    def __init__(self, layer: nn.Linear | Conv1D, segments: Mapping[str, Segment]) -> None:
        super().__init__()
        self.layer = layer
        self.weight: Tensor = layer.weight  # the label-only loss and transformers look for it
        self.segments = segments
        self.rows = 1
        self.lanes: LowRankLanes | None = None

    def take(self, lanes: Lanes, rows: int) -> None:
        """Use these lanes, of so many rows each."""
        assert isinstance(lanes, LowRankLanes), "this is the form of directions of low rank"
        self.lanes, self.rows = lanes, rows

    def forward(self, x: Tensor) -> Tensor:
        """Map (L b, ..., in) to (L b, ..., out)."""
        lanes = self.lanes
        out: Tensor = self.layer(x).float()
        assert lanes is not None, "lanes are given before"
        groups, places = lanes.coefficients.shape[:2]
        grouped = out.view(groups, -1, out.shape[-1])  # (G, n, out)
        if "weight" in self.segments:
            rows = lanes.rows_of(self.segments["weight"])
            left, right = lanes.s_of(rows), lanes.t_of(rows)  # of the output, of the input
            if isinstance(self.layer, Conv1D):
                left, right = right, left
            low = torch.bmm(x.reshape(groups, -1, x.shape[-1]).float(), right.mT)  # (G, n, K r)
            low.view(groups, places, -1, low.shape[-1]).mul_(lanes.scaled(rows).unsqueeze(2))
            grouped.baddbmm_(low, left)
        if "bias" in self.segments:
            steps = torch.bmm(lanes.coefficients, lanes.s_of(lanes.rows_of(self.segments["bias"])))  # (G, P, out)
            out.view(groups, places, -1, out.shape[-1]).add_(steps.unsqueeze(2))
        return out.to(x.dtype)


class PerturbedEmbedding(nn.Module):
    """An embedding table: the rows of theta, and each lane's own part of those that are looked up."""

    def __init__(self, layer: nn.Embedding, segments: Mapping[str, Segment]) -> None:
        super().__init__()
        self.layer = layer
        self.weight: Tensor = layer.weight
        self.segments = segments
        self.rows = 1
        self.lanes: LowRankLanes | None = None

    def take(self, lanes: Lanes, rows: int) -> None:
        """Use these lanes, of so many rows each."""
        assert isinstance(lanes, LowRankLanes), "this is the form of directions of low rank"
        self.lanes, self.rows = lanes, rows

    def forward(self, indices: Tensor) -> Tensor:
        """Map (L b, t) to (L b, t, h); positions that all rows share, (1, t) or (t,), become those of each lane."""
        lanes = self.lanes
        assert lanes is not None, "lanes are given before"
        if indices.dim() == 1 or len(indices) == 1 < lanes.lanes * self.rows:
            indices = indices.expand(lanes.lanes * self.rows, -1)
        out: Tensor = self.layer(indices).float()
        groups, places = lanes.coefficients.shape[:2]
        rows = lanes.rows_of(self.segments["weight"])
        low = lanes.s_at(rows, indices.reshape(groups, -1)).mT.contiguous()  # (G, n, K r)
        low.view(groups, places, -1, low.shape[-1]).mul_(lanes.scaled(rows).unsqueeze(2))
        out.view(groups, -1, out.shape[-1]).baddbmm_(low, lanes.t_of(rows))
        return out.to(self.weight.dtype)


class PerturbedModule(nn.Module):
    """Any module with tensors of its own, called for each lane in turn with that lane's.

    They are exchanged, never written to: the live tensors are views of theta. In half precision, vectors alone (norms)
    are still computed with in float32: rounded, 1 + eps would be 1.
    """

    def __init__(self, module: nn.Module, segments: Mapping[str, Segment], flat: FlatParameters) -> None:
        super().__init__()
        self.module = module
        self.segments = segments
        self.flat = flat
        self.live = {name: module.get_parameter(name) for name in segments}
        own = list(module.parameters())
        self.widened = flat.is_half and len(own) == len(segments) and all(p.dim() < 2 for p in own)
        if "weight" in self.live:
            self.weight = self.live["weight"]
        self.rows = 1
        self.lanes: Lanes | None = None

    def take(self, lanes: Lanes, rows: int) -> None:
        """Use these lanes, of so many rows each."""
        self.lanes, self.rows = lanes, rows

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Give the module each lane's part of every argument that has all lanes' rows; its signature is its own."""
        lanes = self.lanes
        assert lanes is not None, "lanes are given before"
        if lanes.lanes == 1:
            return self._of_lane(args, kwargs, next(self._values(lanes)))
        parts = []
        for lane, values in enumerate(self._values(lanes)):
            own = [self._part(value, lane) for value in args]
            parts.append(self._of_lane(own, {key: self._part(value, lane) for key, value in kwargs.items()}, values))
        if len(parts[0]) % self.rows:  # what all rows share, such as positions, is now each lane's own
            parts = [part.expand(self.rows, *part.shape[1:]) for part in parts]
        return torch.cat(parts)

    def _part(self, value: Any, lane: int) -> Any:
        """One lane's part of a tensor with all lanes' rows, which some models lay out token by token."""
        assert self.lanes is not None, "lanes are given before"
        whole = self.lanes.lanes * self.rows
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        by_token = value.dim() == 2 and value.is_floating_point() and len(value) % whole == 0
        if len(value) != whole and not by_token:
            return value
        size = len(value) // self.lanes.lanes
        return value[lane * size : (lane + 1) * size]

    def _values(self, lanes: Lanes) -> Iterator[tuple[Tensor, ...]]:
        each = [lanes.tensors(segment, self.flat.part(segment).float()) for segment in self.segments.values()]
        return zip(*each, strict=True)

    def _of_lane(self, args: Sequence[Any], kwargs: Mapping[str, Any], values: Sequence[Tensor]) -> Tensor:
        kept = [parameter.data for parameter in self.live.values()]
        dtype = kept[0].dtype
        if self.widened:
            args, kwargs = [_widened(value) for value in args], {key: _widened(kwargs[key]) for key in kwargs}
        else:
            values = [value.to(dtype) for value in values]
        self._exchange(values)
        try:
            made: Tensor = self.module(*args, **kwargs)
        finally:
            self._exchange(kept)
        return made.to(dtype)

    def _exchange(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.live.values(), values, strict=True):
            parameter.data = value


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


PerturbedLayer = PerturbedLinear | PerturbedEmbedding | PerturbedModule


class PerturbedForward:
    """A model that shares all its tensors with another, and computes all lanes at once.

    Args:
        model: the other one, in evaluation mode.
        flat: its trainable tensors.
        path: its loss.
        low_rank: whether directions have low rank.
    """

    def __init__(self, model: PreTrainedModel, flat: FlatParameters, path: LossPath, *, low_rank: bool) -> None:
        self.low_rank = low_rank
        self.model, self.layers = _with_perturbed_layers(model, flat, low_rank=low_rank)
        self._head: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]  # has no annotations
        self._path = path.over(self.model, self._head) if isinstance(path, LabelOnlyPath) else PlainPath(self.model)

    def __call__(self, lanes: Lanes, batch: Batch) -> Tensor:
        """The mean loss of each lane on its part of the batch, (L,) float32."""
        for layer in self.layers:
            layer.take(lanes, batch.num_examples // lanes.lanes)
        if isinstance(self._path, LabelOnlyPath):
            return self._label_only(self._path, lanes, batch)
        return self._path(batch).group_means(lanes.lanes)

    @contextmanager
    def reached(self) -> Iterator[set[int]]:
        """Within the block, gathers which of the layers are called."""
        seen: set[int] = set()
        hooks = [
            layer.register_forward_hook(lambda *_, place=place: seen.add(place))
            for place, layer in enumerate(self.layers)
        ]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def _label_only(self, path: LabelOnlyPath, lanes: Lanes, batch: Batch) -> Tensor:
        """The output head takes the positions that count, and so one lane's after the other's."""
        hidden = path.hidden_states(batch.input_ids)
        positions = LabelPositions.of(batch.labels, hidden.shape[1], hidden.device)
        sizes = (batch.labels[:, 1:] != IGNORE_LABEL).view(lanes.lanes, -1).sum(1).tolist()
        chosen = hidden.flatten(0, 1)[positions.index]
        losses = []
        for lane, (own, targets) in enumerate(
            zip(torch.split(chosen, sizes), torch.split(positions.targets, sizes), strict=True)
        ):
            if isinstance(self._head, PerturbedLayer):
                self._head.take(lanes.only(lane), 1)
            losses.append(path.token_losses(own, targets))
        return LabelLosses(torch.cat(losses), positions).group_means(lanes.lanes)


def _with_perturbed_layers(
    model: PreTrainedModel, flat: FlatParameters, *, low_rank: bool
) -> tuple[PreTrainedModel, list[PerturbedLayer]]:
    """A copy of the model that shares all its tensors, and those of its layers that differ from lane to lane."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied: PreTrainedModel = copy.deepcopy(model, shared)
    segments = {id(p): segment for p, segment in zip(flat.parameters, flat.segments, strict=True)}
    layers: list[PerturbedLayer] = []
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            own = {key: segments[id(p)] for key, p in child.named_parameters(recurse=False) if id(p) in segments}
            if own:
                layers.append(_perturbed(child, own, flat, low_rank=low_rank))
                setattr(parent, name, layers[-1])
    return copied, layers


def _perturbed(layer: nn.Module, own: Mapping[str, Segment], flat: FlatParameters, *, low_rank: bool) -> PerturbedLayer:
    if low_rank and isinstance(layer, nn.Linear | Conv1D) and type(layer) in (nn.Linear, Conv1D):
        return PerturbedLinear(layer, own)
    if low_rank and isinstance(layer, nn.Embedding) and type(layer) is nn.Embedding:
        return PerturbedEmbedding(layer, own)
    return PerturbedModule(layer, own, flat)
