"""Text that others wrote, made safe to show: it cannot move a cursor, start a line of its own, or fill the screen."""

from __future__ import annotations

MOST_CHARACTERS = 300


def plain(text: str) -> str:
    """The text with line ends and tabs as they are, and every other character that does not print written out."""
    return "".join(character if character in "\n\t" else _shown(character) for character in text)


def one_line(text: str) -> str:
    """The text on one line of at most `MOST_CHARACTERS`, every character that does not print written out."""
    words = " ".join(text[: 2 * MOST_CHARACTERS].split())
    line = "".join(map(_shown, words))
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]} ..."


def _shown(character: str) -> str:
    """Controls, line ends, marks of direction and lone surrogates as Python writes them."""
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
