"""The tasks that methods are compared on, and what is affordable there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.convergence.methods import BUNDLED, SMOLLM2, Method


@dataclass(frozen=True, slots=True)
class Shape:
    """A task and how methods are compared on it.

    Args:
        config: of the task; None is the quickstart's.
        methods: by name, each with the rates to try.
        targets: losses, the highest first; none where they are not known beforehand.
        passes: most forward passes of a run.
        every: forward passes between two evaluations.
        drop_at: forward passes after which the worse half of the rates is given up.
        seeds: the first is that of the search for a rate.
    """

    config: Path | None
    methods: Mapping[str, Method]
    targets: tuple[float, ...]
    passes: int
    every: int
    drop_at: tuple[int, ...]
    seeds: tuple[int, ...]


SHAPES = {
    "bundled": Shape(None, BUNDLED, (0.06, 0.04), 4500, 1, (), (0, 1, 2)),
    "smollm2": Shape(Path(__file__).with_name("smollm2.yaml"), SMOLLM2, (), 1000, 120, (240, 480), (0,)),
}
