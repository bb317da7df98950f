"""Base weights in fewer bits: int8 with a scale for each output, alone or with int8 products, and NF4.

The int8 layers are our own: torchao's do the same arithmetic at half the speed (its eager form rounds activations in
separate passes, once for each of q, k and v). NF4 (Dettmers et al. 2023) is bitsandbytes'. Embedding and output head
keep their precision, unless a scheme's name ends in `-all`: then they are int8, in all schemes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedmezo.errors import ModelError
from fedmezo.models.vocabulary import embedding_and_head

NONE: Final = "none"
INT8: Final = "int8"
INT8_DYNAMIC: Final = "int8-dynamic"
NF4: Final = "nf4"
ALL: Final = "-all"
SCHEMES = (NONE, INT8, INT8_DYNAMIC, NF4, INT8 + ALL, INT8_DYNAMIC + ALL, NF4 + ALL)

_LARGEST = 127
_FEWEST_ROWS_ON_GPU = 32
"""A GPU's int8 product wants more than 16 rows, and sizes that are multiples of 8."""

_NF4_BLOCK = 64

_ROWS_AT_ONCE = 512
"""Of a weight that is rounded: what it takes in float32 is little beside a model."""


class Rounding:
    """Activations as int8 with a scale for each token; layers that get the same tensor in turn share the work."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (..., in) to whole numbers (n, in) int8 and scales (n, 1) float32, whose product is close to x."""
        if torch.compiler.is_compiling():  # the compiler finds what is shared by itself
            return rounded(x.flatten(0, -2))
        if self._last is None or self._last[0] is not x:
            self._last = (x, *rounded(x.flatten(0, -2)))
        return self._last[1:]


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(n, in) as int8 and the scale of each row, (n, 1) float32."""
    scales = rows.abs().amax(1, keepdim=True).float().div_(_LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
    return (rows / scales).round_().to(torch.int8), scales


def rounded_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The same of (n, in) in any precision, with few rows at a time in float32."""
    parts = [rounded(rows.float()) for rows in torch.split(weight, _ROWS_AT_ONCE)]
    whole, scales = (torch.cat(some) for some in zip(*parts, strict=True))
    return whole, scales


class Int8Linear(nn.Linear):
    """A linear layer with int8 weights and a float32 scale for each output; PEFT takes it for any other.

    Args:
        weight: (out, in), in any precision.
        bias: (out,), or None.
        rounding: of the activations, for products of int8 numbers; None multiplies in the activations' own precision.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rounding: Rounding | None) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a float32 weight
        self.out_features, self.in_features = weight.shape
        whole, scales = rounded_weight(weight.detach())
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
        self.scales: Tensor
        self.register_buffer("scales", scales.flatten())
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if self.rounding is None:
            return F.linear(x, (self.weight * self.scales[:, None]).to(x.dtype), self.bias)
        whole, scales = self.rounding(x)
        sums = int8_product(whole, self.weight)
        y = (sums * scales).mul_(self.scales).to(x.dtype)
        return (y if self.bias is None else y.add_(self.bias)).view(*x.shape[:-1], self.out_features)


class Int8Head(Int8Linear):
    """An output head with int8 weights, which returns float32: what is scaled is its result, of far fewer elements."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if self.rounding is not None:
            return super().forward(x)
        logits = (
            F.linear(x, self.weight.to(x.dtype)) * self.scales
        )  # whole numbers below 128 are exact in any precision
        return logits if self.bias is None else logits + self.bias


