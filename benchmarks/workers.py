"""Time of a round: two worker processes of one thread each beside one process of two threads.

python -m benchmarks.workers [--model BASE] [--rounds N]

Each form is a run of its own, in turn and twice; the first round, in which workers load the model, is left out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import fedmezo

FORMS = {
    "one process, one thread": ["threads=1"],
    "one process, two threads": ["threads=2"],
    "two workers, one thread each": ["threads=1", "workers=2", "--engine", "ray"],
}


def seconds_of_a_round(words: list[str], keys: list[str]) -> float:
    """Median over a run's rounds but the first."""
    with tempfile.TemporaryDirectory(prefix="fedmezo-bench-") as folder:
        command = [sys.executable, "-m", "fedmezo", "run", *keys, *words, f"outdir={folder}", "expname=run"]
        subprocess.run(command, check=True, capture_output=True)
        seconds = fedmezo.load_run(Path(folder) / "run").values("seconds")
    return statistics.median(value for at, value in seconds.items() if at > 1)


def main() -> None:
    """Measure every form twice and print the better of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="base model")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    keys = [
        *(f"model.type={options.model}", f"federate.total_round_num={options.rounds}", "federate.client_num=8"),
        *("data.splitter=iid", "train.local_update_steps=10", "train.compile=False", "eval.freq=0", "eval.samples=0"),
        "model.dtype=float32",
    ]
    found: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(2):
        for name, words in FORMS.items():
            found[name].append(seconds_of_a_round(words, keys))
    base = min(found["one process, two threads"])
    for name, seconds in found.items():
        print(f"{name:<30} {min(seconds):.3f} s a round, {min(seconds) / base:.2f} of one process with two threads")


if __name__ == "__main__":
    main()
