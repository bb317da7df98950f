"""YAML text and command-line overrides to plain data that remembers where each key stands."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Keys = tuple[str, ...]
"""A key's path from the top; positions in lists are decimal numbers."""

_INDENT_WITH_TAB = re.compile(r"^ *\t", re.MULTILINE)
# YAML 1.2's floats: PyYAML follows 1.1, where 1e-5 without a point is text.
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """Where something stands; sorts as the user reads: the file from the top, then the overrides."""

    source: int  # 0 the file, 1 the overrides
    position: int  # line, or number of the override; 0 is the file as a whole
    text: str


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """One thing to put right."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place.text}: {self.text}"


@dataclass(slots=True)
class Document:
    """The data of a file with its overrides, where each key stands, and what was wrong in reading them."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    is_readable: bool = True

    def place(self, keys: Keys) -> Place:
        """Where the key stands, or the nearest section around it that does."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places.get(keys) or Place(0, 0, str(self.path))

    def at_line(self, line: int) -> Place:
        """The place of a line of the file, counted from 1."""
        return Place(0, line, f"{self.path}:{line}")

    def has(self, keys: Keys) -> bool:
        """Whether the key is given."""
        return keys in self.places

    def pop(self, keys: Keys) -> None:
        """Remove a key that is given."""
        parent: Any = self.data
        for key in keys[:-1]:
            parent = parent[int(key)] if isinstance(parent, list) else parent[key]
        del parent[int(keys[-1]) if isinstance(parent, list) else keys[-1]]
        self.forget(keys)

    def forget(self, keys: Keys) -> None:
        """Drop the places of a key and of all below it."""
        self.places = {known: place for known, place in self.places.items() if known[: len(keys)] != keys}


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's floats and without dates."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes by the same rules."""


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    dropped = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"}
    return {
        first: [(tag, pattern) for tag, pattern in rules if tag not in dropped]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = _resolvers()
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def to_yaml(data: dict[str, Any]) -> str:
    """YAML of plain data, in its order, that reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read(path: Path, overrides: Sequence[str]) -> Document:
    """The file with the overrides `key=value` applied; what is wrong is in its `problems`."""
    document = Document(path)
    text = _read_text(document)
    if text is not None:
        _parse(document, text)
    for number, override in enumerate(overrides, 1):
        _override(document, override, Place(1, number, f"override {override!r}"))
    return document


def as_overrides(words: Sequence[str]) -> list[str]:
    """`key=value` words as they are and FederatedScope's pairs `key value` joined; keys hold no equals sign.

    A last key without a value comes back without an equals sign, which `read` reports.
    """
    overrides = []
    rest: Iterator[str] = iter(words)
    for word in rest:
        value = None if "=" in word else next(rest, None)
        overrides.append(word if value is None else f"{word}={value}")
    return overrides


def _read_text(document: Document) -> str | None:
    try:
        return document.path.read_text(encoding="utf-8")
    except FileNotFoundError:
        reason = "no such file"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text (byte {error.start})"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    document.problems.append(Problem(Place(0, 0, str(document.path)), reason))
    document.is_readable = False
    return None


def _parse(document: Document, text: str) -> None:
    """Fill the document from the text of a file."""
    data = _value(document, text)
    if isinstance(data, dict):
        document.data = data
    elif data is not None:
        wanted = "needs keys with values, such as 'seed: 0'"
        document.problems.append(Problem(document.at_line(1), f"got {shorten(data)} at the top level; {wanted}"))
        document.is_readable = False


def _value(document: Document, text: str) -> Any:
    """The value of YAML text, None if there is none; places and problems go to the document."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Builder(document, loader).build(node, (), ())
    except yaml.MarkedYAMLError as error:
        problem = _syntax_problem(document, text, error)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = Problem(document.at_line(line), f"not valid YAML: the character U+{error.character:04X}")
    document.problems.append(problem)
    document.is_readable = False
    return None


def _syntax_problem(document: Document, text: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    tab = _INDENT_WITH_TAB.search(text)
    if tab and text.count("\n", 0, tab.end()) + 1 <= line:
        line = text.count("\n", 0, tab.end()) + 1
        return Problem(document.at_line(line), "indented with a tab; YAML indents with spaces only")
    return Problem(document.at_line(line), f"not valid YAML: {error.problem or error.context}")


class _Builder:
    """Plain data from YAML nodes, noting places and doubled keys on the way."""

    def __init__(self, document: Document, loader: _Loader) -> None:
        self.document = document
        self.loader = loader

    def build(self, node: yaml.Node, keys: Keys, parents: tuple[yaml.Node, ...]) -> Any:
        if node in parents:
            raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, keys, (*parents, node))
        if isinstance(node, yaml.SequenceNode):
            return [self.item(child, (*keys, str(i)), (*parents, node)) for i, child in enumerate(node.value)]
        return self.loader.construct_object(node, deep=True)

    def item(self, node: yaml.Node, keys: Keys, parents: tuple[yaml.Node, ...]) -> Any:
        self.document.places[keys] = self.document.at_line(node.start_mark.line + 1)
        return self.build(node, keys, parents)

    def mapping(self, node: yaml.MappingNode, keys: Keys, parents: tuple[yaml.Node, ...]) -> dict[str, Any]:
        self.check_keys(node, keys)
        self.loader.flatten_mapping(node)  # merges '<<', whose keys then come before the mapping's own
        data = {}
        for key_node, value_node in node.value:
            below = (*keys, str(key_node.value))
            self.document.places[below] = self.document.at_line(key_node.start_mark.line + 1)
            data[below[-1]] = self.build(value_node, below, parents)
        return data

    def check_keys(self, node: yaml.MappingNode, keys: Keys) -> None:
        seen: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                text = f"{dotted((*keys, key_node.value))}: given twice, first in line {seen[key_node.value]}; keep one"
                self.document.problems.append(Problem(self.document.at_line(line), text))
            seen.setdefault(key_node.value, line)


def _override(document: Document, override: str, place: Place) -> None:
    """Set one key, or note why it cannot be set."""
    key, equals, text = override.partition("=")
    keys = tuple(key.strip().split("."))
    if not equals or not all(keys):
        document.problems.append(Problem(place, "not of the form key=value, such as train.optimizer.lr=1e-5"))
        return
    scratch = Document(document.path)
    value = _value(scratch, text) if text else ""
    if scratch.problems:
        document.problems.append(Problem(place, scratch.problems[0].text))
        return
    try:
        _set(document.data, keys, value)
    except LookupError as error:
        document.problems.append(Problem(place, f"{dotted(keys)}: {error.args[0]}"))
        return
    document.forget(keys)
    for known in [keys[:length] for length in range(1, len(keys))]:
        document.places.setdefault(known, place)
    document.places |= {keys + below: place for below in ((), *scratch.places)}


def _set(data: dict[str, Any], keys: Keys, value: Any) -> None:
    """Set a key below sections and lists, making sections that are not there. Raises LookupError with the reason."""
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
    if not (key.isdecimal() and int(key) < len(parent)):
        raise LookupError(f"{key} is no position in a list of {len(parent)}, which counts from 0")
    return int(key)


def dotted(keys: Keys) -> str:
    """A key's path as the user writes it."""
    return ".".join(keys)


def shorten(value: Any, width: int = 60) -> str:
    """A value as the error messages show it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
