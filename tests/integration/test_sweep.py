"""The commands `sweep` and `reproduce`: runs are made once, gone on with, shared, and a failure stays with its run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fedmezo.campaign.runs import is_finished
from tests.runs import Runs, differences, output_of
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def rows_of(path: Path) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in path.read_text().splitlines() if "|" in line
    ]


def journals(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("runs/*/journal.jsonl")}


def test_a_sweep_makes_each_run_once_and_its_runs_are_ordinary(runs: Runs) -> None:
    out = runs.root / "sweep"
    command = ("sweep", str(runs.config(expname="base")), "train.optimizer.lr=0.01,0.02", "train.zo.queries=2",
               "--jobs", "2", "--out", str(out))  # fmt: skip
    code, output = runs.finish(*command)
    assert code == 0, output
    first = journals(out)
    assert len(first) == 2

    code, output = runs.finish(*command, "--seeds", "2")
    assert code == 0, output
    assert "2 of 4 runs are there already" in output
    assert first.items() <= journals(out).items()
    rows = rows_of(out / "sweep.md")
    assert [row[0] for row in rows[2:]] == ["lr=0.01", "lr=0.02"]
    assert all("±" in row[1] for row in rows[2:])
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")

    alone = runs.run("alone", **{"train.optimizer.lr": 0.02, "train.zo.queries": 2, "seed": 4})
    assert any(differences(out / "runs" / name, alone) == [] for name in journals(out))


def test_a_stopped_sweep_goes_on_where_it_was(runs: Runs) -> None:
    changes = {"federate.total_round_num": 400, "eval.freq": 100}
    out = runs.root / "stopped"
    command = ("sweep", str(runs.config(expname="long", **changes)), "train.zo.eps=0.01,0.02",
               "--out", str(out))  # fmt: skip
    process = runs.start(*command)
    wait_until(lambda: bool(list(out.glob("runs/*/journal.jsonl"))), "the first run")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    output = output_of(runs.root, process)
    assert process.exitcode == 130, output
    assert "give the same command again to go on" in output
    [folder] = [path for path in (out / "runs").iterdir() if path.is_dir()]
    assert not is_finished(folder)


def test_a_run_that_fails_is_named_and_the_others_count(runs: Runs) -> None:
    out = runs.root / "failing"
    code, output = runs.finish(
        "sweep", str(runs.config(expname="base2")), "data.type=words.jsonl,none.jsonl", "--out", str(out)
    )
    assert code == 1, output
    assert "there is no such file" in " ".join(output.split())  # lines break where a path ends
    rows = rows_of(out / "sweep.md")
    assert [row[0] for row in rows[2:4]] == ["data.type=words.jsonl", "data.type=none.jsonl"]
    assert rows[3][1] == "-"
    assert "none.jsonl: seed 3: " in (out / "sweep.md").read_text()


def test_a_wrong_value_is_said_before_anything_runs(runs: Runs) -> None:
    out = runs.root / "wrong"
    code, output = runs.finish("sweep", str(runs.config(expname="base3")), "train.zo.eps=0.1,-1", "--out", str(out))
    assert code == 2
    assert "train.zo.eps: got -1; needs auto, or a number above 0" in output
    assert not out.exists()


def test_an_item_of_the_paper_from_its_runs_to_its_table(runs: Runs) -> None:
    out = runs.root / "paper"
    settings = ["data.type=words.jsonl", "federate.total_round_num=5", "train.local_update_steps=1",
                "llm.tok_len=64", "eval.freq=1", "federate.save_freq=1"]  # fmt: skip
    options = ["--model", str(runs.root / "base"), "--data-root", str(runs.root / "data"), "--seeds", "1",
               "--jobs", "1", "--out", str(out)]  # fmt: skip
    for item in ("mu", "table8"):
        code, output = runs.finish("reproduce", item, *settings, *options)
        assert code == 0, output
    assert "of 2 runs are there already" in output, "table8's GSM8K-IID is mu's middle point"
    assert [row[0] for row in rows_of(out / "mu.md")[2:]] == ["5 x mu (0.02)", "mu (0.02)", "mu / 5 (0.02)"]
    table = rows_of(out / "table8.md")
    assert table[0][1:] == [f"round {ours} (paper: {paper})" for ours, paper in ((0, 9), (1, 109), (2, 209), (3, 309))]
    assert table[3] == ["CodeAlpaca-LDA, paper", "0.93", "0.91", "0.87", "0.87"]
    page = (out / "results.md").read_text()
    assert page.index("## table8") < page.index("## mu")
    assert "fedmezo reproduce mu --scale small data.type=words.jsonl" in page


def test_the_items_can_be_listed(runs: Runs) -> None:
    code, output = runs.finish("reproduce", "--list")
    assert code == 0
    assert "table6       Number of clients" in output
