"""Tables of points: on the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmezo.campaign.points import MIB, Point
from fedmezo.results.metrics import ACCURACY
from fedmezo.results.summary import human_bytes, human_seconds
from fedmezo.runs.directory import write_text
from fedmezo.studies.intervals import Interval


@dataclass(frozen=True, slots=True)
class Table:
    """A title, headings, and rows of text."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()
    preface: str = ""

    def markdown(self) -> str:
        """The table with its remarks below it."""
        lines = [f"| {' | '.join(self.headings)} |", f"|{'---|' * len(self.headings)}"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in self.rows]
        return "\n".join([*lines, *(f"\n{remark}" for remark in self.remarks)]) + "\n"

    def csv(self) -> str:
        """The table as comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.headings, *self.rows])
        return text.getvalue()

    def write(self, folder: Path, name: str) -> None:
        """Write `NAME.md` and `NAME.csv`."""
        parts = [f"# {self.title}", *([self.preface] if self.preface else []), self.markdown()]
        write_text(folder / f"{name}.md", "\n\n".join(parts))
        write_text(folder / f"{name}.csv", self.csv())


Column = Callable[[Point, str], Interval | None]
"""A figure of a point; the second argument names the loss that counts."""

COLUMNS: dict[str, tuple[Column, Callable[[float], str]]] = {
    "first loss": (lambda point, loss: point.first(loss), "{:.4f}".format),
    "last loss": (lambda point, loss: point.last(loss), "{:.4f}".format),
    "best loss": (lambda point, loss: point.best(loss), "{:.4f}".format),
    "first accuracy": (lambda point, loss: point.first(_accuracy(loss)), "{:.1%}".format),
    "last accuracy": (lambda point, loss: point.last(_accuracy(loss)), "{:.1%}".format),
    "change": (lambda point, loss: point.change(loss), "{:+.4f}".format),
    "forward passes": (lambda point, _: point.total("forward_passes"), "{:,.0f}".format),
    "bytes": (lambda point, _: point.total("bytes_up", "bytes_down"), human_bytes),
    "bytes up": (lambda point, _: point.total("bytes_up"), human_bytes),
    "time": (lambda point, _: point.total("seconds"), human_seconds),
    "s per 10 rounds": (lambda point, _: _scaled(point.seconds_per_round(), 10), "{:.2f}".format),
    "peak memory": (lambda point, _: point.peak_memory(), human_bytes),
    "peak memory, MiB": (lambda point, _: _scaled(point.peak_memory(), 1 / MIB), "{:,.0f}".format),
}
"""Columns by their headings, each with how a value is written."""

WITH_INTERVAL = ("first loss", "last loss", "best loss", "change", "first accuracy", "last accuracy")
"""Columns that vary with the seed in a way that matters."""


def cell(point: Point, heading: str, loss: str) -> str:
    """One figure of a point as text, with half of its interval where it has one."""
    column, text = COLUMNS[heading]
    found = column(point, loss)
    if found is None:
        return "-"
    shown = text(found.value)
    if heading in WITH_INTERVAL and not math.isnan(found.low):
        shown += f" ± {text(found.half_width).lstrip('+')}"
    return shown


def point_table(title: str, points: Sequence[Point], headings: Sequence[str], loss: str, first: str = "") -> Table:
    """A row for each point; points without a finished run say so."""
    rows = [(point.label, *(cell(point, heading, loss) for heading in headings)) for point in points]
    remarks = [f"{point.label}: {text}" for point in points for text in point.failures]
    return Table(title, (first, *headings), tuple(rows), tuple(remarks))


def _accuracy(loss: str) -> str:
    """The name of the accuracy on the same part of the data."""
    return loss.replace("loss", ACCURACY)


def _scaled(interval: Interval | None, factor: float) -> Interval | None:
    if interval is None:
        return None
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor)
