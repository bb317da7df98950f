"""Cross-entropy of the label tokens, without the logits of any other position.

A prompt is often most of a sequence and the output head a large part of a model, so only the hidden states that predict
a label go through the head. They are caught on their way into it, whatever else the model or PEFT does around it. Heads
that do more than multiply (scaling, soft-capping) are known by their config keys; whether the result is that of the
model's own path is checked once, and a model that does not agree keeps its own path.

Shapes: b rows, t tokens, v virtual tokens that PEFT puts before them, h hidden size, n label tokens of the whole batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedmezo.errors import ModelError
from fedmezo.models.foreign import attempt, explained
from fedmezo.models.quantised import rounding_of
from fedmezo.models.vocabulary import embedding_and_head, num_rows
from fedmezo.records import IGNORE_LABEL, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LOGIT_BYTES = 16 << 20
"""Size of the float32 logits that are made at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelPositions:
    """Where the label tokens of a batch are predicted."""

    index: Tensor  # (n,) int64: which of the b (v + t) positions, row by row; b (v + t) for a token that has none
    targets: Tensor  # (n,) int64: the token that is predicted there
    counts: Tensor  # (b,) int64: label tokens of each row
    length: int  # v + t

    @property
    def size(self) -> int:
        """Positions of the batch, b (v + t)."""
        return len(self.counts) * self.length

    @classmethod
    def of(cls, labels: Tensor, length: int, device: torch.device) -> LabelPositions:
        """Find them in labels (b, t) on the host, where what depends on values keeps no device waiting.

        Nor do the copies to a GPU: with `non_blocking` they only join its queue.

        `length` is v + t: the virtual tokens stand first and carry no label, but the last of them predicts the first
        token. The first of all v + t tokens is predicted nowhere.
        """
        shifted = F.pad(labels, (length - labels.shape[1], 0), value=IGNORE_LABEL)[:, 1:]
        is_label = shifted != IGNORE_LABEL  # (b, v + t - 1)
        rows, columns = is_label.nonzero(as_tuple=True)
        return cls(
            index=(rows * length + columns).to(device, non_blocking=True),
            targets=shifted[is_label].to(device, non_blocking=True),
            counts=is_label.sum(1).to(device, non_blocking=True),
            length=length,
        )


@dataclass(frozen=True, slots=True, eq=False)
class LabelLosses:
    """The loss of each label token of a batch."""

    losses: Tensor  # (n,) float32, row by row
    positions: LabelPositions

    def mean(self) -> Tensor:
        """Mean over the label tokens, a scalar; not a number when there are none."""
        return self.losses.sum() / self.losses.numel()

    def group_means(self, groups: int) -> Tensor:
        """Mean over the label tokens of each group of consecutive rows, (groups,); groups are of equal size."""
        size = self.positions.size
        dense = self.losses.new_zeros(size + 1)  # each sum in one fixed order; the last is for what has no position
        sums = dense.index_copy_(0, self.positions.index, self.losses)[:size].view(groups, -1).sum(1)
        return sums / self.positions.counts.view(groups, -1).sum(1)

    def row_means(self) -> Tensor:
        """Mean over each row's own label tokens, (b,)."""
        return self.group_means(len(self.positions.counts))


def _is_no_advice_on_masks(record: logging.LogRecord) -> bool:
    """GPT-2 and others of transformers' models ask for the mask that is left out here for good reason."""
    return "passing in an `attention_mask`" not in record.getMessage()


class LossPath(Protocol):
    """A way from a batch to the loss of each of its label tokens."""

    model: nn.Module

    def __call__(self, batch: Batch) -> LabelLosses:
        """The loss of each label token at the model's live tensors; keeps a graph where gradients are on."""
        ...


