"""FederatedScope's keys in a document: old names are renamed, and keys that mean nothing here are taken out."""

from __future__ import annotations

from typing import Any

from fedmezo.config.document import Document, Keys, dotted
from fedmezo.config.reference import ALIASES, WITHOUT_EFFECT, is_off, is_unsupported

_OFF = "FederatedScope's, and switched off"


def rename(document: Document) -> list[str]:
    """Give values under an old name to the key that it stands for, as FederatedScope does; says so."""
    notices = []
    for old, (new, unset) in ALIASES.items():
        keys = tuple(old.split("."))
        if not document.has(keys):
            continue
        if document.value(keys) == unset:
            document.pop(keys)
            notices.append(f"{old} has no effect: it is an old name of {new}, and {unset} sets nothing")
        else:
            document.move(keys, tuple(new.split(".")))
            notices.append(f"{old} is an old name of {new}, which takes its value")
    return notices


def strip(document: Document) -> list[str]:
    """Take FederatedScope's keys that mean nothing here out of the data; says which, those with one reason together."""
    found: dict[str, list[str]] = {}
    for keys, why in _meaningless(document.data, (), off=False):
        document.pop(keys)
        found.setdefault(why, []).append(dotted(keys))
    return [
        f"{keys[0]} has no effect: {why}" if len(keys) == 1 else f"{', '.join(keys)} have no effect: {why}"
        for why, keys in found.items()
    ]


def _meaningless(data: dict[str, Any], above: Keys, *, off: bool) -> list[tuple[Keys, str]]:
    """The keys below `above` that mean nothing, each with the reason; `off`: in a section that is switched off."""
    found = []
    for name, value in data.items():
        keys = (*above, name)
        if dotted(keys) in WITHOUT_EFFECT:
            found.append((keys, WITHOUT_EFFECT[dotted(keys)]))
        elif is_unsupported(keys):
            found += [(keys, _OFF)] if off or is_off(dotted(keys), value) else []
        elif isinstance(value, dict):
            found += _meaningless(value, keys, off=value.get("use") is False)
    return found
