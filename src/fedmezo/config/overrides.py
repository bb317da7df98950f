"""Keys that the command line sets over those of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedmezo.config.document import Document, Keys, Place, Problem, dotted, is_position, parse
from fedmezo.config.markup import shorten


def as_overrides(words: Sequence[str]) -> list[str]:
    """`key=value` words as they are and FederatedScope's pairs `key value` joined; keys hold no equals sign.

    A last key without a value comes back without an equals sign, which `apply` reports.
    """
    overrides = []
    rest: Iterator[str] = iter(words)
    for word in rest:
        value = None if "=" in word else next(rest, None)
        overrides.append(word if value is None else f"{word}={value}")
    return overrides


def apply(document: Document, overrides: Sequence[str]) -> None:
    """Set keys of the document, in order; what cannot be set goes to its problems."""
    for number, override in enumerate(overrides, 1):
        place = Place(1, number, f"override {override!r}")
        reason = _apply(document, override, place)
        if reason:
            document.problems.append(Problem(place, reason))


def _apply(document: Document, override: str, place: Place) -> str | None:
    """Set one key; returns the reason if it cannot be set."""
    key, equals, text = override.partition("=")
    keys = tuple(key.strip().split("."))
    if not equals or not all(keys):
        return "not of the form key=value, such as train.optimizer.lr=1e-5"
    scratch = Document(document.path)
    value = parse(scratch, text) if text else ""
    if scratch.problems:
        return scratch.problems[0].text
    try:
        _set(document.data, keys, value)
    except LookupError as error:
        return f"{dotted(keys)}: {error.args[0]}"
    document.forget(keys)
    for length in range(1, len(keys)):
        document.places.setdefault(keys[:length], place)
    document.places |= {keys + below: place for below in ((), *scratch.places)}
    return None


def _set(data: dict[str, Any], keys: Keys, value: Any) -> None:
    """Set a key below sections and lists, making those that are not there. Raises LookupError with the reason."""
    parent: Any = data
    for depth, key in enumerate(keys[:-1], 1):
        step = _step(parent, key)
        child = parent[step] if isinstance(parent, list) else parent.get(step)
        if child is None:
            child = parent[step] = [None] if keys[depth] == "0" else {}
        if not isinstance(child, dict | list):
            raise LookupError(f"{dotted(keys[:depth])} is {shorten(child)}, which has no keys below it")
        parent = child
    parent[_step(parent, keys[-1])] = value


def _step(parent: dict[str, Any] | list[Any], key: str) -> Any:
    if isinstance(parent, dict):
        return key
    if not (is_position(key) and int(key) < len(parent)):
        raise LookupError(f"{key} is no position in a list of {len(parent)}, which counts from 0")
    return int(key)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one of dotted keys, in the same order."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
