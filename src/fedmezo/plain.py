"""Text that others wrote, made safe to show: it cannot move a cursor, start a line of its own, or fill the screen."""

from __future__ import annotations

import unicodedata

MOST_CHARACTERS = 300
_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of controls, lone surrogates, and separators of lines and paragraphs."""
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Bidirectional classes of the marks that turn the text after them around."""


def plain(text: str) -> str:
    """The text with line ends and tabs as they are, and every other character that a terminal obeys written out."""
    return "".join(character if character in "\n\t" else _shown(character) for character in text)


def one_line(text: str) -> str:
    """The text on one line of at most `MOST_CHARACTERS`, every character that a terminal obeys written out."""
    words = " ".join(text[: 2 * MOST_CHARACTERS].split())
    line = "".join(map(_shown, words))
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]} ..."


def _shown(character: str) -> str:
    """The character itself, or what Python writes for one that is unsafe."""
    if unicodedata.category(character) in _UNSAFE or unicodedata.bidirectional(character) in _TURNING:
        return character.encode("unicode_escape").decode("ascii")
    return character
