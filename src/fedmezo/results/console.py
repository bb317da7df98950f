"""What a run shows on the terminal, and the copy of its notices in log.txt. Only run-like commands import it.

Answers of models and words of other machines pass through here: control characters are written out, not obeyed.

Every function takes the rich Console to write to; there is no console of the module. On a terminal progress is one
live line; elsewhere (a log file, CI) it is a plain line for each evaluation, without control codes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedmezo.plain import plain
from fedmezo.results.summary import Comparison, Summary, human_bytes, human_seconds, summary_rows

LOG_FILE = "log.txt"
MAX_CLIENTS_SHOWN = 20
WIDTH_OF_PARTITION_FRAME = 45  # the columns that every partition table has, and that of the other categories
MAX_SAMPLE_CHARACTERS = 400
WIDTH_OF_FIGURE = 17  # of a column of figures, with its gap, before the first column gets more
COLUMN_GAP = 2
WIDTH_FOR_A_BAR = 105  # a narrower terminal needs its columns for the figures
REFRESHES_PER_SECOND = 4  # more would take time from training on a small machine

PART_TITLES = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """What the progress bar is told at the end of a round; None is what this round did not measure."""

    round: int
    train_loss: float | None = None
    val_loss: float | None = None
    test_loss: float | None = None
    rate: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    epsilon: float | None = None

    @property
    def evaluated(self) -> bool:
        """Whether the round ended with an evaluation."""
        return self.val_loss is not None or self.test_loss is not None

    def text(self) -> str:
        """Return the figures as one line, without the round."""
        losses = (("train", self.train_loss), ("val", self.val_loss), ("test", self.test_loss))
        words = [f"{name} {loss:.4f}" for name, loss in losses if loss is not None]
        shares = (("val", self.val_accuracy), ("test", self.test_accuracy))
        words += [f"{name} {share:.1%} right" for name, share in shares if share is not None]
        words += [f"rate {self.rate:.3g}"] if self.rate is not None else []
        words += [f"epsilon {self.epsilon:.3g}"] if self.epsilon is not None else []
        return " ".join(words)

    def after(self, earlier: RoundStatus) -> RoundStatus:
        """Return this status with the gaps filled from an earlier one."""
        gaps = {field.name: getattr(earlier, field.name) for field in fields(self) if getattr(self, field.name) is None}
        return replace(self, **gaps)


@dataclass(frozen=True, slots=True)
class Sample:
    """One instruction with the expected answer and the model's answers before and after training."""

    instruction: str
    expected: str
    before: str
    after: str


class RunLog:
    """Prints a run's lines and appends them, with the time, to log.txt; a context manager.

    While it is open, what the package's own modules log (notices, warnings) goes the same way.
    """

    def __init__(self, console: Console, run_dir: Path) -> None:
        self.console = console
        self._logger = logging.getLogger("fedmezo")
        self._file = _LogFile(run_dir / LOG_FILE, encoding="utf-8", errors="backslashreplace", delay=True)
        self._file.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
        self._screen = _ConsoleHandler(console)

    def __enter__(self) -> Self:
        self._earlier_level = self._logger.level
        self._logger.setLevel(logging.INFO)
        for handler in (self._file, self._screen):
            self._logger.addHandler(handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handler in (self._file, self._screen):
            self._logger.removeHandler(handler)
            handler.close()
        self._logger.setLevel(self._earlier_level)

    def line(self, text: str) -> None:
        """Print a line and keep it."""
        self._logger.info("%s", text)

    def keep(self, text: str) -> None:
        """Keep a line in log.txt without printing it."""
        self._file.handle(self._logger.makeRecord(self._logger.name, logging.INFO, "", 0, text, (), None))


class RoundProgress:
    """Progress over the rounds of a run; a context manager.

    Args:
        log: where to write.
        total: number of rounds.
        done: rounds already done, for a resumed run.
        clock: seconds from any origin.
    """

    def __init__(self, log: RunLog, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._total = total
        self._clock = clock
        self._start = clock()
        self._latest = RoundStatus(done)
        self._bar = _bar(log.console, clock)
        self._task = self._bar.add_task(f"round {done}/{total}", total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, status: RoundStatus) -> None:
        """Show the state after a round; round 0 shows the evaluation before training."""
        self._latest = status.after(self._latest)
        place = f"round {status.round}/{self._total}"
        figures = self._latest.text()
        self._bar.update(self._task, description=place, completed=status.round, figures=figures)
        if status.evaluated or status.round == self._total:
            write = self._log.keep if self._log.console.is_interactive else self._log.line
            write(f"{place} {figures} after {human_seconds(self._clock() - self._start)}")


@contextmanager
def work_progress(
    console: Console, description: str, *, is_bytes: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int | None], None]]:
    """Show the progress of one piece of work, such as a download or a tokenisation.

    Yields a function to call with what is done so far and the total (None where it is not known), in bytes or items.
    """
    bar = _bar(console, clock, transient=True)
    task = bar.add_task(escape(description), total=None, figures="")
    start = clock()
    figures = ""

    def show(done: int, total: int | None) -> None:
        nonlocal figures
        figures = _amount(done, total, is_bytes)
        bar.update(task, completed=done, total=total, figures=figures)

    with bar:
        yield show
    if figures:  # work that was never reported on had nothing to do
        _print_plain(console, f"{description}: {figures}, {human_seconds(clock() - start)}")


