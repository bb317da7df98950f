"""The commands that measure: what they print and write, from the configuration or the run to its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from fedmezo.config import load_config
from fedmezo.errors import ConfigError
from tests.runs import Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("measurements"))


def test_calibrate_writes_a_configuration_that_runs(runs: Runs) -> None:
    config, new = runs.config(), runs.root / "new.yaml"
    code, output = runs.finish("calibrate", config, "--write", new, "--forward-passes", "2000")
    assert code == 0, output
    for words in ("error / signal", "rounding noise", "Recommendation", "train.optimizer.lr"):
        assert words in output
    folder = runs.root / "runs" / "calibration"
    assert (folder / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "calibrated.yaml").read_text() == new.read_text()
    numbers = json.loads((folder / "calibration.json").read_text(), parse_constant=pytest.fail)
    rate = next(item["value"] for item in numbers["advice"] if item["key"] == "train.optimizer.lr")
    code, output = runs.finish("run", new, "expname=calibrated")
    assert code == 0, output
    assert f"rate {rate:.3g}" in output


def test_a_run_measures_what_is_auto_before_it_starts(runs: Runs) -> None:
    changes = {"train.optimizer.lr": "auto", "train.zo.eps": "auto", "train.train_strategy": "random"}
    config = runs.config(expname="measured", **changes)
    text = yaml.safe_load(config.read_text())
    del text["train"]["lr_width"]
    config.write_text(yaml.safe_dump(text))
    code, output = runs.finish("run", config, "train.lanes=1")
    assert code == 0, output
    assert "calibrating first" in output
    train = yaml.safe_load((runs.root / "runs" / "measured" / "config.yaml").read_text())["train"]
    assert train["lr_width"] == pytest.approx(train["optimizer"]["lr"] / 2)
    header = json.loads((runs.root / "runs" / "measured" / "journal.jsonl").read_text().splitlines()[0])
    assert header["eps"] == train["zo"]["eps"]
    advised = sorted((runs.root / "runs").glob("calibration*/calibrated.yaml"), key=lambda path: path.stat().st_mtime)
    assert yaml.safe_load(advised[-1].read_text())["train"]["optimizer"]["lr"] == train["optimizer"]["lr"]
    with pytest.raises(ConfigError, match="is auto, which `fedmezo run` alone measures"):
        _ = load_config(config).config.train.optimizer.rate
    code, output = runs.finish("check", config, "trainer.type=llmtrainer")
    assert code == 2
    assert "what is measured is for mezotrainer's steps alone" in " ".join(output.split())


def test_diagnose_looks_at_a_run_and_changes_nothing_of_it(runs: Runs) -> None:
    run = runs.run("diagnosed")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, output = runs.finish("diagnose", run)
    assert code == 0, output
    for words in (
        "before training",
        "before round 5",
        "effective rank",
        "theorem's largest rate",
        "The run's rate 0.01",
    ):
        assert words in " ".join(output.split())
    added = {path.name for path in run.rglob("*") if path.is_file()} - {path.name for path in before}
    assert added == {"diagnosis.png", "diagnosis.json"}
    assert all(path.read_bytes() == content for path, content in before.items())
    states = json.loads((run / "diagnosis.json").read_text(), parse_constant=pytest.fail)["states"]
    assert [state["round"] for state in states] == [0, 5]


def test_diagnose_of_a_damaged_run_says_what_is_damaged(runs: Runs, tmp_path: Path) -> None:
    run = runs.root / "runs" / "diagnosed"
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "journal.jsonl").unlink()
    code, output = runs.finish("diagnose", copy)
    assert code == 2
    assert "journal" in output
    assert "Traceback" not in output
