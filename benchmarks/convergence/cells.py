"""Cells of the bench: a method at one rate and seed, as far as it has been run; and the file that keeps them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.convergence.task import Progress, Task, Walk

DIVERGED = 1.2
"""So many times the first loss."""


class Point(NamedTuple):
    """Where a run was when its loss was taken."""

    passes: int
    seconds: float  # of training, without evaluations
    sent: int  # bytes
    loss: float


class Key(NamedTuple):
    """Which run."""

    method: str
    rate: float
    seed: int


@dataclass(slots=True, eq=False)
class Cell:
    """One run, which can be taken further as long as this process lasts.

    Args:
        key: which run.
        points: what is known of it; a run that is taken further is made again up to there, without evaluations.
        ended: it diverged, or no report was usable.
    """

    key: Key
    points: list[Point] = field(default_factory=list)
    ended: bool = False
    _walk: Iterator[Progress] | None = None

    @property
    def passes(self) -> int:
        """How far it has been taken."""
        return self.points[-1].passes if self.points else 0

    @property
    def best(self) -> float:
        """The lowest loss so far."""
        return min(point.loss for point in self.points)

    @property
    def last(self) -> float:
        """The loss it ended at; infinite if it diverged."""
        return math.inf if self.ended else self.points[-1].loss

    def reached(self, target: float) -> Point | None:
        """When its loss was at or below a target first."""
        return next((point for point in self.points if point.loss <= target), None)

    def is_done(self, passes: int, targets: Sequence[float]) -> bool:
        """Whether there is nothing more to learn from it by so many passes."""
        if self.ended or self.passes >= passes:
            return True
        return bool(targets) and all(self.reached(target) for target in targets)

    def run_on(
        self, task: Task, walk: Walk, passes: int, targets: Sequence[float], every: int, keep: Callable[[Cell], None]
    ) -> None:
        """Take it to so many passes, or to all targets; its loss is taken every so many passes, and kept."""
        if not self.points:
            self.points.append(Point(0, 0.0, 0, task.loss(task.start)))
        self._walk = self._walk or walk(task, self.key.rate)
        seconds, begun, start = self.points[-1].seconds, time.perf_counter(), self.points[0].loss
        for progress in self._walk:
            if progress.passes <= self.passes:  # known from an earlier process
                begun = time.perf_counter()
                continue
            if progress.passes < min(self.passes + every, passes):
                continue
            seconds += time.perf_counter() - begun
            self.points.append(Point(progress.passes, seconds, progress.sent, task.loss(progress.theta)))
            self.ended = not self.points[-1].loss <= DIVERGED * start
            keep(self)
            if self.is_done(passes, targets):
                return
            begun = time.perf_counter()
        self.ended = True
        keep(self)


class Kept:
    """Cells, in memory and in a file of a line each; the last line of a run counts."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._cells: dict[Key, Cell] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else []:
            read = json.loads(line)
            points = [Point(*point) for point in read["points"]]
            cell = Cell(Key(read["method"], read["rate"], read["seed"]), points, read["ended"])
            self._cells[cell.key] = cell

    def cell(self, key: Key) -> Cell:
        """What is known of a run, if only that it is to be made."""
        return self._cells.setdefault(key, Cell(key))

    def of(self, method: str) -> list[Cell]:
        """All runs of a method of which something is known."""
        return [cell for cell in self._cells.values() if cell.key.method == method and cell.points]

    def keep(self, cell: Cell) -> None:
        """Write down what is known of a run now."""
        if self._path is None:
            return
        line = {**cell.key._asdict(), "ended": cell.ended, "points": cell.points}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def race(
    cells: Sequence[Cell],
    run: Callable[[Cell, int], None],
    passes: int,
    drop_at: Sequence[int],
    targets: Sequence[float],
) -> Cell:
    """Run all cells to the first of some numbers of passes, the better half of them to the next, and so on.

    Returns:
        The best of those that were run to the end.
    """
    racing = list(cells)
    for goal in (*(at for at in drop_at if at < passes), passes):
        for cell in racing:
            run(cell, goal)
        racing = sorted(racing, key=lambda cell: merit(cell, targets))
        if goal < passes:
            racing = racing[: -(-len(racing) // 2)]
    return racing[0]


def merit(cell: Cell, targets: Sequence[float]) -> tuple[float, ...]:
    """What makes a run better: passes to the lowest target, then to the one before it, then the lowest loss."""
    reached = [cell.reached(target) for target in reversed(targets)]
    return (*(point.passes if point else math.inf for point in reached), cell.best)
