"""Compare the learning-rate strategies on the quickstart, and draw them on one page.

Run: python examples/compare.py [OUTDIR]
"""

import sys
from pathlib import Path
from typing import Any

import fedmezo
from fedmezo.results.report import compare

SETTINGS: dict[str, Any] = {
    "federate.total_round_num": 4,
    "train.local_update_steps": 5,
    "eval.samples": 0,
    "eval.freq": 2,
}

outdir = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
runs = [
    fedmezo.run(outdir=str(outdir), expname=name, quiet=True, **(SETTINGS | {"train.train_strategy": name}))
    for name in ("frozen", "random", "model-diff")
]

table = compare([run.folder for run in runs], outdir / "comparison")
for row in (table.headings, *table.rows):
    print("  ".join(row))
print(f"curves: {outdir / 'comparison' / 'comparison.html'}")
