"""`key=a,b,c` words to the points of a grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from fedmezo.errors import ConfigError

SEED = "seed"
_OPENING, _CLOSING, _QUOTES = "[{(", "]})", "'\""


def split_values(text: str) -> list[str]:
    """The values between the commas of `a,b,c`; a comma inside brackets or quotes belongs to its value."""
    values, depth, quote, start = [], 0, "", 0
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
            if character == "," and depth == 0:
                values.append(text[start:at])
                start = at + 1
    return [*values, text[start:]]


def grid(words: Sequence[str]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The settings that are the same everywhere, and the points: every combination of the values of the others.

    Raises:
        ConfigError: a word is not `key=value` or `key=a,b,c`, or a key or one of its values is given twice.
    """
    values: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r} is not of the form key=a,b,c, such as train.optimizer.lr=1e-5,2e-5")
        if key in values:
            raise ConfigError(f"{key} is given twice; give its values once, with commas between them")
        if key == SEED:
            raise ConfigError("seed is no key to sweep over: --seeds N repeats every point with N seeds")
        values[key] = split_values(text)
        if len(set(values[key])) < len(values[key]):
            raise ConfigError(f"{word!r} names a value twice")
    fixed = {key: given[0] for key, given in values.items() if len(given) == 1}
    swept = {key: given for key, given in values.items() if len(given) > 1}
    return fixed, [dict(zip(swept, combination, strict=True)) for combination in product(*swept.values())]


def as_words(settings: Mapping[str, str]) -> Iterator[str]:
    """Settings as `key=value` words."""
    return (f"{key}={value}" for key, value in settings.items())


def short_label(settings: Mapping[str, str]) -> str:
    """Settings by the last word of each key, or the last two where that word is not alone."""
    last = [key.rpartition(".")[2] for key in settings]
    names = [
        ".".join(key.split(".")[-2:]) if last.count(word) > 1 or word == "type" else word
        for key, word in zip(settings, last, strict=True)
    ]
    return ", ".join(f"{name}={value}" for name, value in zip(names, settings.values(), strict=True)) or "as configured"
