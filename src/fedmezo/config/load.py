"""From a file and overrides to a configuration, or to one error with everything that is wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedmezo.config.checks import conflicts, unused
from fedmezo.config.describe import allowed, choices, field_at, fields, nearest, nearest_key, siblings
from fedmezo.config.document import Document, Keys, Problem, dotted, read
from fedmezo.config.foreign import rename, strip
from fedmezo.config.markup import shorten
from fedmezo.config.overrides import apply
from fedmezo.config.reference import is_unsupported
from fedmezo.config.schema import Config
from fedmezo.config.settle import settled
from fedmezo.errors import ConfigError

QUICKSTART = Path(__file__).resolve().parents[1] / "bundled" / "quickstart.yaml"
"""The configuration that runs without any file, data set or model from elsewhere."""


class Loaded(NamedTuple):
    """A configuration, and what the user should know about keys that were given in vain."""

    config: Config
    notices: tuple[str, ...]


MAX_SHOWN = 100
"""Problems that one error lists; of a file that holds more, the rest is counted."""


class _Fault(NamedTuple):
    """A key that the schema refuses, and what pydantic says of it."""

    keys: Keys
    details: ErrorDetails


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Loaded:
    """Read a configuration; no path is the bundled quickstart. Nothing else is opened, torch is not imported.

    Args:
        path: the YAML file.
        overrides: `key=value`, each value in YAML; the last of one key counts.

    Raises:
        ConfigError: with every problem of the file and the overrides, a line each, in their order.
    """
    document = read(QUICKSTART if path is None else path)
    apply(document, overrides)
    if not document.is_readable:
        raise _error(document.problems)
    notices = [*rename(document), *strip(document)]
    config, faults = _validate(document.data)
    config, decided = settled(config)
    faults.sort(key=lambda fault: document.place(fault.keys))
    problems = [*document.problems, *(_problem(document, fault) for fault in faults[:MAX_SHOWN])]
    problems += _conflicts(document, config, [fault.keys for fault in faults])
    if problems:
        raise _error(problems, unnamed=len(faults[MAX_SHOWN:]))
    return Loaded(config, (*notices, *decided, *unused(config)))


def _validate(data: dict[str, Any]) -> tuple[Config, list[_Fault]]:
    """The configuration, and the keys that the schema refuses, which it then has at their defaults."""
    faults: dict[Keys, ErrorDetails] = {}
    while True:  # a list of too many items is refused only once each of them is sound
        try:
            return Config.model_validate(_without(data, list(faults))), [_Fault(*item) for item in faults.items()]
        except ValidationError as error:
            for details in error.errors(include_url=False):
                is_unknown = details["type"] == "extra_forbidden"
                keys = tuple(map(str, details["loc"])) if is_unknown else field_at(details["loc"])[0]
                faults.setdefault(keys, details)  # of a list, the first item that is wrong


def _reason(data: dict[str, Any], fault: _Fault) -> str:
    """What is wrong, in our words: pydantic's are for programmers."""
    keys, details = fault
    if details["type"] == "extra_forbidden":
        return _unknown(keys)
    _, field = field_at(details["loc"])
    assert field is not None, "only unknown keys are outside the schema"
    if details["type"] == "missing" and len(keys) == len(details["loc"]):
        return f"missing; needs {allowed(field)}"
    return f"got {shorten(_value_at(data, keys))}; needs {allowed(field)}{_hint(field, details['input'])}"


def _unknown(keys: Keys) -> str:
    if is_unsupported(keys):
        return f"FederatedScope's {dotted(keys)} is not supported here; remove it"
    meant = nearest_key(keys)
    if meant:
        return f"unknown key; nearest known key: {meant}"
    return f"unknown key; known are {', '.join(siblings(keys))}"


def _hint(field: FieldInfo, given: Any) -> str:
    if field.annotation is str and isinstance(given, bool | int | float):
        return "; write it in quotes"
    meant = nearest(given, choices(field)) if isinstance(given, str) else None
    return f"; did you mean {meant}?" if meant else ""


def _value_at(data: Any, keys: Keys) -> Any:
    for key in keys:
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def _without(data: dict[str, Any], faulty: list[Keys]) -> dict[str, Any]:
    """The data without the faulty keys, and with an example for each key that must be given and is not there."""
    if not faulty:
        return data
    repaired = copy.deepcopy(data)
    for keys in sorted(faulty, reverse=True):  # what is below a key goes before it
        parent = repaired
        for key in keys[:-1]:
            parent = parent[int(key)] if isinstance(parent, list) else parent.get(key) or {}
        parent.pop(keys[-1], None)
    for keys, field in fields():
        if field.is_required() and field.examples:
            section, key = keys  # no key that must be given is at the top or deeper
            repaired[section] = {key: field.examples[0]} | (repaired.get(section) or {})
    return repaired


def _problem(document: Document, fault: _Fault) -> Problem:
    return Problem(document.place(fault.keys), f"{dotted(fault.keys)}: {_reason(document.data, fault)}")


def _conflicts(document: Document, config: Config, faulty: Sequence[Keys]) -> Iterator[Problem]:
    """Conflicts between keys that are right in themselves."""
    for conflict in conflicts(config):
        involved = [tuple(key.split(".")) for key in conflict.keys]
        if any(key[: len(fault)] == fault for key in involved for fault in faulty):
            continue
        shown = next((key for key in involved if document.has(key)), involved[0])
        yield Problem(document.place(shown), f"{dotted(involved[0])}: {conflict.text}")


def _error(problems: Sequence[Problem], unnamed: int = 0) -> ConfigError:
    lines = [str(problem) for problem in sorted(problems)]
    total = len(lines) + unnamed
    heading = [f"{total} problems in the configuration"] if total > 1 else []
    rest = [f"and {total - MAX_SHOWN} more"] if total > MAX_SHOWN else []
    return ConfigError("\n".join([*heading, *lines[:MAX_SHOWN], *rest]))
