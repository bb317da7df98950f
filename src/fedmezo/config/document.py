"""YAML text to plain data that remembers where each key stands, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Keys = tuple[str, ...]
"""A key's path from the top; positions in lists are decimal numbers."""

_INDENT_WITH_TAB = re.compile(r"^ *\t", re.MULTILINE)
# YAML 1.2's floats: PyYAML follows 1.1, where 1e-5 without a point is text.
_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_FLOAT = re.compile(rf"^{_NUMBER}$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
# Python's way to write several numbers, which FederatedScope reads as such.
_TUPLE = re.compile(rf"^\( *{_NUMBER} *(, *{_NUMBER} *)*,? *\)$")


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

    def refuse(self, place: Place, text: str) -> None:
        """Note a problem after which nothing can be said about single keys."""
        self.problems.append(Problem(place, text))
        self.is_readable = False

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
    _class.add_implicit_resolver("!numbers", _TUPLE, ["("])
_Loader.yaml_constructors = {  # dates stay text, and tags for other types are errors
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag in {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "map", "null", "seq", "str")}
}
_Loader.add_constructor("!numbers", lambda _, node: yaml.load(f"[{node.value.strip('()')}]", _Loader))
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quoted twice where it holds NEL, a line break of YAML that PyYAML leaves bare in single quotes."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _text_node)


def to_yaml(data: dict[str, Any]) -> str:
    """YAML of plain data, in its order, that reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read(path: Path) -> Document:
    """The keys of a file; what is wrong with it is in the document's `problems`."""
    document = Document(path)
    text = _read_text(document)
    data = None if text is None else parse(document, text)
    if isinstance(data, dict):
        document.data = data
    elif data is not None:
        wanted = "needs keys with values, such as 'seed: 0'"
        document.refuse(document.at_line(1), f"got {shorten(data)} at the top level; {wanted}")
    return document


def _read_text(document: Document) -> str | None:
    try:
        return document.path.read_text(encoding="utf-8")
    except FileNotFoundError:
        reason = "no such file"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text (byte {error.start})"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    document.refuse(document.place(()), reason)
    return None


def parse(document: Document, text: str) -> Any:
    """The value of YAML text, None if there is none; places and problems go to the document."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Builder(document, loader).build(node, (), ())
    except yaml.MarkedYAMLError as error:
        document.refuse(*_syntax_problem(document, text, error))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.refuse(document.at_line(line), f"not valid YAML: the character U+{error.character:04X}")
    except RecursionError:
        document.refuse(document.at_line(1), "lists or sections are nested too deeply")
    return None


def _syntax_problem(document: Document, text: str, error: yaml.MarkedYAMLError) -> tuple[Place, str]:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    tab = _INDENT_WITH_TAB.search(text)
    if tab and text.count("\n", 0, tab.end()) + 1 <= line:
        line = text.count("\n", 0, tab.end()) + 1
        return document.at_line(line), "indented with a tab; YAML indents with spaces only"
    return document.at_line(line), f"not valid YAML: {error.problem or error.context}"


class _Builder:
    """Plain data from YAML nodes, noting places and doubled keys on the way."""

    def __init__(self, document: Document, loader: _Loader) -> None:
        self.document = document
        self.loader = loader
        self.merged: set[yaml.Node] = set()

    def build(self, node: yaml.Node, keys: Keys, parents: tuple[yaml.Node, ...]) -> Any:
        if node in parents:
            raise _error("an alias that contains itself", node)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise _unknown_tag(node)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, keys, (*parents, node))
        return [self.item(child, (*keys, str(i)), (*parents, node)) for i, child in enumerate(node.value)]

    def scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag not in self.loader.yaml_constructors:
            raise _unknown_tag(node)
        try:
            return self.loader.construct_object(node)
        except (ValueError, LookupError) as error:  # such as !!int one, or 0x_
            raise _error(f"{shorten(node.value)} is no {node.tag.rpartition(':')[2]}", node) from error

    def item(self, node: yaml.Node, keys: Keys, parents: tuple[yaml.Node, ...]) -> Any:
        self.document.places[keys] = self.document.at_line(node.start_mark.line + 1)
        return self.build(node, keys, parents)

    def mapping(self, node: yaml.MappingNode, keys: Keys, parents: tuple[yaml.Node, ...]) -> dict[str, Any]:
        if node not in self.merged:  # the second visit of an alias sees merged keys beside the mapping's own
            self.merged.add(node)
            self.check_keys(node, keys)
            self.loader.flatten_mapping(node)  # merges '<<', whose keys then come before the mapping's own
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            below = (*keys, str(key_node.value))
            self.document.forget(below)
            self.document.places[below] = self.document.at_line(key_node.start_mark.line + 1)
            data[below[-1]] = self.build(value_node, below, parents)
        return data

    def check_keys(self, node: yaml.MappingNode, keys: Keys) -> None:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error("a key must be a plain word", key_node)
            if key_node.value in seen:
                text = f"{dotted((*keys, key_node.value))}: given twice, first in line {seen[key_node.value]}; keep one"
                self.document.problems.append(Problem(self.document.at_line(line), text))
            seen.setdefault(key_node.value, line)


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _unknown_tag(node: yaml.Node) -> yaml.MarkedYAMLError:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    advice = "leave it out and write a word, a number, a list or a section"
    return _error(f"the tag {tag} is not supported; {advice}", node)


def dotted(keys: Keys) -> str:
    """A key's path as the user writes it."""
    return ".".join(keys)


def shorten(value: Any, width: int = 60) -> str:
    """A value as the error messages show it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
