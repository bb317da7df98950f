"""Kill runs two hundred times at random moments and compare what they end as; by hand: python -m tests.kill_200 [N].

Each round takes one of the cases of tests/runs.py in turn, starts it, kills and resumes it three times or until it is
through, lets it finish, and compares it with the undisturbed run. The moments are drawn from the time that the whole
command takes, so that some fall into its start and some into its end.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.runs import CASES, Runs, differences, kill_after

KILLS_PER_RUN = 3


def main(kills_wanted: int = 200) -> int:
    """Returns 1 if a run ended otherwise."""
    rng = random.Random(kills_wanted)
    with tempfile.TemporaryDirectory() as root:
        runs = Runs(Path(root))
        seconds = {name: undisturbed(runs, name) for name in CASES}
        kills = different = 0
        found: Counter[int] = Counter()  # committed rounds at the moment of a kill
        while kills < kills_wanted:
            for name in CASES:
                moments = [rng.uniform(0, seconds[name]) for _ in range(KILLS_PER_RUN)]
                run, rounds = kill_and_resume(runs, name, moments)
                kills += len(rounds)
                found.update(rounds)
                wrong = differences(run, runs.root / "runs" / name)
                different += bool(wrong)
                print(f"{kills:4d} kills, {name}: {'differs in ' + ', '.join(wrong) if wrong else 'equal'}", flush=True)
                shutil.rmtree(run)
    at = ", ".join(f"{n if n >= 0 else 'none yet'}: {count}" for n, count in sorted(found.items()))
    print(f"{kills} kills, {different} runs differ; rounds in the journal at a kill: {at}")
    return int(different > 0)


def undisturbed(runs: Runs, name: str) -> float:
    """Make the run to compare with; returns how long it took in seconds."""
    started = time.monotonic()
    runs.run(name, **CASES[name])
    return time.monotonic() - started


def kill_and_resume(runs: Runs, name: str, moments: list[float]) -> tuple[Path, list[int]]:
    """A run killed after these seconds of each command, then finished; with the rounds it had at each kill."""
    config = runs.config(expname=f"{name} killed", **CASES[name])
    run = runs.root / "runs" / f"{name} killed"
    rounds = []
    for moment in moments:
        begun = (run / "config.yaml").exists()
        if run.exists() and not begun:
            shutil.rmtree(run)  # killed before it wrote anything
        if kill_after(runs.start("resume", run) if begun else runs.start("run", config), moment):
            rounds.append(committed(run))
    begun = (run / "config.yaml").exists()
    if run.exists() and not begun:
        shutil.rmtree(run)
    code, output = runs.finish("resume", run) if begun else runs.finish("run", config)
    assert code == 0, output
    return run, rounds


def committed(run: Path) -> int:
    """Rounds in the journal; -1 before there is one."""
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b'{"kind":"round"') if journal.exists() else -1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
