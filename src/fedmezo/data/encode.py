"""Examples as token ids: prompt, answer and, where there is one, end-of-sequence token, with the loss on the last two.

Prompt and answer are tokenised together, as in the reference, so that no tokenizer slips a space in between. A token
belongs to the answer when it ends behind the prompt's last character. The reference tokenises the prompt again and
masks as many tokens. The two agree unless a token straddles the boundary, as ":(" may where an answer opens with a
bracket: it counts as answer here, as prompt there. Of a conversation, every answer of the assistant's counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedmezo.data.beginning import Beginnings
from fedmezo.data.cache import Arrays, load_arrays, save_arrays
from fedmezo.data.prompt import ALPACA, Prompts
from fedmezo.data.text import Text
from fedmezo.errors import DataError, ModelError
from fedmezo.records import IGNORE_LABEL, Batch, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 2  # to be raised whenever the same texts give other arrays
_CHUNK_TEXTS, _CHUNK_CHARACTERS = 1000, 1 << 21  # tokenised in one call: work for every thread, yet little to hold


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
    skipped: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Positions in `tokens`, ascending, that have no loss although they stand behind a prompt: other turns' tokens."""

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
        if len(self.skipped):
            is_label &= ~np.isin(where, self.skipped)
        labels = np.where(is_label, input_ids, IGNORE_LABEL)
        return Batch(
            input_ids=torch.from_numpy(input_ids).to(device, non_blocking=True),  # joins a GPU's queue, waits for none
            attention_mask=torch.from_numpy(is_token.astype(np.int64)).to(device, non_blocking=True),
            labels=torch.from_numpy(labels),
        )


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    tok_len: int,
    cache_dir: Path | None = None,
    prompts: Prompts = ALPACA,
) -> EncodedDataset:
    """Tokenise examples, each cut from the right to `tok_len` tokens; those left without an answer token are dropped.

    With `cache_dir` the result is kept there under a hash of texts, tokenizer and `tok_len`; a damaged file is made
    anew. Raises DataError if nothing is kept or the cache cannot be written, ModelError for an unusable tokenizer.
    """
    return encode_texts([prompts.whole(example) for example in examples], tokenizer, tok_len, cache_dir)


def encode_texts(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerFast, tok_len: int, cache_dir: Path | None = None
) -> EncodedDataset:
    """Tokenise texts; everything else as for examples."""
    _check_tokenizer(tokenizer)
    path = cache_dir / f"tokens-{_content_hash(texts, tokenizer, tok_len)}.npz" if cache_dir else None
    arrays = load_arrays(path) if path else None
    if arrays is None or not _is_sound(arrays):
        arrays = _encode(texts, tokenizer, tok_len)
        if path:
            save_arrays(path, arrays)
    if not len(arrays["kept"]):
        raise DataError(
            f"llm.tok_len is {tok_len}, which leaves no room for an answer in any of {len(texts)} examples; raise it"
        )
    return EncodedDataset(**arrays, dropped=len(texts) - len(arrays["kept"]), pad_id=pad_id(tokenizer))


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """What fills up a batch, where no loss and no attention sees it: padding, the end of a sequence, or any token."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} is not a fast one; the model's folder needs a tokenizer.json"
        )


def _content_hash(texts: Sequence[Text], tokenizer: PreTrainedTokenizerFast, tok_len: int) -> str:
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # both are off while we tokenise; left on by someone else, they would change the hash
    backend.no_padding()
    settings = [FORMAT_VERSION, tok_len, tokenizer.eos_token_id]
    content = hashlib.sha256(json.dumps(settings).encode())
    for text in texts:
        content.update(json.dumps([text.content, text.counted, text.opened, text.ended]).encode())
    content.update(backend.to_str().encode())
    return content.hexdigest()[:32]


def _encode(texts: Sequence[Text], tokenizer: PreTrainedTokenizerFast, tok_len: int) -> Arrays:
    tokens: list[NDArray[np.int32]] = []
    counted: list[NDArray[np.bool_]] = []
    beginnings = Beginnings(tokenizer, tok_len)
    shortened = (replace(text, content=beginnings.of(text.content, opened=text.opened)) for text in texts)
    for chunk in _chunks(shortened):
        for ids, counts in _tokenise(chunk, tokenizer):
            tokens.append(np.array(ids[:tok_len], dtype=np.int32))
            counted.append(counts[:tok_len])
    kept = [index for index, counts in enumerate(counted) if counts[1:].any()]  # nothing foretells the first token
    offsets = np.cumsum([0, *(len(tokens[index]) for index in kept)], dtype=np.int64)
    prompt_lengths = np.array([counted[index].argmax() for index in kept], dtype=np.int32)
    skipped = [
        start + length + np.flatnonzero(~counted[index][length:])
        for index, start, length in zip(kept, offsets, prompt_lengths, strict=False)  # offsets has one more: the end
    ]
    return {
        "tokens": np.concatenate([np.empty(0, np.int32), *(tokens[index] for index in kept)]),
        "offsets": offsets,
        "prompt_lengths": prompt_lengths,
        "kept": np.array(kept, dtype=np.int64),
        "skipped": np.concatenate([np.empty(0, np.int64), *skipped]),
    }


def _chunks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Texts that are tokenised together."""
    chunk: list[Text] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text.content)
        if len(chunk) == _CHUNK_TEXTS or size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _tokenise(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], NDArray[np.bool_]]]:
    """Yield the token ids of every text, end-of-sequence token included, and which of them are counted."""
    by_opening = {opened: _call(texts, tokenizer, opened) for opened in {text.opened for text in texts}}
    for text in texts:
        ids, spans = next(by_opening[text.opened])
        if ids[-1:] == [tokenizer.eos_token_id]:  # some tokenizers append it themselves
            ids, spans = ids[:-1], spans[:-1]
        end = [tokenizer.eos_token_id] if text.ended and tokenizer.eos_token_id is not None else []
        yield [*ids, *end], np.concatenate([_is_counted(text, spans), np.ones(len(end), dtype=np.bool_)])


def _call(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerFast, opened: bool
) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Yield the token ids of those texts that are opened, or of those that are not, and each token's characters."""
    encoded = tokenizer(
        [text.content for text in texts if text.opened == opened],
        add_special_tokens=not opened,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # a text longer than the model's limit is cut later
    )
    yield from zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)


def _is_counted(text: Text, spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Whether each token has a character of a counted range, or stands behind the text's end where one ends."""
    starts, stops = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    counted = np.zeros(len(spans), dtype=np.bool_)
    for start, stop in text.counted:
        counted |= (stops > start) & ((starts < stop) | (stop == len(text.content)))
    return counted


def _is_sound(arrays: Arrays) -> bool:
    if arrays.keys() != {"tokens", "offsets", "prompt_lengths", "kept", "skipped"}:
        return False
    num_kept = len(arrays["kept"])
    expected = (num_kept + 1, num_kept, len(arrays["tokens"]))
    return expected == (len(arrays["offsets"]), len(arrays["prompt_lengths"]), arrays["offsets"][-1])