def show_partition(console: Console, parts: Mapping[str, Sequence[Mapping[str, int]]]) -> None:
    """Print how many examples of each category each client holds.

    Args:
        console: where to write.
        parts: for train, val and test, each client's number of examples by category.
    """
    categories = _categories(parts, console.width - WIDTH_OF_PARTITION_FRAME)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("part", "client"):
        table.add_column(heading, no_wrap=True)
    for heading in [*categories.shown, *(["others"] if categories.hidden else []), "all"]:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for part, clients in parts.items():
        for client, counts in enumerate(clients[:MAX_CLIENTS_SHOWN]):
            table.add_row(PART_TITLES.get(part, part) if client == 0 else "", str(client), *categories.cells(counts))
        if len(clients) > MAX_CLIENTS_SHOWN:
            rest = _sum(clients[MAX_CLIENTS_SHOWN:])
            table.add_row("", f"{len(clients) - MAX_CLIENTS_SHOWN} more", *categories.cells(rest))
        table.add_section()
    _print_table(console, "Examples per client and category", table)


def show_samples(console: Console, samples: Sequence[Sample]) -> None:
    """Print instructions with the expected answer and the answers before and after training."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=True)
    for heading in ("instruction", "expected", "before", "after"):
        table.add_column(heading, ratio=1, overflow="fold")
    for sample in samples:
        table.add_row(*map(_short, (sample.instruction, sample.expected, sample.before, sample.after)))
    _print_table(console, "Samples", table)


def show_summary(console: Console, summary: Summary, results: Path) -> None:
    """Print the final table of a run whose results are in the directory `results`."""
    table = Table(box=box.SIMPLE, show_header=False)
    for style in ("bold", "", "dim"):
        table.add_column(style=style, no_wrap=True)
    for row in summary_rows(summary):
        table.add_row(row.heading, row.value, row.remark)
    _print_table(console, "Result", table)
    _print_plain(console, f"Results are in {results}")


def show_table(console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table under its title, the first column to the left, the others to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    room = max(0, console.width - WIDTH_OF_FIGURE * (len(headings) - 1))
    first = min(max(len(row[0]) for row in rows), room) if rows else 0
    for number, heading in enumerate(headings):
        table.add_column(
            Text(heading), justify="right" if number else "left", overflow="fold", min_width=0 if number else first
        )
    for row in rows:
        table.add_row(*map(Text, row))
    _print_table(console, title, table)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print the table of several runs, and under it what differs between them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in comparison.headings:
        table.add_column(heading, justify="right", overflow="fold")
    for number, row in enumerate(comparison.rows, start=1):
        table.add_row(str(number), *map(Text, row[1:]))
    _print_table(console, "Comparison of runs", table)
    for number, row in enumerate(comparison.rows, start=1):
        _print_plain(console, f"{number}: {row[0]}")


class _PlainFormatter(logging.Formatter):
    """Writes out what does not print: part of a message may come from elsewhere."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _LogFile(logging.FileHandler):
    """A file that may be incomplete: what is logged is printed too, and a full disk is reported by what needs it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the base class's name)
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _ConsoleHandler(logging.Handler):
    """Prints log records above a live bar, warnings marked as notices."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = f"notice: {record.getMessage()}" if record.levelno >= logging.WARNING else record.getMessage()
        _print_plain(self._console, text)


@dataclass(frozen=True, slots=True)
class _Categories:
    """Which categories get a column of their own."""

    shown: tuple[str, ...]
    hidden: tuple[str, ...]

    def cells(self, counts: Mapping[str, int]) -> list[str]:
        others = [sum(counts.get(name, 0) for name in self.hidden)] if self.hidden else []
        return [
            f"{count:,}" for count in [*(counts.get(name, 0) for name in self.shown), *others, sum(counts.values())]
        ]


def _categories(parts: Mapping[str, Sequence[Mapping[str, int]]], width: int) -> _Categories:
    """Return the categories in alphabetical order, the largest alone where all do not fit in so many characters."""
    total = _sum([counts for clients in parts.values() for counts in clients])
    by_size = sorted(total, key=lambda name: (-total[name], name))
    if len(by_size) == 1:
        return _Categories((), ())  # the column of all says it already
    widths = accumulate(max(len(name), len(f"{total[name]:,}")) + COLUMN_GAP for name in by_size)
    shown = by_size[: sum(used <= width for used in widths)]
    return _Categories(tuple(sorted(shown)), tuple(by_size[len(shown) :]))


def _sum(clients: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in clients:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return total


def _bar(console: Console, clock: Callable[[], float], *, transient: bool = False) -> Progress:
    """Return a live bar, which shows nothing where the console is not an interactive terminal.

    A transient one leaves no line behind.
    """
    return Progress(
        TextColumn("{task.description}"),
        *([BarColumn(bar_width=20)] if console.width >= WIDTH_FOR_A_BAR else []),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=transient,
        disable=not console.is_interactive,
        refresh_per_second=REFRESHES_PER_SECOND,
        get_time=clock,
    )


def _print_table(console: Console, title: str, table: Table) -> None:
    """Print the title on a line of its own: one that belongs to a narrow table would be wrapped."""
    console.print(Text(title, style="bold"))
    console.print(table)


def _print_plain(console: Console, text: str) -> None:
    console.print(plain(text), markup=False, highlight=False, soft_wrap=True)


def _amount(done: int, total: int | None, is_bytes: bool) -> str:
    shown = [human_bytes(count) if is_bytes else f"{count:,}" for count in (done, total) if count is not None]
    return " of ".join(shown)


def _short(text: str) -> Text:
    return Text(plain(text if len(text) <= MAX_SAMPLE_CHARACTERS else text[:MAX_SAMPLE_CHARACTERS] + " ..."))
