"""A run dealt to worker processes is the simulation's run, also when workers are killed."""

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedmezo.cli import main
from fedmezo.records import RoundRecord
from fedmezo.runs.journal import read_journal
from tests.waiting import PATIENCE, wait_until

pytest.importorskip("ray")

ROUNDS = 30
KEYS = (
    *("train.lanes=1", "train.compile=False", "threads=1", "train.local_update_steps=1", "data.subsample=0.1"),
    *("eval.freq=0", "eval.samples=0", "federate.client_num=4", "federate.sample_client_num=3"),
    f"federate.total_round_num={ROUNDS}",
)


def rounds_of(run: Path) -> Sequence[RoundRecord]:
    return read_journal(run / "journal.jsonl").records if (run / "journal.jsonl").exists() else ()


def has_come_to(run: Path, rounds: int, server: subprocess.Popen[str]) -> bool:
    return len(rounds_of(run)) >= rounds or server.poll() is not None


def workers_of(server: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(server.pid).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main(["run", f"outdir={folder}", "expname=simulated", *KEYS]) == 0
    return folder / "simulated"


def test_two_workers_that_are_killed_in_turn(simulated: Path, tmp_path: Path) -> None:
    words: list[Any] = [sys.executable, "-m", "fedmezo", "run", "--engine", "ray", "workers=2", f"outdir={tmp_path}"]
    run, log = tmp_path / "dealt", tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen([*words, "expname=dealt", *KEYS], stdout=file, stderr=file, text=True)
        try:
            for kill_after in (1, 4):
                wait_until(partial(has_come_to, run, kill_after, server), f"{kill_after} rounds")
                victims = workers_of(server)
                assert victims, log.read_text()
                victims[0].kill()
                victims[0].wait(PATIENCE)
            assert server.wait(PATIENCE) == 0, log.read_text()
        finally:
            server.kill()
    assert rounds_of(run) == rounds_of(simulated)
    assert main(["replay", str(run)]) == 0


def test_what_a_worker_cannot_do_is_the_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "workers=2", f"outdir={tmp_path}", *KEYS]) == 2
    assert "add --engine ray" in capsys.readouterr().err