class PlainPath:
    """The model's own forward pass: the logits of every position."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, batch: Batch) -> LabelLosses:
        """See `LossPath`."""
        logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        positions = LabelPositions.of(batch.labels, logits.shape[1], logits.device)
        chosen = logits.flatten(0, 1)[positions.index].float()
        return LabelLosses(F.cross_entropy(chosen, positions.targets, reduction="none"), positions)


class LabelOnlyPath:
    """The output head on the positions that predict a label alone, in chunks.

    No attention mask is given: padding is on the right, where a causal model's earlier positions do not see it, and
    attention without a mask is faster.
    """

    def __init__(self, model: nn.Module, head: nn.Module, finish: Callable[[Tensor], Tensor], vocabulary: int) -> None:
        self.model = model
        self._head = head
        self._finish = finish
        self._vocabulary = vocabulary
        self._positions_at_once = max(1, LOGIT_BYTES // (4 * vocabulary))
        logging.getLogger("transformers.modeling_utils").addFilter(_is_no_advice_on_masks)

    def __call__(self, batch: Batch) -> LabelLosses:
        """See `LossPath`."""
        hidden = self.hidden_states(batch.input_ids)
        positions = LabelPositions.of(batch.labels, hidden.shape[1], hidden.device)
        return LabelLosses(self.token_losses(hidden.flatten(0, 1)[positions.index], positions.targets), positions)

    def over(self, model: nn.Module, head: nn.Module) -> LabelOnlyPath:
        """The same path through another model of the same kind."""
        return LabelOnlyPath(model, head, self._finish, self._vocabulary)

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """What the model would give to its output head, (b, v + t, h)."""
        caught: list[Tensor] = []

        def catch(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            caught.append(inputs[0])
            return (inputs[0][:, :0],)

        with self._head.register_forward_pre_hook(catch):
            self.model(input_ids=input_ids, use_cache=False)
        if len(caught) != 1:
            raise ModelError(f"the output head ran {len(caught)} times in one forward pass")
        return caught[0]

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row of (n, h), chunk by chunk; with gradients, the logits are made again on the way back."""
        size = self._positions_at_once
        chunks = list(zip(torch.split(hidden, size), torch.split(targets, size), strict=True))
        if len(chunks) > 1 and torch.is_grad_enabled():
            return torch.cat([checkpoint(self._chunk_losses, *chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([self._chunk_losses(*chunk) for chunk in chunks])

    def _chunk_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self._finish(self._head(hidden)).float(), targets, reduction="none")


def choose_path(model: nn.Module, base: PreTrainedModel) -> tuple[LossPath, list[str]]:
    """The label-only path where it gives the losses of the model's own, else the plain one with a notice for the user.

    Args:
        model: what is called with a batch: the base with its adapter.
        base: the causal language model inside.

    Raises:
        ModelError: the model's own forward pass fails.
    """
    plain = PlainPath(model)
    _, head = embedding_and_head(base)
    if head is not None:
        label_only = LabelOnlyPath(model, head, _after_head(base.config), num_rows(base))
        if _agree(plain, label_only, probe_of(base), rounding_of(base)):
            return label_only, []
    return plain, [
        f"{type(base).__name__} has other losses than those of its label positions alone: the logits of all "
        "positions are computed, which takes more time and memory"
    ]


def _after_head(config: PreTrainedConfig) -> Callable[[Tensor], Tensor]:
    """What the model does to the logits after the head: Cohere and Granite scale them, Gemma 2 caps them softly."""
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def finish(logits: Tensor) -> Tensor:
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return finish


def probe_of(base: PreTrainedModel, rows: int = 2, length: int = 8) -> Batch:
    """Rows of tokens from all over the vocabulary; the second half is label, the end of the last row is padding."""
    ids = (torch.arange(rows * length, device=base.device) * 7919 % num_rows(base)).view(rows, length)
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    labels = ids.masked_fill(mask == 0, IGNORE_LABEL)
    labels[:, : length // 2] = IGNORE_LABEL
    return Batch(input_ids=ids, attention_mask=mask, labels=labels.cpu())


def _agree(plain: LossPath, label_only: LossPath, batch: Batch, dtype: torch.dtype) -> bool:
    """Whether two paths give the same losses up to the rounding of the logits, which are in the base's precision."""
    with torch.inference_mode():
        with explained("the model cannot be computed with this adapter"):
            expected = plain(batch).losses
        losses = attempt(lambda: label_only(batch).losses)
    return losses is not None and losses_agree(losses, expected, dtype)


def losses_agree(losses: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether losses differ by no more than the rounding of a forward pass in the base's precision."""
    size = float(expected.abs().max())
    tolerance = max(1e-5, 4 * torch.finfo(dtype).eps) * max(1.0, size)
    return losses.shape == expected.shape and bool((losses - expected).abs().max() <= tolerance)
