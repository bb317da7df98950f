"""What is odd in a table of examples, though it can be read: keys given twice, answers of white space alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from fedmezo.records import Example


class Doubled(dict[str, Any]):
    """A JSON object that gives a key more than once; the last value counts, as in every common reader.

    Args:
        pairs: its keys and values as they stand there.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.key = next(key for key, count in counts.items() if count > 1)
        """The first that stands there again."""


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads`: one that remembers a key given twice."""
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else Doubled(pairs)


class Oddities:
    """Counts what is odd, and remembers where it was first."""

    def __init__(self) -> None:
        self._doubled: list[str] = []
        self._blank: list[str] = []

    def note(self, where: str, row: object, example: Example) -> None:
        """Look at one row and the example that it became."""
        if isinstance(row, Doubled):
            self._doubled.append(f"{where}, key {row.key!r}")
        if example.output and not example.output.strip():
            self._blank.append(where)

    def notices(self, num_examples: int) -> Iterator[str]:
        """A line for each kind that there was."""
        if self._doubled:
            yield (
                f"{len(self._doubled)} of {num_examples:,} examples give a key twice, of which the last counts; the "
                f"first is {self._doubled[0]}"
            )
        if self._blank:
            yield (
                f"{len(self._blank)} of {num_examples:,} answers are white space alone, and are learned as such; the "
                f"first is {self._blank[0]}"
            )
