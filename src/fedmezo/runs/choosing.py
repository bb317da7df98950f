"""Accuracy on questions with candidate answers: the one that the model finds likeliest per token is its choice."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmezo.data.encode import EncodedDataset, encode_texts
from fedmezo.data.prompt import Prompts
from fedmezo.errors import DataError
from fedmezo.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Every candidate answer of some examples behind its example's prompt; its own tokens alone have a loss.

    MeZO (Malladi et al. 2023) judges the same way: by the mean over a candidate's tokens, without the end of sequence.
    """

    dataset: EncodedDataset  # one row for each candidate
    examples: Indices  # (m,) ascending: the number of each example among all that there are
    starts: Indices  # (m + 1,) where each example's rows start; the last is where they end
    right: Indices  # (m,) which of an example's candidates is right

    def rows(self, examples: Indices) -> Indices:
        """The rows of those of the given examples that have candidates."""
        found = np.flatnonzero(np.isin(self.examples, examples))
        return np.concatenate([np.empty(0, np.int64), *(np.arange(*self.starts[at : at + 2]) for at in found)])

    def chosen(self, losses: NDArray[np.float64]) -> Indices:
        """The candidate with the lowest loss of each example (m,), the first of equals; `losses` are of all rows."""
        pairs = zip(self.starts[:-1], self.starts[1:], strict=True)
        return np.array([int(np.argmin(losses[start:stop])) for start, stop in pairs], dtype=np.int64)

    def hits(self, losses: NDArray[np.float64]) -> dict[int, bool]:
        """Whether the choice is right, by the example's number; `losses` are those of all rows."""
        right = self.chosen(losses) == self.right
        return dict(zip(self.examples.tolist(), right.tolist(), strict=True))


def make_candidates(
    examples: Sequence[Example], wanted: Iterable[int], prompts: Prompts, tokenizer: PreTrainedTokenizerFast
) -> Candidates:
    """The candidates of those of the wanted examples that have any.

    Raises:
        DataError: none of them has.
    """
    numbers = sorted(number for number in wanted if examples[number].choices)
    if not numbers:
        raise DataError(
            "accuracy needs examples with candidate answers, and no held-out example has any: give data.answers, or a "
            "column `choices` (data.table.columns.choices)"
        )
    chosen = [examples[number] for number in numbers]
    texts = [prompts.candidate(example, answer) for example in chosen for answer in example.choices]
    dataset = encode_texts(texts, tokenizer, sys.maxsize)  # the right one has been cut already, or dropped
    if len(dataset) < len(texts):
        raise DataError("a candidate answer has no token of its own behind its prompt, so it cannot be judged")
    return Candidates(
        dataset=dataset,
        examples=np.array(numbers, dtype=np.int64),
        starts=np.cumsum([0, *(len(example.choices) for example in chosen)], dtype=np.int64),
        right=np.array([example.choices.index(example.output) for example in chosen], dtype=np.int64),
    )
