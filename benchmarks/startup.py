"""Seconds before the first step of a run: python -m benchmarks.startup. Imports, the model, the lanes' check."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from benchmarks import common
from benchmarks.common import Row
from fedmezo.models.lane_budget import bytes_per_lane, longest_batch
from fedmezo.zo.estimators.two_point import TwoPoint

T = TypeVar("T")

IMPORTS = ("torch", "transformers", "peft", "fedmezo.runs.experiment")


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    rows = [Row(f"python, import {name}", _process(f"import {name}"), "s") for name in IMPORTS]
    rows.append(Row("fedmezo --help", _process("from fedmezo.cli import main; main(['--help'])"), "s"))
    base, seconds = _timed(lambda: common.base_model(options.shape, options.dtype, options.device))
    rows.append(Row("base model with random weights", seconds, "s"))
    model, seconds = _timed(lambda: common.adapted(base, options.rank))
    rows.append(Row("adapter, and the label-only loss checked", seconds, "s"))
    rows.append(Row("laned form, checked", _timed(lambda: model.use_lanes(2))[1], "s"))
    longest = longest_batch(1, max(map(sum, common.read_lengths(options))), model.device)
    rows.append(
        Row("memory of a lane", _timed(lambda: bytes_per_lane(model, longest, model.flat(), TwoPoint()))[1], "s")
    )
    common.report("startup", rows, options)


def _process(code: str) -> float:
    """Seconds of a fresh interpreter that runs the code; the second of two, so that files are in the page cache."""
    return [_timed(lambda: subprocess.run([sys.executable, "-c", code], capture_output=True))[1] for _ in range(2)][1]


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()
