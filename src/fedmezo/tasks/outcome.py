"""What a task found: a score with its interval, and the items it is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmezo.atomic import replacing
from fedmezo.studies.intervals import Interval, mean_interval, share_interval

Item = Mapping[str, object]
"""One example as it is written to a line of JSON: what was asked, expected and answered, and how it was judged."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A task's result."""

    task: str
    measure: str  # what the score is: loss, exact match, ...
    score: Interval
    items: Sequence[Item]
    is_share: bool = True  # of the items, to be shown in per cent

    def text(self) -> str:
        """The score with the ends of its interval, where there are any."""
        form = "{:.2%}" if self.is_share else "{:.4f}"
        low, high = (form.format(end) for end in (self.score.low, self.score.high))
        ends = "" if math.isnan(self.score.low) else f" ({low} to {high})"
        return form.format(self.score.value) + ends


def judged(task: str, measure: str, items: Sequence[Item]) -> Outcome:
    """The share of items whose `correct` is true."""
    return Outcome(task, measure, share_interval(sum(bool(item["correct"]) for item in items), len(items)), items)


def averaged(task: str, items: Sequence[Item]) -> Outcome:
    """The mean of the items' `loss`, in nats per token."""
    return Outcome(task, "loss", mean_interval([float(str(item["loss"])) for item in items]), items, False)


def write_items(folder: Path, name: str, items: Sequence[Item]) -> Path:
    """Write `NAME.jsonl`, a line for each item; returns the file."""
    path = folder / f"{name}.jsonl"
    with replacing(path) as file:
        file.writelines((json.dumps(item, ensure_ascii=False) + "\n").encode() for item in items)
    return path
