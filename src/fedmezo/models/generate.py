"""Greedy continuations of prompts, many at a time."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from fedmezo.data.encode import pad_id
from fedmezo.data.text import Text
from fedmezo.models.fitness import learned_positions, virtual_tokens
from fedmezo.models.lanes import base_of
from fedmezo.models.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

TOKENS_PER_BATCH = 8192
"""Tokens of all rows of a batch, prompt and answer: they bound the memory of the keys and values that are kept."""

_POSITIONS = 1 << 15
"""Of models that state no number of them."""
_CHARACTERS_PER_TOKEN = 64
"""More than tokens have, except those of white space."""

OnItems = Callable[[int, int | None], None]
"""Called with the items done so far and their number in all."""


def _ignore(done: int, total: int | None) -> None:
    """Report to nobody."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer ends.

    Args:
        max_new_tokens: at the latest after so many tokens.
        stops: texts before which an answer is cut, and after which no more is generated.
        tokens_per_batch: limit of a batch; see `TOKENS_PER_BATCH`.
    """

    max_new_tokens: int
    stops: tuple[str, ...] = ()
    tokens_per_batch: int = TOKENS_PER_BATCH


def answers(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    theta: Tensor,
    prompts: Sequence[Text],
    max_new_tokens: int,
) -> list[str]:
    """The model's greedy answer to each prompt at theta (d,), of at most `max_new_tokens` tokens."""
    model.show(theta)
    return [text.strip() for text in complete(model.network, tokenizer, prompts, Decoding(max_new_tokens))]


def complete(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str | Text],
    decoding: Decoding,
    on_items: OnItems = _ignore,
) -> list[str]:
    """The greedy continuation of each prompt, without special tokens.

    Prompts of similar length share a batch, padded on the left. Adapters of virtual tokens get prompts of one length
    per batch instead: those tokens stand before the padding, where a model's positions do not expect them.

    Args:
        model: a causal language model of transformers, with or without an adapter.
        tokenizer: its tokenizer.
        prompts: the texts to go on with; before a plain one, the tokenizer puts the tokens that it puts before any.
        decoding: how an answer ends.
        on_items: hears of the progress.
    """
    positions = _positions(model)
    rows = [_ids(tokenizer, prompt, positions) for prompt in prompts]
    if too_long := [index for index, row in enumerate(rows) if len(row) >= positions]:
        left = positions - min(decoding.max_new_tokens, positions // 2)
        logger.warning(
            "%d of %d prompts are too long: only their last %d tokens are read", len(too_long), len(rows), left
        )
        for index in too_long:
            rows[index] = rows[index][-left:]
    texts = [""] * len(rows)
    done = 0
    for group in _groups([len(row) for row in rows], decoding, padded=not virtual_tokens(model)):
        for index, text in zip(group, _continue(model, tokenizer, [rows[i] for i in group], decoding), strict=True):
            texts[index] = text
        done += len(group)
        on_items(done, len(rows))
    return texts


def _ids(tokenizer: PreTrainedTokenizerFast, prompt: str | Text, positions: int) -> list[int]:
    """The tokens of a prompt; of one that is far too long, those of its end."""
    if isinstance(prompt, str):
        prompt = Text(prompt)
    content = prompt.content[-_CHARACTERS_PER_TOKEN * positions :]
    ids: list[int] = tokenizer(content, add_special_tokens=not prompt.opened)["input_ids"]
    return ids


def _positions(model: nn.Module) -> int:
    """Tokens of prompt and answer that a model can read."""
    base = base_of(model)
    stated = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    positions = learned_positions(base) or (stated if isinstance(stated, int) and stated > 0 else _POSITIONS)
    return max(2, positions - virtual_tokens(model))


def _groups(lengths: Sequence[int], decoding: Decoding, *, padded: bool) -> Iterator[list[int]]:
    """Prompts of similar length, or of equal length; the longest first, so that memory runs out at once or never."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[group[0]] if group else lengths[index]
        full = (len(group) + 1) * (longest + decoding.max_new_tokens) > decoding.tokens_per_batch
        if group and (full or (not padded and lengths[index] != longest)):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _continue(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, rows: Sequence[list[int]], decoding: Decoding
) -> list[str]:
    longest = max(map(len, rows))
    room = _room(model, longest, decoding.max_new_tokens)
    if not room:
        return [""] * len(rows)
    padded = [[pad_id(tokenizer)] * (longest - len(row)) + row for row in rows]
    masks = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    generating: Any = model  # neither transformers nor PEFT types what `generate` takes
    stopping = [_StopText(tokenizer, decoding.stops, longest)] if decoding.stops else []
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Position ids are not supported"
        )  # virtual tokens: PEFT makes its own
        tokens = generating.generate(
            input_ids=torch.tensor(padded, device=generating.device),
            attention_mask=torch.tensor(masks, device=generating.device),
            max_new_tokens=room,
            do_sample=False,
            pad_token_id=pad_id(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            stopping_criteria=StoppingCriteriaList(stopping),
            use_cache=True,
        )
    texts = tokenizer.batch_decode(tokens[:, longest:], skip_special_tokens=True)
    return [cut(text, decoding.stops) for text in texts]


def _room(model: nn.Module, prompt: int, wanted: int) -> int:
    """Tokens of an answer that a model has positions for after a prompt of so many tokens."""
    positions = learned_positions(base_of(model))
    return wanted if positions is None else max(0, min(wanted, positions - virtual_tokens(model) - prompt))


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


class _StopText(StoppingCriteria):
    """Ends a row once its continuation holds one of some texts.

    Args:
        tokenizer: turns tokens into text.
        stops: the texts.
        prompt_length: tokens before the continuation, padding included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stops: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._prompt_length = prompt_length
        self._window = max(map(len, stops)) + 1  # a token is at least a character, or a part of one

    def __call__(self, input_ids: torch.LongTensor, scores: Tensor, **_: Any) -> torch.BoolTensor:
        """For each row whether it has ended, (b,); the signature is that of transformers."""
        tail = input_ids[:, max(self._prompt_length, input_ids.shape[1] - self._window) :]
        texts = self._tokenizer.batch_decode(tail)
        seen = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(seen, device=input_ids.device)  # type: ignore[return-value]  # a tensor has one type
