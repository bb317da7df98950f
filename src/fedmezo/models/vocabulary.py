"""A model's tokens: which one ends an answer, which fills up a batch, and the rows that the embedding has for them.

The base model stays as it was published, whatever its tokenizer lacks: an adapter is trained on the model that its
users will load. So no row is ever added to an embedding, and of the special tokens only the end of an answer matters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END = "</s>"
_USUAL_ENDS = (END, "<|endoftext|>", "<eos>", "<|end_of_text|>")

_ONCE_ADDED = {"pad_token": "[PAD]", "eos_token": END, "bos_token": "<s>", "unk_token": "<unk>"}
_FIXED_POINT = 2.0**32
_ROWS_AT_ONCE = 64


class Ending(NamedTuple):
    """How answers end."""

    is_new: bool  # whether the tokenizer did not know it, so that the adapter's users need this tokenizer
    notices: tuple[str, ...]


def settle_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Ending:
    """Give the tokenizer the token that ends an answer, where it names none, and no padding that the model lacks.

    The end is what the model's own configuration calls so, else a token of the usual name, else a new one where the
    embedding has a row to spare. Otherwise answers have no end.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= num_rows(model):
        tokenizer.pad_token = None
    if tokenizer.eos_token_id is not None:
        return Ending(False, ())
    lacks = "the tokenizer names no end-of-sequence token"
    name = _end_of(model, tokenizer)
    if name is not None:
        tokenizer.add_special_tokens({"eos_token": name})
        how = (
            f"{lacks}: answers end with {name!r} (id {tokenizer.eos_token_id}), as in the tokenizer beside the adapter"
        )
        return Ending(True, (how,))
    return Ending(
        False,
        (
            f"{lacks}, and the embedding has no row for one such as {END!r}: answers are learned without an end, so "
            "that the tuned model goes on until its limit. To teach it an end, name a token of the vocabulary as "
            "eos_token in tokenizer_config.json",
        ),
    )


def _end_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    known, spare = tokenizer.get_vocab(), num_rows(model) > len(tokenizer)
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        for token in ids if isinstance(ids, list) else [ids]:
            if isinstance(token, int) and 0 <= token < min(len(tokenizer), num_rows(model)):
                name: Any = tokenizer.convert_ids_to_tokens(token)
                return str(name)
    usual = [name for name in _USUAL_ENDS if known.get(name, num_rows(model)) < num_rows(model)]
    return usual[0] if usual else (END if spare else None)


def embedding_and_head(model: PreTrainedModel) -> tuple[nn.Module, nn.Module | None]:
    """The layers that turn tokens into hidden states and hidden states into logits; some models have no such head."""
    untyped: Any = model
    return untyped.get_input_embeddings(), untyped.get_output_embeddings()


def num_rows(model: PreTrainedModel) -> int:
    """Tokens that the model knows; its tokenizer may know more or fewer."""
    embedding, _ = embedding_and_head(model)
    return next(embedding.parameters()).shape[0]


def grow_as_once(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the special tokens that are missing, with their embedding rows, as runs of earlier versions did.

    Their journals name the hash of the base model with these rows: the mean of the others, by exact integer addition.
    The model must still be on the CPU.
    """
    missing: dict[str, Any] = {kind: token for kind, token in _ONCE_ADDED.items() if getattr(tokenizer, kind) is None}
    known = len(tokenizer)
    if not tokenizer.add_special_tokens(missing):
        return
    if len(tokenizer) > num_rows(model):
        with torch.random.fork_rng(devices=[]):  # the new rows are drawn before they are overwritten
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for table in _vocabulary_tables(model):
        table[known : len(tokenizer)] = exact_mean(table[:known])


def exact_mean(rows: Tensor) -> Tensor:
    """Mean of (n, ...) over its rows, in 32-bit fixed point: the same bits whatever the order of addition.

    Exact while the sum of the elements' sizes stays below 2^31; a resolution of 2^-33 is finer than float32 needs here.
    """
    total = torch.zeros(rows.shape[1:], dtype=torch.int64)
    for part in torch.split(rows, _ROWS_AT_ONCE):
        total += (part.double() * _FIXED_POINT).round().to(torch.int64).sum(0)
    return (total.double() / (len(rows) * _FIXED_POINT)).to(rows.dtype)


def _vocabulary_tables(model: PreTrainedModel) -> list[Tensor]:
    """The tensors with a row per token: input embedding, output head and its bias; a tied one is listed once."""
    embedding, head = embedding_and_head(model)
    layers = [embedding] if head is None else [embedding, head]
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    return list({id(parameter): parameter.data for parameter in parameters}.values())
