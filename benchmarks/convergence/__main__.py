"""How many forward passes, seconds and bytes a method needs to a loss: python -m benchmarks.convergence.

Every method is run at four rates on the first seed, and at the best of them, that which needs the fewest forward passes
to the lowest target that any rate reaches, on all seeds. With `--out FILE` every run is kept there, and not made again.
Without targets (`--targets`) runs go to their end, and what is shown is the loss they end at, and the range of rates
that end within 10 % of the lowest.

    python -m benchmarks.convergence --out bundled.jsonl
    python -m benchmarks.convergence --model smollm2 --out smollm2.jsonl --override data.root=FOLDER model.type=FILE
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.convergence.cells import Cell, Kept, Key, race
from benchmarks.convergence.methods import Method
from benchmarks.convergence.shapes import SHAPES, Shape
from benchmarks.convergence.task import Task, set_up

WITHIN = 1.1
"""Times the lowest of the losses that rates end at: as good."""


class Bench:
    """What was asked for, and the runs so far."""

    def __init__(self, options: argparse.Namespace, shape: Shape) -> None:
        self.shape = shape
        self.options = options
        self.targets: Sequence[float] = shape.targets if options.targets is None else options.targets
        self.passes: int = options.passes or shape.passes
        self.every: int = options.every or shape.every
        self.seeds: Sequence[int] = options.seeds or shape.seeds
        self.kept = Kept(options.out)
        self._tasks: dict[int, Task] = {}  # by seed, of the method in hand

    def compare(self, name: str) -> None:
        """Run a method and print its row."""
        method, seed = self.shape.methods[name], self.seeds[0]
        self._tasks.clear()
        tried = [self.kept.cell(Key(name, rate, seed)) for rate in self.options.rates or method.rates]
        drop_at = self.shape.drop_at if self.options.drop_at is None else self.options.drop_at
        best = race(tried, lambda cell, goal: self._run(method, cell, goal), self.passes, drop_at, self.targets)
        cells = [self.kept.cell(best.key._replace(seed=seed)) for seed in self.seeds]
        for cell in cells:
            self._run(method, cell, self.passes)
        print(f"| {name} | {best.key.rate:g} of {_numbers(cell.key.rate for cell in tried)} | {self._row(cells)} |")
        if not self.targets:
            print(_range(tried), flush=True)

    def _run(self, method: Method, cell: Cell, goal: int) -> None:
        """Take a cell to so many passes, unless it is there, and keep it."""
        if cell.is_done(goal, self.targets):
            return
        seed = cell.key.seed
        if seed not in self._tasks:
            overrides = [*self.options.override, *method.overrides, f"seed={seed}"]
            self._tasks[seed] = set_up(self.shape.config, overrides)
        cell.run_on(self._tasks[seed], method.walk, goal, self.targets, self.every, self.kept.keep)
        found = f"{self._reached(cell)}; best {cell.best:.4f}, last {cell.points[-1].loss:.4f}"
        print(f"  {cell.key.method}, rate {cell.key.rate:g}, seed {seed}, {cell.passes} passes: {found}", flush=True)

    def _row(self, cells: Sequence[Cell]) -> str:
        found = [", ".join(_at(cell, target) for cell in cells) for target in self.targets]
        return " | ".join([*found, ", ".join(f"{cell.last:.4f}" for cell in cells)])

    def _reached(self, cell: Cell) -> str:
        return ", ".join(_at(cell, target) for target in self.targets)


def main() -> None:
    """Run what is asked for, and print the table."""
    options = _arguments()
    bench = Bench(options, SHAPES[options.model])
    for name in options.only or bench.shape.methods:
        bench.compare(name)


def _at(cell: Cell, target: float) -> str:
    point = cell.reached(target)
    return f"{point.passes} ({point.seconds:.1f} s, {point.sent / 1000:.1f} kB)" if point else "-"


def _range(cells: Sequence[Cell]) -> str:
    """Which rates end as low as the best, up to `WITHIN`, in words."""
    lowest = min(cell.last for cell in cells)
    good = sorted(cell.key.rate for cell in cells if cell.last <= WITHIN * lowest)
    ends = ", ".join(f"{cell.key.rate:g}: {cell.last:.4f}" for cell in sorted(cells, key=lambda cell: cell.key.rate))
    if not math.isfinite(lowest):
        return "  all diverged"
    return (
        f"  ends at {ends}; within 10 % of the lowest from {good[0]:g} to {good[-1]:g}, {good[-1] / good[0]:.3g} times"
    )


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="bundled", help="which model and task")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="of the task, for all methods")
    parser.add_argument("--only", nargs="*", metavar="METHOD", help="some of the methods, by name")
    parser.add_argument("--rates", nargs="*", type=float, help="other rates than the method's four")
    parser.add_argument("--seeds", nargs="*", type=int)
    parser.add_argument("--targets", nargs="*", type=float, help="losses, the highest first")
    parser.add_argument("--passes", type=int, help="most forward passes of a run")
    parser.add_argument("--every", type=int, metavar="PASSES", help="take the loss every so many")
    parser.add_argument("--drop-at", nargs="*", type=int, metavar="PASSES", help="after so many, leave half the rates")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the runs here, a line each")
    options = parser.parse_args()
    known = SHAPES[options.model].methods
    for name in options.only or ():
        if name not in known:
            parser.error(f"--only {name!r} is none of {', '.join(map(repr, known))}")
    return options


if __name__ == "__main__":
    main()
