"""Examples as token ids: prompt, answer and end-of-sequence token, with the loss on the last two.

Prompt and answer are tokenised together, as in the reference, so that no tokenizer slips a space in between. A token
belongs to the answer when it ends behind the prompt's last character. The reference tokenises the prompt again and
masks as many tokens. The two agree unless a token straddles the boundary, as ":(" may where an answer opens with a
bracket: it counts as answer here, as prompt there.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedmezo.data.cache import Arrays, load_arrays, save_arrays
from fedmezo.data.prompt import prompt_of
from fedmezo.errors import DataError, ModelError
from fedmezo.records import IGNORE_LABEL, Batch, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 1  # to be raised whenever the same texts give other arrays
_CHUNK = 1000  # examples tokenised in one call: enough to use every thread, little enough to hold


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDataset:
    """The m of n examples that have an answer token left within the length limit, one after another.

    Positions 0 to m - 1 are what `batch` and a partition of this data set count; `kept` gives the original numbers.
    """

    tokens: NDArray[np.int32]  # (sum of lengths,)
    offsets: NDArray[np.int64]  # (m + 1,) where each example starts; the last is where they end
    prompt_lengths: NDArray[np.int32]  # (m,) tokens without loss, at the start of each example
    kept: NDArray[np.int64]  # (m,) index into the examples that were given
    dropped: int  # n - m
    pad_id: int  # fills up a batch; no loss and no attention ever sees it

    def __len__(self) -> int:
        """Count the examples that were kept."""
        return len(self.kept)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, prompt and answer (m,)."""
        return np.diff(self.offsets)

    def batch(self, indices: Sequence[int] | NDArray[np.int64], device: torch.device | None = None) -> Batch:
        """Gather one example or more, padded on the right to the longest of them; see `Batch`."""
        rows = np.asarray(indices, dtype=np.int64)
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        positions = np.arange(lengths.max())
        is_token = positions < lengths[:, None]  # (b, t)
        where = np.where(is_token, starts[:, None] + positions, 0)
        input_ids = np.where(is_token, self.tokens[where], self.pad_id).astype(np.int64)
        is_label = is_token & (positions >= self.prompt_lengths[rows, None])
        labels = np.where(is_label, input_ids, IGNORE_LABEL)
        return Batch(
            input_ids=torch.from_numpy(input_ids).to(device, non_blocking=True),  # joins a GPU's queue, waits for none
            attention_mask=torch.from_numpy(is_token.astype(np.int64)).to(device, non_blocking=True),
            labels=torch.from_numpy(labels),
        )


def encode_examples(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, tok_len: int, cache_dir: Path | None = None
) -> EncodedDataset:
    """Tokenise examples, each cut from the right to `tok_len` tokens; those left without an answer token are dropped.

    With `cache_dir` the result is kept there under a hash of texts, tokenizer and `tok_len`; a damaged file is made
    anew. Raises DataError if nothing is kept or the cache cannot be written, ModelError for an unusable tokenizer.
    """
    _check_tokenizer(tokenizer)
    texts = [(prompt_of(example), example.output) for example in examples]
    path = cache_dir / f"tokens-{_content_hash(texts, tokenizer, tok_len)}.npz" if cache_dir else None
    arrays = load_arrays(path) if path else None
    if arrays is None or not _is_sound(arrays):
        arrays = _encode(texts, tokenizer, tok_len)
        if path:
            save_arrays(path, arrays)
    if not len(arrays["kept"]):
        raise DataError(
            f"llm.tok_len is {tok_len}, which leaves no room for an answer in any of {len(examples)} examples; raise it"
        )
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return EncodedDataset(**arrays, dropped=len(examples) - len(arrays["kept"]), pad_id=pad_id)


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} is not a fast one; the model's folder needs a tokenizer.json"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json")


def _content_hash(texts: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, tok_len: int) -> str:
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # both are off while we tokenise; left on by someone else, they would change the hash
    backend.no_padding()
    settings = [FORMAT_VERSION, tok_len, tokenizer.eos_token_id]
    content = hashlib.sha256(json.dumps([settings, texts]).encode())
    content.update(backend.to_str().encode())
    return content.hexdigest()[:32]


def _encode(texts: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, tok_len: int) -> Arrays:
    tokens: list[NDArray[np.int32]] = []
    prompt_lengths: list[int] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        ids, boundaries = _tokenise(chunk, tokenizer)
        tokens.extend(np.array(row[:tok_len], dtype=np.int32) for row in ids)
        prompt_lengths.extend(boundaries)
    kept = [index for index, row in enumerate(tokens) if prompt_lengths[index] < len(row)]
    return {
        "tokens": np.concatenate([np.empty(0, np.int32), *(tokens[index] for index in kept)]),
        "offsets": np.cumsum([0, *(len(tokens[index]) for index in kept)], dtype=np.int64),
        "prompt_lengths": np.array([prompt_lengths[index] for index in kept], dtype=np.int32),
        "kept": np.array(kept, dtype=np.int64),
    }


def _tokenise(texts: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[list[list[int]], list[int]]:
    """Return the token ids of every text, end-of-sequence token included, and how many of them are prompt."""
    encoded = tokenizer(
        [prompt + output for prompt, output in texts],
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # a text longer than the model's limit is cut later
    )
    ids, prompt_lengths = [], []
    for (prompt, _), row, spans in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        text_ids = row[:-1] if row[-1:] == [tokenizer.eos_token_id] else row  # some tokenizers append it themselves
        ids.append([*text_ids, tokenizer.eos_token_id])
        prompt_lengths.append(bisect_right(spans, len(prompt), hi=len(text_ids), key=_end))
    return ids, prompt_lengths


def _end(span: tuple[int, int]) -> int:
    return span[1]


def _is_sound(arrays: Arrays) -> bool:
    if arrays.keys() != {"tokens", "offsets", "prompt_lengths", "kept"}:
        return False
    num_kept = len(arrays["kept"])
    expected = (num_kept + 1, num_kept, len(arrays["tokens"]))
    return expected == (len(arrays["offsets"]), len(arrays["prompt_lengths"]), arrays["offsets"][-1])
