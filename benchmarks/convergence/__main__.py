"""How many forward passes, seconds and bytes a method needs to a loss: python -m benchmarks.convergence.

Every method is run at four rates on the first seed, and at the best of them, that which needs the fewest forward passes
to the lowest target that any rate reaches, on all seeds. With `--out FILE` every run is kept there, and not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.convergence.methods import METHODS, Method
from benchmarks.convergence.task import set_up

TARGETS = (0.06, 0.04)
MOST_PASSES = 4500
"""A method that has not reached the lowest target by then is ended."""

DIVERGED = 1.2
"""So many times the first loss."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a method."""

    method: str
    rate: float
    seed: int
    reached: tuple[tuple[int, float, int] | None, ...]  # (passes, seconds, bytes) at each target
    best: float
    last: float
    passes: int


def main() -> None:
    """Run what is asked for, and print the table."""
    options = _arguments()
    runs = _kept(options.out)
    for name in options.only or METHODS:
        method, seed = METHODS[name], options.seeds[0]
        tried = [_run(options, runs, name, method, rate, seed) for rate in method.rates]
        best = min(tried, key=_merit).rate
        for other in options.seeds[1:]:
            _run(options, runs, name, method, best, other)
        _show(options, name, [run for run in runs if (run.method, run.rate) == (name, best)], tried)


def _run(options: argparse.Namespace, runs: list[Run], name: str, method: Method, rate: float, seed: int) -> Run:
    """One run, unless it is kept."""
    for run in runs:
        if (run.method, run.rate, run.seed) == (name, rate, seed):
            return run
    task = set_up(options.config, [*options.override, *method.overrides, f"seed={seed}"])
    start = task.loss(task.start)
    losses, passes, seconds = [start], 0, 0.0
    reached: list[tuple[int, float, int] | None] = [None] * len(options.targets)
    begun = time.perf_counter()
    for progress in method.walk(task, rate):
        seconds += time.perf_counter() - begun  # evaluation is not counted
        passes = progress.passes
        losses.append(task.loss(progress.theta))
        reached = [
            found or ((passes, seconds, progress.sent) if losses[-1] <= target else None)
            for found, target in zip(reached, options.targets, strict=True)
        ]
        if passes >= options.passes or all(reached) or not losses[-1] <= DIVERGED * start:
            break
        begun = time.perf_counter()
    run = Run(name, rate, seed, tuple(reached), min(losses), losses[-1], passes)
    runs.append(run)
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    print(f"  {name}, rate {rate:g}, seed {seed}: {_cells(run)}; best {run.best:.4f}, last {run.last:.4f}", flush=True)
    return run


def _merit(run: Run) -> tuple[float, ...]:
    """What makes a rate better: passes to the lowest target, then to the one before it, then the lowest loss."""
    return (*(found[0] if found else math.inf for found in reversed(run.reached)), run.best)


def _show(options: argparse.Namespace, name: str, runs: Sequence[Run], tried: Sequence[Run]) -> None:
    rates = ", ".join(f"{run.rate:g}" for run in tried)
    ordered = sorted(runs, key=lambda run: run.seed)
    cells = " | ".join("; ".join(_cell(run, at) for run in ordered) for at in range(len(options.targets)))
    print(f"| {name} | {runs[0].rate:g} of {rates} | {cells} |", flush=True)


def _cells(run: Run) -> str:
    return ", ".join(_cell(run, at) for at in range(len(run.reached)))


def _cell(run: Run, at: int) -> str:
    found = run.reached[at]
    return f"{found[0]} ({found[1]:.1f} s, {found[2] / 1000:.1f} kB)" if found else "-"


def _kept(out: Path | None) -> list[Run]:
    if out is None or not out.exists():
        return []
    kept = json.loads(out.read_text())
    return [Run(**{**run, "reached": tuple(found and tuple(found) for found in run["reached"])}) for run in kept]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, metavar="FILE", help="another task than the quickstart's")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="on top of it, for all methods")
    parser.add_argument("--only", nargs="*", choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--targets", nargs="*", type=float, default=list(TARGETS), help="losses, the highest first")
    parser.add_argument("--passes", type=int, default=MOST_PASSES, help="most forward passes of a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the runs here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
