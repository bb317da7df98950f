"""Special tokens that a tokenizer lacks, and the embedding rows that they need.

The tokens are those of the reference code. The rows of added tokens are part of the base weights, which must be the
same bits on every machine, so they are set to the mean of the existing rows by exact integer addition, whose result
does not depend on the order, the thread count or the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPECIAL_TOKENS = {"pad_token": "[PAD]", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}

_FIXED_POINT = 2.0**32
_ROWS_AT_ONCE = 64


def complete_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Add the special tokens that are missing, with their embedding rows; returns how many tokens were new.

    The embedding grows only when it has no row to spare: some models have more rows than their tokenizer has tokens.
    The model must still be on the CPU.
    """
    missing: dict[str, Any] = {
        kind: token for kind, token in SPECIAL_TOKENS.items() if getattr(tokenizer, kind) is None
    }
    known = len(tokenizer)
    added = tokenizer.add_special_tokens(missing)
    if added:
        _grow(model, len(tokenizer))
        for table in _vocabulary_tables(model):
            table[known : len(tokenizer)] = exact_mean(table[:known])
    return added


def exact_mean(rows: Tensor) -> Tensor:
    """Mean of (n, ...) over its rows, in 32-bit fixed point: the same bits whatever the order of addition.

    Exact while the sum of the elements' sizes stays below 2^31; a resolution of 2^-33 is finer than float32 needs here.
    """
    total = torch.zeros(rows.shape[1:], dtype=torch.int64)
    for part in torch.split(rows, _ROWS_AT_ONCE):
        total += (part.double() * _FIXED_POINT).round().to(torch.int64).sum(0)
    return (total.double() / (len(rows) * _FIXED_POINT)).to(rows.dtype)


def embedding_and_head(model: PreTrainedModel) -> tuple[nn.Module, nn.Module | None]:
    """The layers that turn tokens into hidden states and hidden states into logits; some models have no such head."""
    untyped: Any = model
    return untyped.get_input_embeddings(), untyped.get_output_embeddings()


def num_rows(model: PreTrainedModel) -> int:
    """Tokens that the model knows, at least as many as its tokenizer."""
    embedding, _ = embedding_and_head(model)
    return next(embedding.parameters()).shape[0]


def _grow(model: PreTrainedModel, size: int) -> None:
    if size > num_rows(model):
        with torch.random.fork_rng(devices=[]):  # the new rows are drawn before they are overwritten
            model.resize_token_embeddings(size, mean_resizing=False)


def _vocabulary_tables(model: PreTrainedModel) -> list[Tensor]:
    """The tensors with a row per token: input embedding, output head and its bias; a tied one is listed once."""
    embedding, head = embedding_and_head(model)
    layers = [embedding] if head is None else [embedding, head]
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    return list({id(parameter): parameter.data for parameter in parameters}.values())
