"""Short runs on the bundled model and data: what they leave, and that the choices of the paper matter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedmezo.cli import main
from fedmezo.config import load_config
from fedmezo.models.loading import locate
from fedmezo.runs import assemble
from fedmezo.runs.evaluate import evaluate
from fedmezo.runs.journal import read_journal

SHORT = ["federate.total_round_num=3", "train.local_update_steps=2", "eval.freq=1", "eval.samples=1"]
FEW = ["data.subsample=0.1", "data.splits=[0.8,0.1,0.1]"]


def run(folder: Path, *overrides: str) -> Path:
    assert main(["run", f"outdir={folder}", "expname=run", *SHORT, *FEW, *overrides]) == 0
    return folder / "run"


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def values(run_dir: Path, name: str, client: int | None = None) -> list[float]:
    return [row["value"] for row in metrics_of(run_dir) if row["name"] == name and row["client"] == client]


def test_a_run_leaves_what_the_readme_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = run(tmp_path)
    left = {path.name for path in run_dir.iterdir()}
    assert left >= {
        *("config.yaml", "environment.json", "partition.json", "journal.jsonl", "metrics.jsonl", "log.txt"),
        *("tensorboard", "adapter", "adapter_best", "report.png", "report.html"),
    }
    rows = metrics_of(run_dir)
    assert {tuple(row) for row in rows} == {("event", "round", "client", "name", "value", "unit")}
    assert [row["name"] for row in rows if row["round"] == 0 and row["client"] is None] == ["val_loss", "test_loss"]
    assert {row["round"] for row in rows} == {0, 1, 2, 3}
    shown = capsys.readouterr().out
    for text in ("Examples per client and category", "round 3/3", "before", "after", "bytes up", "peak memory"):
        assert text in shown


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # between PEFT and transformers
def test_the_adapter_is_the_run(tmp_path: Path) -> None:
    """Loaded with PEFT alone, the saved adapter has the run's last validation loss."""
    run_dir = run(tmp_path)
    config = load_config(run_dir / "config.yaml").config
    tuned = assemble.load_model(config)
    holdings = assemble.load_holdings(config, tuned.tokenizer, _quiet())
    theta = tuned.model.read(run_dir)
    again = evaluate(tuned.model, theta, holdings.dataset, holdings.partition.val)
    assert again.value == pytest.approx(
        values(run_dir, "val_loss")[-1], rel=1e-6
    )  # threads may add up in another order

    base = AutoModelForCausalLM.from_pretrained(locate("bundled"))
    with torch.inference_mode():
        for example in holdings.partition.val[0][:3]:
            batch = holdings.dataset.batch([example])
            model = PeftModel.from_pretrained(base, run_dir / "adapter").eval()
            loss = float(model(input_ids=batch.input_ids, labels=batch.labels).loss)
            model.unload()
            assert loss == pytest.approx(tuned.model.example_losses(theta, batch)[0], rel=1e-4)


def _quiet() -> Any:
    from rich.console import Console

    return Console(quiet=True)


@pytest.mark.parametrize("strategy", ["random", "round-wise", "five-round", "model-diff"])
def test_the_strategies_give_the_clients_different_rates(strategy: str, tmp_path: Path) -> None:
    steady = ("train.schedule.type=constant", "train.trust=False")
    run_dir = run(tmp_path, f"train.train_strategy={strategy}", "federate.total_round_num=7", "eval.freq=0", *steady)
    records = read_journal(run_dir / "journal.jsonl").records
    config = load_config(run_dir / "config.yaml").config
    rate, width = config.train.optimizer.rate, config.train.lr_width
    assert width == rate / 2
    rates = [part.rate for part in records[-1].contributions]
    assert len(set(rates)) == 3
    assert all(rate - width * 1.001 <= one <= rate + width * 1.001 for one in rates)
    if strategy != "random":  # one client is always at an end of the range
        assert max(abs(one - rate) for one in rates) == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.type=llmtrainer", "train.optimizer.lr=0.1"],
        ["trainer.type=llmtrainer", "train.optimizer.type=AdamW", "train.optimizer.lr=1e-3", "grad.grad_accum_count=2"],
        ["federate.protocol=weights", "train.optimizer.weight_decay=0.1"],
        ["data.splitter=lda", "federate.client_num=7", "federate.sample_client_num=3"],
        ["data.splitter=meta", "federate.client_num=20", "train.batch_or_epoch=epoch", "train.local_update_steps=1"],
        ["train.zo.noise=rademacher", "train.zo.queries=3", "model.dtype=bfloat16", "train.zo.eps=0.02"],
    ],
    ids=["sgd", "adamw", "weights", "lda", "meta-epoch", "rademacher-bf16"],
)
def test_other_choices_run(overrides: list[str], tmp_path: Path) -> None:
    run_dir = run(tmp_path, *overrides)
    losses = values(run_dir, "val_loss")
    assert len(losses) == 4
    assert all(loss < 2.0 for loss in losses)


def test_restoring_starts_from_the_saved_adapter(tmp_path: Path) -> None:
    first = run(tmp_path / "a")
    second = run(tmp_path / "b", f"federate.restore_from={first}")
    assert values(second, "val_loss")[0] == pytest.approx(values(first, "val_loss")[-1], rel=1e-6)


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = run(tmp_path, "early_stop.patience=1", "early_stop.delta=5", "federate.total_round_num=9")
    assert len(read_journal(run_dir / "journal.jsonl").records) == 1
    assert "stopped early after round 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.type=no/such/model"], "model.type is 'no/such/model', but there is no such directory"),
        (["data.type=missing.json"], "missing.json"),
        (["federate.client_num=4000", "data.splitter=iid"], "Take fewer clients or more data"),
        (["llm.adapter.args.0.rank=4"], "'rank' is no key of adapter_method 'lora'"),
        (["trainer.type=llmtrainer", "train.optimizer.nesterof=True"], "SGD takes no nesterof"),
        (["llm.tok_len=3"], "llm.tok_len is 3, which leaves no room for an answer"),
    ],
)
def test_a_mistake_gives_one_message_and_leaves_nothing(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", f"outdir={tmp_path}", *SHORT, *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