class Int8Embedding(nn.Embedding):
    """An embedding with int8 weights and a float32 scale for each token.

    Args:
        plain: the one whose place it takes.
    """

    def __init__(self, plain: nn.Embedding) -> None:
        nn.Module.__init__(self)  # as above
        vars(self).update({name: vars(plain)[name] for name in nn.Embedding.__constants__})
        whole, scales = rounded_weight(plain.weight.detach())
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.scales: Tensor
        self.register_buffer("scales", scales.flatten())
        self.dtype = plain.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Map (...) to (..., embedding_dim)."""
        return (F.embedding(ids, self.weight) * self.scales[ids][..., None]).to(self.dtype)


class Nf4Linear(nn.Linear):
    """A linear layer whose weights are 4-bit quantiles of the normal distribution, with a scale for every 64 of them.

    bitsandbytes' kernels, without its layer, which rounds the scales once more where it runs on some CPUs and does not
    run at all at sizes that its packing does not divide.

    Args:
        weight: (out, in), in any precision.
        bias: (out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)  # as above
        self.out_features, self.in_features = weight.shape
        packed, scales = torch.ops.bitsandbytes.quantize_4bit(
            weight.detach().float().contiguous(), _NF4_BLOCK, "nf4", torch.uint8
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        shape = (self.out_features, self.in_features)
        weight = torch.ops.bitsandbytes.dequantize_4bit(self.weight, self.scales, _NF4_BLOCK, "nf4", shape, x.dtype)
        return F.linear(x, weight, self.bias)


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """a (n, in) times the transpose of b (out, in), both int8: the exact sums, (n, out) int32."""
    missing = _FEWEST_ROWS_ON_GPU - len(a)
    if a.device.type == "cpu" or missing <= 0:
        return torch._int_mm(a, b.T)
    return torch._int_mm(F.pad(a, (0, 0, 0, missing)), b.T)[: len(a)]


def quantise_(base: PreTrainedModel, scheme: str) -> None:
    """Replace the linear layers by quantised ones, in place; see `Quantiser`."""
    if scheme != NONE:
        Quantiser(base, scheme)(base)


class Quantiser:
    """Replaces the linear layers of a model, all at once or part by part.

    Args:
        base: on the host, so that every device gets the same bits.
        scheme: one of `SCHEMES` but none.

    Raises:
        ModelError: the model is quantised already, most of its weights are not in linear layers, or a library is
            missing.
    """

    def __init__(self, base: PreTrainedModel, scheme: str) -> None:
        if (found := scheme_of(base)) != NONE:
            raise ModelError(
                f"model.quantization is {scheme}, but this model is quantised already ({found}): leave it out"
            )
        self._base = base
        self._embedding, self._head = embedding_and_head(base)
        self._scheme = scheme.removesuffix(ALL)
        self._takes_vocabulary = scheme.endswith(ALL)
        if self._takes_vocabulary and (type(self._embedding), type(self._head)) != (nn.Embedding, nn.Linear):
            kinds = f"{type(self._embedding).__name__} and {type(self._head).__name__}"
            raise ModelError(
                f"model.quantization is {scheme}, but embedding and head of {type(base).__name__} do more than look up "
                f"and multiply ({kinds}): set it to {self._scheme}"
            )
        _require_most(base, scheme, sum(getattr(*place).weight.numel() for place in self._linear_layers(base)))
        if self._scheme == NF4:
            _require_bitsandbytes()
        self._rounding = Rounding() if self._scheme == INT8_DYNAMIC else None
        base.fedmezo_quantization = scheme  # type: ignore[assignment]  # nn.Module declares tensors and modules only

    def __call__(self, part: nn.Module) -> None:
        """Replace the layers below a module of the model, whose weights are there."""
        for parent, name in self._linear_layers(part):
            layer = getattr(parent, name)
            weight = layer.weight.T.contiguous() if isinstance(layer, Conv1D) else layer.weight
            is_nf4 = self._scheme == NF4
            made = Nf4Linear(weight, layer.bias) if is_nf4 else Int8Linear(weight, layer.bias, self._rounding)
            setattr(parent, name, made)
        if part is self._base and self._takes_vocabulary:
            self._replace_vocabulary()

    def _replace_vocabulary(self) -> None:
        """What head and embedding have in common stays so."""
        plain, head = self._embedding, self._head
        assert isinstance(plain, nn.Embedding)  # as was seen at the start
        assert isinstance(head, nn.Linear)
        table, made = Int8Embedding(plain), Int8Head(head.weight, head.bias, self._rounding)
        if head.weight is plain.weight:
            made.weight, made.scales = table.weight, table.scales
        base: Any = self._base  # whose methods have no annotations
        base.set_input_embeddings(table)
        base.set_output_embeddings(made)

    def _linear_layers(self, part: nn.Module) -> list[tuple[nn.Module, str]]:
        """Each linear layer but the output head: the module it is in, and its name there."""
        return [
            (parent, name)
            for parent in part.modules()
            for name, child in parent.named_children()
            if type(child) in (nn.Linear, Conv1D) and child is not self._head
        ]


def scheme_of(base: nn.Module) -> str:
    """How the weights of a base model are quantised: one of `SCHEMES`, or the method of a checkpoint."""
    given = getattr(base, "fedmezo_quantization", None)
    if given is not None:
        return str(given)
    settings = getattr(getattr(base, "config", None), "quantization_config", None)
    method = getattr(settings, "quant_method", None)
    return NONE if settings is None else str(getattr(method, "value", method))


def rounds_activations(scheme: str) -> bool:
    """Whether it is not only weights that a scheme holds in fewer bits."""
    return scheme.removesuffix(ALL) == INT8_DYNAMIC


def rounding_of(base: PreTrainedModel) -> torch.dtype:
    """The precision whose rounding a forward pass has: int8 activations round as coarsely as bfloat16."""
    return torch.bfloat16 if rounds_activations(scheme_of(base)) else base.dtype


def _require_most(base: PreTrainedModel, scheme: str, small: int) -> None:
    vocabulary = {p for module in embedding_and_head(base) if module is not None for p in module.parameters()}
    others = sum(p.numel() for p in set(base.parameters()) - vocabulary)
    if 2 * small < others:
        raise ModelError(
            f"model.quantization is {scheme}, but of {type(base).__name__}'s {others:,} weights beside those of the "
            f"vocabulary only {small:,} are in linear layers, which is all that can be quantised: leave it out"
        )


def _require_bitsandbytes() -> None:
    """Import it, which adds its operations to PyTorch's."""
    try:
        import_module("bitsandbytes")
    except ImportError as error:
        raise ModelError(
            f"model.quantization is nf4, which needs bitsandbytes ({error}): pip install 'fedmezo[quantised]'"
        ) from error
