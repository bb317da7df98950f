"""Text of others: nothing in it reaches a terminal that the terminal would obey."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmezo.plain import MOST_CHARACTERS, one_line, plain


def is_obeyed(text: str) -> bool:
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    assert not is_obeyed(one_line(text))
    assert not is_obeyed(plain(text).replace("\n", "").replace("\t", ""))


@given(st.text(st.characters(categories=("L", "M", "N", "P", "S")), max_size=MOST_CHARACTERS))
def test_words_of_any_script_stay_as_they_are(text: str) -> None:
    assert one_line(text) == plain(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("no\r\nround 5/5 val 0.0000", "no round 5/5 val 0.0000"),
        ("\u202eevil", "\\u202eevil"),
        ("\x9b2J", "\\x9b2J"),
        ("x" * 1000, "x" * MOST_CHARACTERS + " ..."),
        ("größer: 日本", "größer: 日本"),
        ("\u2066hidden\u2069 \u2028line", "\\u2066hidden\\u2069 line"),
        ("a\u200cb", "a\u200cb"),  # a joiner, which Persian needs
    ],
)
def test_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_line_ends_stay_where_they_are_ours() -> None:
    assert plain("two\nlines\r\x07") == "two\nlines\\r\\x07"
