"""How much of a text decides its first tokens, so that megabytes are not tokenised for a hundred tokens of them.

Tokenised alone, the beginning of a text may end in other tokens than it has within the whole. How far back from the
cut that can reach depends on the tokenizer:

- One that divides a text into words first treats each alone. Where a word begins may depend on what follows up to the
  next gap, such as for numbers whose digits are grouped from the right; so gaps are taken to part words, nothing else.
- Byte pair encoding without words, as SentencePiece has it, or within one endless word: where two texts agree up to
  some place, let p be the last boundary up to which their tokens agree. A rule that joins a and b can join the token
  before p with what follows in one text alone; then p moves back by that token, which is a. Rules apply in order, each
  once, since what a rule makes is only taken up by later ones: p moves by at most the sum of their lengths of a.
- The most likely division (Unigram) has no such bound: of `aaa...`, with tokens `aa` and `a`, the first token depends
  on whether the number of letters is odd. Such a text is cut at gaps alone.

A text whose beginning is not settled by then, such as a run of white space without an end, is cut after 65,536
characters all the same, if they have enough tokens: memory and time matter more than which tokens that nonsense has.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

_CHARACTERS_PER_TOKEN = 16
_LEAST_CHARACTERS = 4096
_MOST_CHARACTERS = 1 << 16
_GAPS = 3
"""The last word before the cut may be incomplete and the gap before it too: one more is behind them."""


class Beginnings:
    """Beginnings of texts that have the same first tokens as the whole.

    Args:
        tokenizer: a fast one.
        count: how many tokens, special ones included.
        first_try: characters that are tried first; a text that is no longer is left as it is.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, count: int, first_try: int | None = None) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._count = count
        self._first_try = first_try or _CHARACTERS_PER_TOKEN * count + _LEAST_CHARACTERS
        self._most = max(_MOST_CHARACTERS, 2 * self._first_try)

    def of(self, text: str, *, opened: bool = False) -> str:
        """The text itself, or as much of it as has the same first tokens, each with the same place in the text.

        Args:
            text: to be tokenised.
            opened: whether the tokens that the tokenizer puts before a text stand in it already.
        """
        size = self._first_try
        while size < len(text):
            if self._is_settled(text[:size], opened):
                return text[:size]
            size = min(2 * size, self._most) if size < self._most else 2 * size
        return text

    def _is_settled(self, text: str, opened: bool) -> bool:
        """Whether nothing that may follow the text changes its first tokens."""
        self._backend.no_truncation()
        self._backend.no_padding()
        found = self._backend.encode(text, add_special_tokens=not opened)
        special = found.special_tokens_mask  # made anew by each look at it, as all its lists are
        rest = [i for i in range(self._count, len(special)) if not special[i]]
        if not rest:
            return False
        return len(text) >= self._most or _has_gaps(text, found, rest) or self._is_out_of_reach(text, found, rest)

    def _is_out_of_reach(self, text: str, found: Encoding, rest: Sequence[int]) -> bool:
        if self._reach is None or not _is_ordinary(text[found.offsets[rest[0]][0] :]):
            return False
        tokens = found.tokens
        return sum(len(tokens[i]) for i in rest[:-1] if self._is_plain(tokens[i])) >= self._reach

    def _is_plain(self, token: str) -> bool:
        """Whether a token is spelled as the text is: neither special nor unknown nor a byte that stands for itself."""
        return token not in self._named and not (token.startswith("<0x") and len(token) == len("<0x00>"))

    @cached_property
    def _description(self) -> dict[str, Any]:
        description: dict[str, Any] = json.loads(self._backend.to_str())
        return description

    @cached_property
    def _named(self) -> frozenset[str]:
        """Tokens that have a name instead of a spelling."""
        added = {token["content"] for token in self._description["added_tokens"]}
        return frozenset({*added, self._description["model"].get("unk_token")} - {None})

    @cached_property
    def _reach(self) -> int | None:
        """Characters, as tokens spell them, that the trace of a cut may reach back; None where there is no bound."""
        model = self._description["model"]
        parts = json.dumps([self._description["normalizer"], self._description["pre_tokenizer"]])
        if model["type"] != "BPE" or "(?=" in parts:  # which looks ahead as far as it likes
            return None
        if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
            return None
        longest = max(map(len, (*self._named, *model["vocab"])))
        rules = _reach_of_rules(model)
        return None if rules is None else rules + longest


def _reach_of_rules(model: Mapping[str, Any]) -> int | None:
    """The sum of the lengths of what is joined from the left; None if a rule takes up what a later one makes."""
    rules = [tuple(rule.split(" ")) if isinstance(rule, str) else tuple(rule) for rule in model["merges"]]
    made_last = {left + right: rank for rank, (left, right) in enumerate(rules)}
    in_order = all(made_last.get(part, -1) < rank for rank, rule in enumerate(rules) for part in rule)
    return sum(len(left) for left, _ in rules) if in_order else None


def _has_gaps(text: str, found: Encoding, rest: Sequence[int]) -> bool:
    """Whether words that white space parts begin among the tokens behind the first ones, often enough."""
    words, offsets, gaps = found.word_ids, found.offsets, 0
    for i in rest:
        start = offsets[i][0]
        if words[i] != words[i - 1] and 0 < start < len(text) and (text[start - 1].isspace() or text[start].isspace()):
            gaps += 1
    return gaps >= _GAPS


def _is_ordinary(text: str) -> bool:
    """Whether there is a character that ends a run of white space, of digits or of accents, which may be read whole."""
    return any(not (mark.isspace() or mark.isdecimal() or unicodedata.combining(mark)) for mark in text)
