"""Runs that train a model's own parameters, by their commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fedmezo.errors import ModelError
from fedmezo.models.loading import load_base
from fedmezo.models.sums import check_sums
from fedmezo.results.metrics import read_metrics
from fedmezo.results.summary import summarise
from tests.runs import CASES, MODEL_FILES, Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def run(runs: Runs) -> Path:
    return runs.run("whole", **CASES["all parameters"])


def test_replay_and_the_published_log_give_the_same_model(runs: Runs, run: Path) -> None:
    log, replayed, imported = (runs.root / name for name in ("whole.fmzl", "replayed", "imported"))
    for words in (
        ("replay", run, "--out", replayed),
        ("export", run, "--as-log", log),
        ("import", log, "--model", runs.root / "base", "--out", imported),
    ):
        code, output = runs.finish(*words)
        assert code == 0, output
    for name in MODEL_FILES:
        content = (run / "model" / name).read_bytes()
        assert (replayed / name).read_bytes() == content
        assert (imported / name).read_bytes() == content
    assert log.stat().st_size < (run / "model" / "model.safetensors").stat().st_size / 20
    assert "AutoModelForCausalLM.from_pretrained" in (run / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {
            "train.zo.estimator": "one-sided",
            "train.zo.queries": 2,
            "model.dtype": "bfloat16",
            "train.optimizer.lr": 0.02,
        },
        {"train.zo.estimator": "per-example", "train.zo.rank": 4, "train.optimizer.lr": 0.02},
    ],
    ids=lambda changes: changes["train.zo.estimator"],
)
def test_other_estimators_learn_and_replay(runs: Runs, changes: dict[str, object]) -> None:
    name = str(changes["train.zo.estimator"])
    run = runs.run(name, **{"llm.adapter.use": False, "federate.total_round_num": 12, "eval.freq": 12, **changes})
    code, output = runs.finish("replay", run, "--out", runs.root / f"{name} replayed")
    assert code == 0, output
    for file in MODEL_FILES:
        assert (runs.root / f"{name} replayed" / file).read_bytes() == (run / "model" / file).read_bytes()
    [losses] = [part for part in summarise(read_metrics(run / "metrics.jsonl")).evaluations if part.name == "val_loss"]
    assert losses.after < 0.98 * losses.before
    assert "whole models would take" in (run / "report.html").read_text()


def test_eval_shows_the_model_before_and_after(runs: Runs, run: Path) -> None:
    code, output = runs.finish("eval", run, "--with-base", "--limit", "4")
    assert code == 0, output
    assert "tuned" in output
    assert "base" in output
    [line] = [line for line in output.splitlines() if "val_loss, loss" in line]
    tuned, base = (part.split(" (")[0] for part in line.split(")  ")[1:])
    assert tuned.strip() != base.strip()


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_a_damaged_model_is_refused(runs: Runs, run: Path, tmp_path: Path, harm: str) -> None:
    model = shutil.copytree(run / "model", tmp_path / "model")
    check_sums(model)
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content[:-1] if harm == "cut" else content)
    if harm == "gone":
        weights.unlink()
        shutil.copy(run / "model" / "model.safetensors", model / "other.safetensors")
    with pytest.raises(ModelError, match=r"safetensors is not what was written \(its checksum does not fit\)"):
        load_base(str(model), None, torch.float32, torch.device("cpu"))


def test_it_can_be_diagnosed(runs: Runs, run: Path) -> None:
    code, output = runs.finish("diagnose", run)
    assert code == 0, output
    assert "effective rank" in output


def test_there_is_no_adapter_to_merge(runs: Runs, run: Path) -> None:
    code, output = runs.finish("merge", run, "--out", runs.root / "merged")
    assert code == 2
    assert "there is no adapter to fold" in output
