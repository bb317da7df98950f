"""What is said of keys that do not go together."""

from __future__ import annotations

from typing import NamedTuple


class Conflict(NamedTuple):
    """Keys that do not go together. The first of them that the user gave is where the message points."""

    keys: tuple[str, ...]
    text: str
