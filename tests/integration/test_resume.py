"""A run that is killed and resumed ends as the one that was left alone, to the bit."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.runs import CASES, Runs, differences, kill_after


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def resume_until_done(runs: Runs, run: Path) -> None:
    code, output = runs.finish("resume", str(run))
    assert code == 0, output


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments(runs: Runs, case: str) -> None:
    undisturbed = runs.run(case, **CASES[case])
    rng = random.Random(case)
    config = runs.config(expname=f"{case} killed", **CASES[case])
    run = runs.root / "runs" / f"{case} killed"
    started = time.monotonic()
    process = runs.start("run", str(config))
    while not (run / "journal.jsonl").exists():
        time.sleep(0.01)
    to_first_round = time.monotonic() - started
    kills = int(kill_after(process, rng.uniform(0, 0.5)))
    for _ in range(2):
        kills += kill_after(runs.start("resume", str(run)), to_first_round + rng.uniform(0, 0.5))
    resume_until_done(runs, run)
    assert differences(run, undisturbed) == []
    assert kills > 0
