"""A run that is looked at while it works: a table in the terminal, and its report as a page that renews itself.

Only reads what the run writes, so it may run anywhere that sees the run's folder, and start and stop at any time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedmezo.atomic import replacing
from fedmezo.config import load_config
from fedmezo.errors import RunError, StorageError
from fedmezo.results.metrics import METRICS_FILE, Metric, read_metrics
from fedmezo.results.report import report_page
from fedmezo.results.summary import human_seconds, series, summarise, summary_rows
from fedmezo.runs.directory import CONFIG_FILE
from fedmezo.runs.journal import JOURNAL_FILE, read_journal

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_PAGES = 5
"""How often a browser that shows the page asks for it again."""
ROUNDS_OF_ETA = 10
"""The time that is left follows from so many rounds."""

_LEVELS, _PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.-=^"
_SPARKS = 24


def watch(folder: Path, page: Path | None = None, *, once: bool = False, console: Console | None = None) -> int:
    """Show a run until it ends, or until Ctrl-C; returns the exit code.

    Args:
        folder: the run's folder.
        page: file for the page; None for none.
        once: show what there is and return.
        console: where to show it; None for the terminal.

    Raises:
        RunError: it is no run's folder, or what it holds is damaged.
        StorageError: the page cannot be written.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise RunError(f"{folder}: no run's folder (it has no {CONFIG_FILE})")
    planned = load_config(folder / CONFIG_FILE).config.federate.total_round_num
    console = console or Console()
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for look in count():
            if look:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            metrics = _metrics(folder)
            ended = _has_ended(folder)
            live.update(_table(folder, metrics, planned, ended, plain=not _shows_blocks(console)), refresh=True)
            if page is not None and metrics:
                _write(page, report_page(folder, renewed_after=None if ended else SECONDS_BETWEEN_PAGES))
            if once or ended:
                return 0
    raise AssertionError("unreachable")


def _metrics(folder: Path) -> list[Metric]:
    return read_metrics(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else []


def _has_ended(folder: Path) -> bool:
    return (folder / JOURNAL_FILE).exists() and read_journal(folder / JOURNAL_FILE).ended


def _table(folder: Path, metrics: Sequence[Metric], planned: int, ended: bool, *, plain: bool) -> Table:
    done = max((metric.round for metric in metrics), default=0)
    state = "done" if ended else f"round {done} of {planned}{_time_left(metrics, planned - done)}"
    table = Table(title=f"{folder.resolve().name}: {state}", title_justify="left", show_header=False, box=None)
    if not metrics:
        table.add_row("nothing has been measured yet")
        return table
    for row in summary_rows(summarise(metrics)):
        table.add_row(row.heading, row.value, row.remark)
    for name in ("train_loss", "val_loss"):
        values = [value for _, value in series(metrics, name)]
        if len(values) > 1:
            table.add_row(name, sparks(values, _PLAIN_LEVELS if plain else _LEVELS), f"{values[-1]:.4f}")
    return table


def _time_left(metrics: Sequence[Metric], rounds: int) -> str:
    last = [seconds for _, seconds in series(metrics, "seconds")][-ROUNDS_OF_ETA:]
    return f", {human_seconds(rounds * sum(last) / len(last))} left" if last and rounds > 0 else ""


def sparks(values: Sequence[float], levels: str = _LEVELS) -> str:
    """The last values as a line of characters, the first of `levels` for the smallest; what is no number is `!`."""
    shown = values[-_SPARKS:]
    finite = [value for value in shown if abs(value) < float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    width = (high - low) or 1.0
    return "".join(
        levels[min(len(levels) - 1, int((value - low) / width * len(levels)))] if abs(value) < float("inf") else "!"
        for value in shown
    )


def _shows_blocks(console: Console) -> bool:
    try:
        _LEVELS.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _write(page: Path, content: bytes) -> None:
    try:
        with replacing(page) as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"--page {page}: cannot be written: {error.strerror}") from error
