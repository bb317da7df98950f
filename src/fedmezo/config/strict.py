"""Data that others wrote, read against a typed and bounded schema: the data, or one message for what is wrong first.

A format is a `Section` like those of the configuration. A field that came with a later version of the format is marked
`Since(n)`, and its default is what versions before n meant without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, model_validator

from fedmezo.config.describe import allowed, field_at
from fedmezo.config.markup import shorten
from fedmezo.config.schema import MAX_CLIENTS, Allowed, Section

DEEPEST = 20
LONGEST_NAME = 4096
"""Characters of a name, a path, or the name of a tensor."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be shown")
    return text


def require_shallow(value: Any, depth: int = DEEPEST) -> None:
    """ValueError for lists and mappings within each other beyond any that we write."""
    if isinstance(value, dict | list) and not depth:
        raise ValueError(f"holds lists or mappings more than {DEEPEST} deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        require_shallow(item, depth - 1)


Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), Allowed("64 hexadecimal digits, in lower case")]
Name = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_NAME),
    AfterValidator(_printable),
    Allowed(f"text of 1 to {LONGEST_NAME} characters that can be shown"),
]
Client = Annotated[int, Field(ge=0, lt=MAX_CLIENTS), Allowed("the number of a client")]


@dataclass(frozen=True, slots=True)
class Since:
    """The version of the format that a field came with.

    From then on it must be there, unless None is its default; before, it must not.
    """

    version: int


class Format(Section):
    """What a file or a message holds; it is checked when it is made, too, so that what is written can be read."""

    @model_validator(mode="before")
    @classmethod
    def _fits_version(cls, data: Any, info: ValidationInfo) -> Any:
        if info.context is None or not isinstance(data, dict):
            return data
        for name, since, optional in _later_fields(cls):
            if since > info.context and name in data:
                raise ValueError(f"{name}: is no key of format {info.context}")
            if since <= info.context and name not in data and not optional:
                raise ValueError(f"{name}: missing; needs {allowed(cls.model_fields[name])}")
        return data


FormatT = TypeVar("FormatT", bound=Format)


@cache
def _later_fields(kind: type[Format]) -> tuple[tuple[str, int, bool], ...]:
    """Name and version of the fields that were not there from the start, and whether they may be left out."""
    return tuple(
        (name, mark.version, field.default is None)
        for name, field in kind.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Since)
    )


def read_strictly(kind: type[FormatT], data: object, version: int = 1) -> FormatT:
    """The data as the format has them.

    Args:
        kind: what it should be.
        data: of JSON.
        version: of the format that the data claim to have.

    Raises:
        ValueError: they are not; says which key holds what, and what it may hold.
    """
    try:
        return kind.model_validate(data, context=version)
    except ValidationError as error:
        raise ValueError(first_fault(kind, error)) from error


def first_fault(kind: type[Section], error: ValidationError) -> str:
    """What is wrong first, in our words."""
    first = error.errors(include_url=False)[0]
    loc, what = first["loc"], first["type"]
    place = ".".join(map(str, loc))
    prefix = f"{shorten(place)[1:-1]}: " if place else ""
    if what == "extra_forbidden":
        return f"{prefix}unknown key"
    if what == "value_error":
        return f"{prefix}{first['ctx']['error']}"
    _, field = field_at(loc, kind)
    if field is None:
        return f"{prefix}got {shorten(first['input'])}; needs keys {', '.join(kind.model_fields)}"
    if what == "missing":
        return f"{prefix}missing; needs {allowed(field)}"
    return f"{prefix}got {shorten(first['input'])}; needs {allowed(field)}"
