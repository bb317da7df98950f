"""Runs over quantised bases, and what `model.dtype: auto` becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from fedmezo.config import load_config
from fedmezo.runs import assemble, precision
from fedmezo.runs.assemble import TunedModel
from fedmezo.runs.journal import read_journal
from fedmezo.runs.precision import Format, Settled, settle, to_begin_with
from tests.runs import Death, Runs, differences

SHORT = {"federate.total_round_num": 2}
FLOAT32, BFLOAT16 = Format("float32", "none"), Format("bfloat16", "none")
DYNAMIC = Format("bfloat16", "int8-dynamic")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "nf4"])
def test_a_run_over_a_quantised_base(runs: Runs, tmp_path: Path, scheme: str) -> None:
    changes = {**SHORT, "model.quantization": scheme}
    run = runs.run(f"whole {scheme}", **changes)
    header = read_journal(run / "journal.jsonl").header
    assert (header.quantization, header.dtype) == (scheme, "float32")
    assert "train.zo.eps 0.01: rounding makes up" in (run / "log.txt").read_text()
    code, output = runs.finish("replay", run, "--out", tmp_path / "replayed")
    assert code == 0, output
    code, output = runs.finish("run", runs.config(expname=f"killed {scheme}", **changes), dies=Death(after_rounds=1))
    assert code < 0, output
    code, output = runs.finish("resume", runs.root / "runs" / f"killed {scheme}")
    assert code == 0, output
    assert differences(run, runs.root / "runs" / f"killed {scheme}") == []
    published = tmp_path / "tune.fmz"
    assert runs.finish("export", run, "--as-log", published)[0] == 0
    code, output = runs.finish("import", published, "--model", runs.root / "base")
    assert code == 0, output


def test_another_scheme_is_refused(runs: Runs) -> None:
    run = runs.run("int8", **SHORT, **{"model.quantization": "int8"})
    config = run / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["model"]["quantization"] = "int8-dynamic"
    config.write_text(yaml.safe_dump(content))
    journal = run / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))  # of its rounds, one is left to do
    code, output = runs.finish("resume", run)
    assert code == 2
    assert "their quantisation: int8 then, int8-dynamic now" in output
    assert "weights of the base model" in output


def test_gradients_of_rounded_activations_are_refused(runs: Runs) -> None:
    path = runs.config(**{"model.quantization": "int8-dynamic", "trainer.type": "llmtrainer"})
    code, output = runs.finish("check", path)
    assert (code, "is int8-dynamic, whose rounded activations have no gradient" in output) == (2, True)
    code, output = runs.finish("run", runs.config(expname="bp", **SHORT, **{
        "model.quantization": "int8", "trainer.type": "llmtrainer",
    }))  # fmt: skip
    assert code == 0, output


def test_auto_is_settled_once(runs: Runs) -> None:
    run = runs.run("auto", **SHORT, **{"model.dtype": "auto"})
    log = (run / "log.txt").read_text()
    assert "model.dtype auto is float32: the run is too short to save 120 s" in log
    assert load_config(run / "config.yaml").config.model.dtype == "float32"
    assert load_config(run / "config.yaml").config.model.quantization == "none"
    code, output = runs.finish("resume", run)
    assert code == 0, output


@pytest.fixture
def every_format(monkeypatch: pytest.MonkeyPatch) -> dict[Format, float]:
    """As on a processor that has them all, in a run that is long enough; seconds of a pass in each."""
    seconds = {FLOAT32: 30.0, BFLOAT16: 20.0, DYNAMIC: 10.0}

    def measured(tuned: TunedModel, _holdings: object) -> float:
        return seconds[Format(precision._name(tuned), tuned.quantization)]

    monkeypatch.setattr(precision, "cpu_computes_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "computes_int8", lambda _device: True)
    monkeypatch.setattr(precision, "_seconds", measured)
    return seconds


def settled(runs: Runs, **changes: Any) -> Settled:
    config = load_config(runs.config(**{"model.dtype": "auto", **changes})).config
    tuned = assemble.load_model(to_begin_with(config))
    return settle(config, tuned, assemble.load_holdings(config, tuned.tokenizer, Console()), None)


def test_auto_takes_the_fastest_that_is_sound(runs: Runs, every_format: dict[Format, float]) -> None:
    found = settled(runs)
    times = "1e+04 ms for each lane of a step (bfloat16 2e+04, float32 3e+04)"
    assert found.reason == f"model.dtype auto is bfloat16 with int8-dynamic: {times}"
    assert (found.config.model.dtype, found.config.model.quantization) == ("bfloat16", "int8-dynamic")
    assert (found.tuned.dtype, found.tuned.quantization) == (torch.bfloat16, "int8-dynamic")
    assert [signal.is_sound for signal in found.signals] == [True]
    every_format[BFLOAT16] = 5.0
    assert settled(runs).config.model.quantization == "none"
    every_format[FLOAT32] = 5.1
    assert settled(runs).config.model.dtype == "float32"


def test_auto_leaves_what_is_too_coarse(runs: Runs, every_format: dict[Format, float]) -> None:
    found = settled(runs, **{"train.zo.eps": 1e-6})
    assert found.config.model.dtype == "float32"
    for coarse in (DYNAMIC, BFLOAT16):
        assert f"in {coarse} rounding would make up" in found.reason


def test_auto_keeps_to_the_scheme_that_was_asked_for(runs: Runs, every_format: dict[Format, float]) -> None:
    every_format |= {Format("float32", "nf4"): 30.0, Format("bfloat16", "nf4"): 20.0}
    found = settled(runs, **{"model.quantization": "nf4"})
    assert (found.config.model.dtype, found.tuned.quantization) == ("bfloat16", "nf4")
    assert settled(runs, **{"model.quantization": "none"}).tuned.quantization == "none"


@pytest.mark.usefixtures("every_format")
def test_auto_without_a_choice(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settled(runs, **{"trainer.type": "llmtrainer"})
    assert (found.config.model.dtype, found.tuned.dtype) == ("float32", torch.float32)
    assert "llmtrainer needs its gradients" in found.reason
    monkeypatch.setattr(precision, "device_memory", lambda _device: 1)
    found = settled(runs, **{"train.zo.eps": 1e-6, "model.quantization": "none"})
    assert found.tuned.dtype == torch.bfloat16  # there is no room for another
