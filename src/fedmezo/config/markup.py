"""YAML as a configuration has it: which words are numbers, what a value may be, and how much a file may hold.

A file of a few kilobytes can stand for gigabytes (aliases of aliases), nest without end or hold numbers that take
minutes to convert. The limits here are far above what any configuration needs, and are met before the work is done.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_BYTES = 1 << 18
"""Of a file."""
MAX_VALUES = 5000
"""Of a file: keys, texts, numbers, lists and sections, those that aliases repeat counted each time."""
MAX_DEPTH = 50
"""Of lists and sections inside each other."""
_MAX_DIGITS = 100
_MAX_KEY = 200

_TAG = "tag:yaml.org,2002:"
MERGE, SECTION, LIST = f"{_TAG}merge", f"{_TAG}map", f"{_TAG}seq"
_INT, _FLOAT, _NUMBERS = f"{_TAG}int", f"{_TAG}float", "!numbers"
_SCALARS = {_INT, _FLOAT, *(f"{_TAG}{name}" for name in ("bool", "null", "str"))}

# YAML 1.2's floats: PyYAML follows 1.1, where 1e-5 without a point is text.
_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_A_FLOAT = re.compile(rf"^{_NUMBER}$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
# Python's way to write several numbers, which FederatedScope reads as such.
_A_TUPLE = re.compile(rf"^\( *{_NUMBER} *(, *{_NUMBER} *)*(, *)?\)$")
# No file name and no terminal takes them: the character that ends a text in C, and halves of surrogate pairs.
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
_CONSTRUCTOR = yaml.constructor.SafeConstructor()


TOO_MANY = f"more than {MAX_VALUES:,} values, which no configuration needs; what aliases repeat counts each time"
TOO_DEEP = f"lists or sections are nested more than {MAX_DEPTH} deep"


class Excess(yaml.MarkedYAMLError):
    """A limit that the text is beyond, at a node or an event."""

    def __init__(self, text: str, mark: yaml.Mark) -> None:
        super().__init__(problem=text, problem_mark=mark)
        self.line = mark.line + 1


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's floats, without dates, and with an end to how much it takes in."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.values = 0
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node; called for each, inside that of the list or section around it."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self.values += 1
        self.depth += 1
        if self.values > MAX_VALUES:
            raise Excess(TOO_MANY, mark)
        if self.depth > MAX_DEPTH:
            raise Excess(TOO_DEEP, mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes by the same rules."""


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    dropped = {f"{_TAG}timestamp", _FLOAT}
    return {
        first: [(tag, pattern) for tag, pattern in rules if tag not in dropped]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = _resolvers()
    _class.add_implicit_resolver(_FLOAT, _A_FLOAT, list("-+0123456789."))
    _class.add_implicit_resolver(_NUMBERS, _A_TUPLE, ["("])
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quoted twice where it holds NEL, a line break of YAML that PyYAML leaves bare in single quotes."""
    return dumper.represent_scalar(f"{_TAG}str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _text_node)


_RESOLVER = _Loader("")


def to_yaml(data: dict[str, Any]) -> str:
    """YAML of plain data, in its order, that reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def compose(text: str) -> yaml.Node | None:
    """The tree of a text; None if it holds nothing.

    Raises:
        yaml.YAMLError: it is not valid YAML, or beyond a limit (`Excess`).
    """
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    except (ValueError, OverflowError) as error:  # PyYAML on \UFFFFFFFF, or on a version of 5,000 digits
        text = "an escape that is no character, or a version that is no number"
        raise yaml.MarkedYAMLError(problem=text, problem_mark=loader.get_mark()) from error


def scalar(node: yaml.ScalarNode) -> tuple[Any, int]:
    """The value of a plain word, and how many further values it is made of.

    Raises:
        yaml.MarkedYAMLError: its tag is not one of a configuration, or it is not what its tag says.
    """
    if node.tag == _NUMBERS and _A_TUPLE.match(node.value):
        words = node.value.strip("(, )").split(",")
        return [_value(_number(word.strip(), node)) for word in words], len(words)
    if node.tag not in _SCALARS:
        raise unknown_tag(node)
    if unusable := _UNUSABLE.search(node.value):
        raise problem(f"the character U+{ord(unusable.group()):04X}", node)
    return _value(node), 0


def key(node: yaml.Node) -> str:
    """A key as messages and command lines name it.

    Raises:
        yaml.MarkedYAMLError: it is no word that can be named.
    """
    if not isinstance(node, yaml.ScalarNode):
        raise problem("a key must be a plain word", node)
    word: str = node.value
    if len(word) > _MAX_KEY or not word.isprintable():
        raise problem(f"a key must be a plain word of at most {_MAX_KEY} characters, not {shorten(word)}", node)
    return word


def _number(word: str, node: yaml.ScalarNode) -> yaml.ScalarNode:
    """A number inside a node, as if it stood alone."""
    tag: str = _RESOLVER.resolve(yaml.ScalarNode, word, (True, False))  # type: ignore[no-untyped-call]
    return yaml.ScalarNode(tag, word, node.start_mark)


def _value(node: yaml.ScalarNode) -> Any:
    if node.tag in (_INT, _FLOAT) and len(node.value) > _MAX_DIGITS:
        raise Excess(f"a number of {len(node.value):,} characters; at most {_MAX_DIGITS} are read", node.start_mark)
    try:
        return _CONSTRUCTOR.yaml_constructors[node.tag](_CONSTRUCTOR, node)
    except (ValueError, LookupError, OverflowError) as error:  # such as !!int one, or 0x_
        raise problem(f"{shorten(node.value)} is no {node.tag.rpartition(':')[2]}", node) from error


def problem(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    """What is wrong with a node."""
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)


def unknown_tag(node: yaml.Node) -> yaml.MarkedYAMLError:
    """The problem of a tag that no configuration needs."""
    tag = node.tag.replace(_TAG, "!!")
    advice = "leave it out and write a word, a number, a list or a section"
    return problem(f"the tag {tag} is not supported; {advice}", node)


def shorten(value: Any, width: int = 60) -> str:
    """A value as the error messages show it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
