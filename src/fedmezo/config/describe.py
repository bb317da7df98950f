"""The schema in words: what a field may hold, which key was meant, and the reference page docs/config.md."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from fedmezo.config.document import Keys, dotted, is_position
from fedmezo.config.reference import WITHOUT_EFFECT
from fedmezo.config.schema import Allowed, Config, Section

_SCALARS = {bool: "True or False", str: "text"}
_COUNTS = {1: "one", 2: "two", 3: "three"}


def section_of(annotation: Any) -> type[Section] | None:
    """The section a field holds, itself or in a list."""
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def field_at(loc: Sequence[int | str], top: type[Section] = Config) -> tuple[Keys, FieldInfo | None]:
    """The innermost field on a path into the data, with its own path; None for a path that the schema does not have."""
    section: type[Section] | None = top
    keys: Keys = ()
    found: tuple[Keys, FieldInfo | None] = ((), None)
    for step in loc:
        keys = (*keys, str(step))
        if isinstance(step, int):
            continue
        if section is None or step not in section.model_fields:
            break
        found = (keys, section.model_fields[step])
        section = section_of(section.model_fields[step].annotation)
    return found


def allowed(field: FieldInfo) -> str:
    """What the field may hold."""
    for item in field.metadata:
        if isinstance(item, Allowed):
            return item.text
    return _type_in_words(field.annotation, field.metadata)


def _type_in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    section = section_of(annotation)
    if section is not None:
        return f"keys below it: {', '.join(section.model_fields)}"
    if annotation in (int, float):
        return _number_in_words(annotation, metadata)
    if get_origin(annotation) is Literal:
        return _choices_in_words(get_args(annotation))
    if get_origin(annotation) is Annotated:
        bare, *marks = get_args(annotation)
        return next((mark.text for mark in marks if isinstance(mark, Allowed)), None) or _type_in_words(bare, marks)
    if get_origin(annotation) is tuple:
        return f"a list of {' and '.join(get_args(get_args(annotation)[0]))}"
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type_in_words(part) for part in get_args(annotation) if part is not types.NoneType)
    return _SCALARS[annotation]


def _choices_in_words(choices: Sequence[str | int]) -> str:
    named = [str(choice) or "''" for choice in choices]
    return named[0] if len(named) == 1 else f"one of {', '.join(named)}"


def _number_in_words(annotation: Any, metadata: Sequence[Any]) -> str:
    noun = "a whole number" if annotation is int else "a number"
    at_least = next((item.ge for item in metadata if isinstance(item, Ge)), None)
    above = next((item.gt for item in metadata if isinstance(item, Gt)), None)
    up_to = next((item.le for item in metadata if isinstance(item, Le)), None)
    if at_least is not None and up_to is not None:
        return f"{noun} from {at_least} to {up_to}"
    bounds = {"above": above, "of at least": at_least, "up to": up_to}
    words = " and ".join(f"{name} {bound}" for name, bound in bounds.items() if bound is not None)
    return f"{noun} {words}".strip()


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The words a field chooses from, if it does."""
    parts = get_args(field.annotation) if get_origin(field.annotation) in (Union, types.UnionType, tuple) else ()
    for part in (field.annotation, *parts):
        if get_origin(part) is Literal:
            return tuple(choice for choice in get_args(part) if isinstance(choice, str))
    return ()


def nearest(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The candidate that the word was probably meant to be, letter case aside."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[matches[0]] if matches else None


def nearest_key(keys: Keys) -> str | None:
    """The known key that an unknown one was probably meant to be: in its section, else anywhere."""
    sibling = nearest(keys[-1], siblings(keys))
    if sibling:
        return dotted((*keys[:-1], sibling))
    by_leaf: dict[str, str] = {}
    for path, _ in fields():
        by_leaf.setdefault(path[-1], dotted(path))
    leaf = nearest(keys[-1], by_leaf, cutoff=0.8)
    return by_leaf[leaf] if leaf else None


def siblings(keys: Keys) -> list[str]:
    """The known keys of the section that a key stands in."""
    _, parent = field_at([int(key) if is_position(key) else key for key in keys[:-1]])
    section = section_of(parent.annotation) if parent else Config
    return list(section.model_fields) if section else []


def fields(section: type[Section] = Config, above: Keys = ()) -> Iterator[tuple[Keys, FieldInfo]]:
    """Every field that holds a value, by path; those inside a list of one mapping have the position 0."""
    for name, field in section.model_fields.items():
        path = (*above, name)
        below = section_of(field.annotation)
        if below is None or get_origin(field.annotation) is tuple:
            yield path, field
        if below is not None:
            yield from fields(below, (*path, "0") if get_origin(field.annotation) is tuple else path)


def reference_page() -> str:
    """docs/config.md."""
    parts = [_INTRODUCTION, *_sections(Config, ())]
    by_reason: dict[str, list[str]] = {}
    for key, why in WITHOUT_EFFECT.items():
        by_reason.setdefault(why, []).append(f"`{key}`")
    ignored = [f"| {', '.join(keys)} | {why} |" for why, keys in by_reason.items()]
    parts.append("\n".join([_WITHOUT_EFFECT_HEADING, *ignored]))
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# Configuration

Every key that a configuration file may hold. The file is YAML, its layout that of FederatedScope; `a.b` is key `b` of
section `a`. On the command line any key can be given or changed as `a.b=value`; a position in a list is a number, as in
`llm.adapter.args.0.r=16`. `fedmezo check FILE` reads a file and says what is wrong with it, all at once.

This page is made by `python -m fedmezo.config > docs/config.md`."""

_WITHOUT_EFFECT_HEADING = """\
## Accepted without effect

Keys of FederatedScope that mean nothing here, and any of its sections that says `use: False`. A run that is given one
says so.

| key | why |
|---|---|"""


def _sections(section: type[Section], above: Keys) -> Iterator[str]:
    """A table of the section's own fields, then its sections."""
    own = [(name, field) for name, field in section.model_fields.items() if not _is_plain_section(field)]
    title = f"## {dotted(above)}" if above else "## Top level"
    about = "" if section is Config else f"\n\n{section.__doc__}"
    rows = [_row(dotted((*above, name)), field) for name, field in own]
    if rows:
        yield "\n".join([f"{title}{about}\n", "| key | default | allowed | meaning |", "|---|---|---|---|", *rows])
    for name, field in section.model_fields.items():
        below = section_of(field.annotation)
        if below is not None:
            yield from _sections(below, (*above, name) if _is_plain_section(field) else (*above, name, "0"))


def _is_plain_section(field: FieldInfo) -> bool:
    return section_of(field.annotation) is not None and get_origin(field.annotation) is not tuple


def _row(key: str, field: FieldInfo) -> str:
    cells = [f"`{key}`", _default(field), allowed(field), field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    if field.default is None:
        return "unset"
    return f"`{_plain(field.default)!r}`"


def _plain(value: Any) -> Any:
    """A default as the user would write it."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Section):
        return value.model_dump()
    return value
