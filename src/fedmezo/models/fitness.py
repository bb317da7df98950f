"""What a base model must be before a run spends time on it: causal, and large enough for the examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmezo.data.encode import EncodedDataset
from fedmezo.errors import DataError, ModelError
from fedmezo.models.foreign import explained
from fedmezo.models.label_loss import probe_of
from fedmezo.models.vocabulary import embedding_and_head, num_rows

_ROUNDINGS = 32
"""By how many roundings of the largest logit may those of earlier tokens differ: experts are given other rows, say."""

_OFFSET = 2
"""Rows that some tables of positions have beyond the positions of their model."""


def require_causal(model: nn.Module, base: PreTrainedModel) -> None:
    """See that no token's logits depend on later ones: else the loss would see the answer that it asks for.

    Args:
        model: what is called with a batch: the base, with its adapter or alone.
        base: the causal language model inside.

    Raises:
        ModelError: they do, or the model cannot compute logits at all.
    """
    kind = type(base).__name__
    probe = probe_of(base, rows=1)
    half = probe.length // 2
    changed = probe.input_ids.clone()
    changed[:, half:] = (changed[:, half:] + 1) % num_rows(base)
    with torch.inference_mode(), explained(f"{kind} cannot be computed with this adapter"):
        before, after = (_logits(model, ids) for ids in (probe.input_ids, changed))
    stop = before.shape[1] - (probe.length - half)  # virtual tokens stand first
    difference = float((before - after)[:, :stop].abs().max())
    if difference > _ROUNDINGS * torch.finfo(base.dtype).eps * max(1.0, float(before.abs().max())):
        hint = "; its config says is_decoder: False" if getattr(base.config, "is_decoder", None) is False else ""
        raise ModelError(
            f"{kind} is no causal language model: it attends both ways, so that what it predicts depends on later "
            f"tokens and the loss would see the answer{hint}"
        )


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()


def require_fit(base: PreTrainedModel, virtual: int, dataset: EncodedDataset, tok_len: int) -> None:
    """See that the embedding has a row for each token of the examples, and that the longest has positions.

    Args:
        base: the model.
        virtual: tokens that PEFT puts before each example.
        dataset: the examples, which may be none.
        tok_len: `llm.tok_len`, at which they were cut.

    Raises:
        DataError: one or the other is not so.
    """
    if not len(dataset):
        return
    kind, rows, largest = type(base).__name__, num_rows(base), int(dataset.tokens.max())
    if largest >= rows:
        raise DataError(
            f"the examples hold tokens up to id {largest}, but the embedding of {kind} has {rows} rows (ids 0 to "
            f"{rows - 1}): its tokenizer has grown and the model has not. Give it the rows (model.resize_token_"
            "embeddings(len(tokenizer)), then save_pretrained) or the tokenizer that belongs to it"
        )
    longest, positions = int(dataset.lengths.max()), learned_positions(base)
    if positions is not None and longest + virtual > positions:
        before = f", after {virtual} virtual tokens" if virtual else ""
        raise DataError(
            f"llm.tok_len is {tok_len} and the longest example has {longest} tokens{before}, but {kind} has "
            f"{positions} positions: set llm.tok_len to {max(1, positions - virtual)} or less"
        )


def virtual_tokens(model: nn.Module) -> int:
    """Tokens, or keys and values of tokens, that an adapter puts before each example."""
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def learned_positions(base: PreTrainedModel) -> int | None:
    """How many positions a model has a vector for; None where they are computed, without an end."""
    config = base.config.get_text_config()
    stated = getattr(config, "max_position_embeddings", None)  # other names of it are mapped to this one
    if not isinstance(stated, int):
        return None
    usable = [rows for rows in _position_rows(base) if stated - _OFFSET <= rows <= stated + _OFFSET]
    return min(stated, *usable) if usable else None


def _position_rows(base: PreTrainedModel) -> Iterator[int]:
    """Rows of tables that may be of positions: other embeddings than the tokens', and tensors that are not trained."""
    tokens, _ = embedding_and_head(base)
    for module in base.modules():
        if isinstance(module, nn.Embedding) and module is not tokens:
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            yield module.num_embeddings - skipped
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.ndim == 2 and "pos" in name:
                yield buffer.shape[0]
