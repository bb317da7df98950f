"""One setting over its seeds: curves with their range, totals with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean

from fedmezo.results.metrics import METRICS_FILE, Metric, read_metrics
from fedmezo.results.summary import series
from fedmezo.studies.intervals import Interval, mean_interval

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure by round: mean over seeds, lowest and highest; an interval of so few seeds would fill a picture."""

    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A setting and what its runs measured."""

    label: str
    folders: tuple[Path, ...]  # of the runs that came to their end, one for each seed
    runs: tuple[tuple[Metric, ...], ...]
    failures: tuple[str, ...] = ()
    level: int = 95  # of the intervals, in per cent

    def curve(self, name: str) -> Curve:
        """A metric by round, over the rounds that every run has."""
        found = [dict(series(run, name)) for run in self.runs]
        rounds = sorted(set.intersection(*(set(by_round) for by_round in found))) if found else []
        values = [[by_round[at] for by_round in found] for at in rounds]
        return Curve(tuple(rounds), tuple(map(fmean, values)), tuple(map(min, values)), tuple(map(max, values)))

    def spent(self, names: Sequence[str]) -> dict[int, float]:
        """What was spent up to the end of each round, all names together, as a mean over seeds: bytes, passes, s."""
        by_round: dict[int, float] = {}
        for name in names:
            for run in self.runs:
                for at, value in series(run, name):
                    by_round[at] = by_round.get(at, 0.0) + value / len(self.runs)
        rounds = sorted(by_round)
        return dict(zip(rounds, accumulate(by_round[at] for at in rounds), strict=True))

    def first(self, name: str) -> Interval | None:
        """The first value of a metric."""
        return self._of_each(name, lambda values: values[0])

    def last(self, name: str) -> Interval | None:
        """The last value of a metric."""
        return self._of_each(name, lambda values: values[-1])

    def best(self, name: str) -> Interval | None:
        """The lowest value of a metric."""
        return self._of_each(name, min)

    def total(self, *names: str) -> Interval | None:
        """The sums of metrics over all rounds, together."""
        sums = [math.fsum(value for name in names for _, value in series(run, name)) for run in self.runs]
        return mean_interval(sums, self.level) if sums else None

    def change(self, name: str) -> Interval | None:
        """The last value less the first, whose interval is free of how hard each seed's own examples are."""
        return self._of_each(name, lambda values: values[-1] - values[0])

    def peak_memory(self) -> Interval | None:
        """The largest memory in use, in bytes."""
        return self._of_each("peak_memory", max)

    def seconds_per_round(self) -> Interval | None:
        """The median over rounds of their seconds: an evaluation, or a busy machine, now and then does not move it."""
        return self._of_each("seconds", lambda values: sorted(values)[len(values) // 2])

    def _of_each(self, name: str, choose: Callable[[list[float]], float]) -> Interval | None:
        by_run = [[value for _, value in series(run, name)] for run in self.runs]
        chosen = [float(choose(values)) for values in by_run if values]
        return mean_interval(chosen, self.level) if chosen else None


def read_point(label: str, folders: Sequence[Path], failures: Sequence[str] = (), level: int = 95) -> Point:
    """The point of the finished runs in these folders.

    Raises:
        RunError: the metrics of one are damaged.
    """
    runs = tuple(tuple(read_metrics(folder / METRICS_FILE)) for folder in folders)
    return Point(label, tuple(folders), runs, tuple(failures), level)
