"""A text as a model reads it, before it is tokenised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """A text for a model, and which of it the loss counts."""

    content: str
    counted: tuple[tuple[int, int], ...] = ()  # ranges of characters, in their order
    opened: bool = False  # whether the tokens that the tokenizer puts before a text stand in it already
    ended: bool = True  # whether the end-of-sequence token follows, which is then counted
