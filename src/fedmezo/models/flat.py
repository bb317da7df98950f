"""The trainable tensors of a model as one flat float32 vector theta, in canonical order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn

from fedmezo.errors import ModelError
from fedmezo.records import Segment

ADAPTER_NAME = "default"

_ADAPTER_PART = re.compile(rf"\.{ADAPTER_NAME}(?=\.|$)")


class FlatParameters:
    """The trainable tensors of a model as views of one buffer, which can be exchanged for another.

    Make one per model: a second would take them away from the first.

    Args:
        model: whose trainable tensors are float32, or what theta is to be.
        dtype: what it is to compute in; in half precision its tensors are rounded copies beside theta, not views of it,
            unless theta is in half precision itself.
        held: what theta is.

    Raises:
        ModelError: the model has no trainable tensor, or one of another format.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, held: torch.dtype = torch.float32) -> None:
        named = trainable_parameters(model)
        _require(named, held)
        self.parameters = [parameter for _, parameter in named]
        self.segments = _segments(named)
        self._dtype = dtype
        self._live = torch.empty(self.segments[-1].stop, dtype=held, device=self.parameters[0].device)
        for parameter, segment in zip(self.parameters, self.segments, strict=True):  # one by one, as each frees its own
            parameter.data = self.part(segment).copy_(parameter.data).to(dtype)

    @property
    def live(self) -> Tensor:
        """Theta (d,) itself: whoever changes it changes the model."""
        return self._live

    @property
    def is_half(self) -> bool:
        """Whether the model computes in half precision."""
        return self._dtype != torch.float32

    @property
    def is_copied(self) -> bool:
        """Whether the live tensors are rounded copies of theta."""
        return self._dtype != self._live.dtype

    def part(self, segment: Segment) -> Tensor:
        """One tensor of theta: a view."""
        return self._live[segment.start : segment.stop].view(segment.shape)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._live.device

    def load(self, theta: Tensor) -> None:
        """Copy theta (d,), wherever it is, into the live tensors."""
        self.point_at(theta.detach().to(self.device, copy=True))

    def point_at(self, theta: Tensor) -> None:
        """Make the live tensors views of theta (d,) itself: no copy, and none in memory beside it; or round it anew."""
        self._live = theta.to(self._live.dtype)
        for parameter, segment in zip(self.parameters, self.segments, strict=True):
            if self.is_copied:
                parameter.data.copy_(self.part(segment))
            else:
                parameter.data = self.part(segment)

    @contextmanager
    def unrounded(self) -> Iterator[None]:
        """Within the block the live tensors are views of theta, whatever is computed in."""
        rounded = [parameter.data for parameter in self.parameters]
        for parameter, segment in zip(self.parameters, self.segments, strict=True):
            parameter.data = self.part(segment)
        try:
            yield
        finally:
            for parameter, data in zip(self.parameters, rounded, strict=True):
                parameter.data = data

    def flat(self) -> Tensor:
        """Copy the live tensors into a new theta (d,)."""
        return self._live.clone()


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trainable tensors sorted by name, without the adapter's own name: PEFT's order of saved keys."""
    named = {_ADAPTER_PART.sub("", name): p for name, p in model.named_parameters() if p.requires_grad}
    return sorted(named.items())


def _segments(named: list[tuple[str, nn.Parameter]]) -> tuple[Segment, ...]:
    starts = accumulate((parameter.numel() for _, parameter in named), initial=0)
    return tuple(
        Segment(name, tuple(parameter.shape), start) for (name, parameter), start in zip(named, starts, strict=False)
    )


def _require(named: list[tuple[str, nn.Parameter]], held: torch.dtype) -> None:
    if not named:
        raise ModelError("the adapter leaves nothing to train: check llm.adapter.args")
    for name, parameter in named:
        if parameter.dtype != held:
            raise ModelError(
                f"llm.adapter.args makes {name} trainable in {parameter.dtype}, but what is trained must be float32: "
                "leave out the key that asks for it (bias, modules_to_save), or set model.dtype to float32"
            )
