"""YAML files to plain data that remembers where each key stands."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedmezo.config.markup import (
    LIST,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    MERGE,
    SECTION,
    TOO_DEEP,
    TOO_MANY,
    Excess,
    compose,
    key,
    problem,
    scalar,
    shorten,
    unknown_tag,
)

Keys = tuple[str, ...]
"""A key's path from the top; positions in lists are decimal numbers."""
_Entry = tuple[yaml.ScalarNode, yaml.Node]

_INDENT_WITH_TAB = re.compile(r"^ *\t", re.MULTILINE)
_MAX_POSITION_DIGITS = 9
_MAX_REASON = 400


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

    def value(self, keys: Keys) -> Any:
        """What a key that is given holds."""
        value: Any = self.data
        for step in keys:
            value = value[int(step)] if isinstance(value, list) else value[step]
        return value

    def pop(self, keys: Keys) -> None:
        """Remove a key that is given."""
        parent = self.value(keys[:-1])
        del parent[int(keys[-1]) if isinstance(parent, list) else keys[-1]]
        self.forget(keys)

    def move(self, keys: Keys, to: Keys) -> None:
        """Give the value of a key that is given to another one, in a section of its own; it keeps its place."""
        value, place = self.value(keys), self.places[keys]
        self.pop(keys)
        if self.data.get(to[0]) is None:
            self.data[to[0]] = {}
        section = self.data[to[0]]
        if isinstance(section, dict):
            section[to[1]] = value
            self.places.setdefault(to[:1], place)
            self.places[to] = place

    def refuse(self, place: Place, text: str) -> None:
        """Note a problem after which nothing can be said about single keys."""
        self.problems.append(Problem(place, text))
        self.is_readable = False

    def forget(self, keys: Keys) -> None:
        """Drop the places of a key and of all below it."""
        self.places = {known: place for known, place in self.places.items() if known[: len(keys)] != keys}


def read(path: Path) -> Document:
    """The keys of a file; what is wrong with it is in the document's `problems`."""
    document = Document(path)
    text = _read_text(document)
    data = None if text is None else parse(document, text)
    if isinstance(data, dict):
        document.data = data
    elif data is not None:
        wanted = "needs keys with values, as in 'key: value'"
        document.refuse(document.at_line(1), f"got {shorten(data)} at the top level; {wanted}")
    return document


def _read_text(document: Document) -> str | None:
    try:
        with document.path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) <= MAX_BYTES:
            return content.decode().replace("\r\n", "\n").replace("\r", "\n")
        reason = f"more than {MAX_BYTES >> 10} KiB, which no configuration needs"
    except FileNotFoundError:
        reason = "no such file"
    except UnicodeDecodeError as error:
        is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        reason = "UTF-16 text; save it as UTF-8" if is_utf_16 else f"not UTF-8 text (byte {error.start})"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    document.refuse(document.place(()), reason)
    return None


def parse(document: Document, text: str) -> Any:
    """The value of YAML text, None if there is none; places and problems go to the document."""
    try:
        node = compose(text)
        return None if node is None else _Builder(document).build(node, (), ())
    except Excess as error:
        document.refuse(document.at_line(error.line), str(error.problem))
    except yaml.MarkedYAMLError as error:
        document.refuse(*_syntax_problem(document, text, error))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.refuse(document.at_line(line), f"not valid YAML: the character U+{error.character:04X}")
    return None


def _syntax_problem(document: Document, text: str, error: yaml.MarkedYAMLError) -> tuple[Place, str]:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    tab = _INDENT_WITH_TAB.search(text)
    if tab and text.count("\n", 0, tab.end()) + 1 <= line:
        line = text.count("\n", 0, tab.end()) + 1
        return document.at_line(line), "indented with a tab; YAML indents with spaces only"
    reason = str(error.problem or error.context)
    shown = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}..."  # it may quote the file
    is_alias = error.context == "while scanning an alias" or "undefined alias" in reason
    quotes = "; text that begins with * needs quotes" if is_alias else ""
    return document.at_line(line), f"not valid YAML: {shown}{quotes}"


class _Builder:
    """Plain data from YAML nodes, noting places and doubled keys on the way."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.values = 0
        self.merged: dict[yaml.Node, dict[str, _Entry]] = {}

    def build(self, node: yaml.Node, keys: Keys, parents: tuple[yaml.Node, ...]) -> Any:
        self.count(node, 1)
        if isinstance(node, yaml.ScalarNode):
            value, made_of = scalar(node)
            self.count(node, made_of)
            return value
        if node.tag not in (SECTION, LIST):
            raise unknown_tag(node)
        around = _enter(node, parents)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, keys, around)
        return [self.item(child, (*keys, str(i)), around) for i, child in enumerate(node.value)]

    def count(self, node: yaml.Node, values: int) -> None:
        """A short text can ask for many values; each is paid for before it is made."""
        self.values += values
        if self.values > MAX_VALUES:
            raise Excess(TOO_MANY, node.start_mark)

    def item(self, node: yaml.Node, keys: Keys, parents: tuple[yaml.Node, ...]) -> Any:
        self.document.places[keys] = self.document.at_line(node.start_mark.line + 1)
        return self.build(node, keys, parents)

    def mapping(self, node: yaml.MappingNode, keys: Keys, parents: tuple[yaml.Node, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for word, (key_node, value_node) in self.entries(node, keys, parents).items():
            below = (*keys, word)
            self.document.places[below] = self.document.at_line(key_node.start_mark.line + 1)
            data[word] = self.build(value_node, below, parents)
        return data

    def entries(self, node: yaml.MappingNode, keys: Keys, parents: tuple[yaml.Node, ...]) -> dict[str, _Entry]:
        """What a section holds by key: first what it merges with '<<', then its own, which comes before that."""
        if node not in self.merged:
            self.check_keys(node, keys)
            inherited: dict[str, _Entry] = {}
            own: dict[str, _Entry] = {}
            for key_node, value_node in node.value:
                if key_node.tag == MERGE:
                    inherited = self.inherited(value_node, keys, parents)
                else:
                    own[key_node.value] = (key_node, value_node)
            self.merged[node] = inherited | own
        return self.merged[node]

    def inherited(self, node: yaml.Node, keys: Keys, parents: tuple[yaml.Node, ...]) -> dict[str, _Entry]:
        """What '<<' brings: a section's entries, or those of a list of sections, of which the first counts."""
        entries: dict[str, _Entry] = {}
        for source in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise problem("'<<' needs a section, or a list of sections", source)
            found = self.entries(source, keys, _enter(source, parents))
            self.count(source, len(found))
            entries |= found
        return entries

    def check_keys(self, node: yaml.MappingNode, keys: Keys) -> None:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            word = key(key_node)
            if word in seen:
                text = f"{dotted((*keys, word))}: given twice, first in line {seen[word]}; keep one"
                self.document.problems.append(Problem(self.document.at_line(line), text))
            seen.setdefault(word, line)


def _enter(node: yaml.Node, parents: tuple[yaml.Node, ...]) -> tuple[yaml.Node, ...]:
    """The lists and sections around what is in a node, which may be none of them itself."""
    if node in parents:
        raise problem("an alias that contains itself", node)
    if len(parents) == MAX_DEPTH:
        raise Excess(TOO_DEEP, node.start_mark)
    return (*parents, node)


def dotted(keys: Keys) -> str:
    """A key's path as the user writes it."""
    return ".".join(keys)


def is_position(word: str) -> bool:
    """Whether a key can be a place in a list."""
    return word.isdecimal() and len(word) <= _MAX_POSITION_DIGITS
