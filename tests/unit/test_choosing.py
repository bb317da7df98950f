"""Accuracy by the likelier candidate: against a judgement by hand, in a run that follows it, where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmezo.cli import main
from fedmezo.data.prompt import ALPACA, Prompts
from fedmezo.errors import DataError
from fedmezo.models.loading import load_base
from fedmezo.records import Example
from fedmezo.results.metrics import read_metrics
from fedmezo.results.summary import summarise
from fedmezo.runs.choosing import make_candidates
from fedmezo.runs.evaluate import accuracy
from tests.runs import WORDS, make_base, write_config

CHOICES = ("w40 w41", "w42", "w43 w44 w45")
PLAIN = Prompts("template", "{instruction} ")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def questions(count: int) -> list[Example]:
    rng = np.random.default_rng(3)
    asked = [" ".join(rng.choice(WORDS[4:], size=rng.integers(1, 6))) for _ in range(count)]
    return [Example(text, "", CHOICES[i % 3], "", choices=CHOICES if i % 4 else ()) for i, text in enumerate(asked)]


class Plain:
    """A base model alone, as evaluation sees one."""

    device = torch.device("cpu")

    def __init__(self, model: Any) -> None:
        self._model = model

    def example_losses(self, theta: Any, batch: Any) -> list[float]:
        from fedmezo.models.label_loss import PlainPath

        with torch.inference_mode():
            return PlainPath(self._model)(batch).row_means().tolist()


def test_the_likeliest_candidate_per_token_is_the_choice(base_folder: Path) -> None:
    model, tokenizer = load_base(str(base_folder), None, torch.float32, torch.device("cpu"))
    examples = questions(24)
    candidates = make_candidates(examples, range(4, 24), PLAIN, tokenizer)
    judged = [i for i in range(4, 24) if i % 4]
    assert candidates.examples.tolist() == judged
    hits = []
    for number in judged:
        prompt = tokenizer(examples[number].instruction)["input_ids"]
        means = []
        for choice in CHOICES:
            ids = tokenizer(choice)["input_ids"]
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
            means.append(float(np.mean([logits[len(prompt) - 1 + i, token] for i, token in enumerate(ids)])))
        hits.append(CHOICES[int(np.argmax(means))] == examples[number].output)
    assert 0 < sum(hits) < len(hits)
    shards = [np.arange(4, 12), np.arange(0), np.arange(12, 24)]
    plain: Any = Plain(model)
    found = accuracy(plain, torch.zeros(1), candidates, shards)
    assert found.value == sum(hits) / len(hits)
    first = [hit for number, hit in zip(judged, hits, strict=True) if number < 12]
    assert found.client_values[0] == sum(first) / len(first)
    assert found.client_values.keys() == {0, 2}


def test_without_candidates_there_is_no_accuracy(base_folder: Path) -> None:
    _, tokenizer = load_base(str(base_folder), None, torch.float32, torch.device("cpu"))
    with pytest.raises(DataError, match=r"no held-out example has any: give data\.answers, or a column `choices`"):
        make_candidates(questions(9), [0, 4, 8], ALPACA, tokenizer)


def test_a_run_follows_its_accuracy(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"q": e.instruction, "right": CHOICES.index(e.output)} for e in questions(90)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "expname": "chosen",
        "data.type": "q.jsonl",
        "data.table.columns": {"instruction": "q", "output": "right"},
        "data.answers": list(CHOICES),
        "data.splitter": "lda",
        "data.splits": [0.5, 0.5, 0.0],
        "data.format": "template",
        "data.template": "{instruction} ",
        "eval.metrics": ["accuracy"],
        "eval.split": ["val"],
        "eval.freq": 1,
        "eval.best_res_update_round_wise_key": "val_accuracy",
        "eval.samples": 1,
        "train.optimizer.lr": 0.05,
    }
    config = write_config(tmp_path / "c.yaml", base_folder, tmp_path, **changes)
    assert main(["run", str(config)]) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "runs" / "chosen"
    metrics = read_metrics(folder / "metrics.jsonl")
    summary = summarise(metrics, "val_accuracy")
    [part] = summary.accuracies
    assert part.rounds == (0, 1, 2, 3, 4, 5)
    assert summary.decides is part
    best_round, best = part.best
    assert best == max(part.losses)
    assert best_round == part.losses.index(best)
    assert f"validation accuracy {best:.1%}" in " ".join(shown.split())
    by_client = [m.value for m in metrics if m.name == "val_accuracy" and m.round == 0 and m.client is not None]
    assert len(by_client) == 3
    same = (folder / "adapter_best" / "adapter_model.safetensors").read_bytes()
    assert (same == (folder / "adapter" / "adapter_model.safetensors").read_bytes()) is (best_round == 5)
    assert main(["eval", str(folder), "--out", str(tmp_path / "scores")]) == 0
    scores = json.loads((tmp_path / "scores" / "results.json").read_text())["scores"]
    shares = {row["task"]: row["value"] for row in scores}
    assert shares["val-accuracy"] == part.after
    item = json.loads((tmp_path / "scores" / "val-accuracy.tuned.jsonl").read_text().splitlines()[0])
    assert item["answer"] == min(item["losses"], key=item["losses"].get)


def test_what_cannot_be_measured_is_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "c.yaml", tmp_path, tmp_path)
    for words, text in (
        (["eval.best_res_update_round_wise_key=val_accuracy"], "needs val_loss or test_loss, or another eval.metrics"),
        (["data.answers=[a]"], "needs two answers or more"),
        (["data.answers=[a, a]"], "needs two answers or more"),
        (["data.format=template"], "is missing, for example"),
        (["data.format=template", "data.template='{question}'"], "its places can be {instruction} and {input} alone"),
        (["data.format=template", "data.template='{instruction.a}'"], "its places can be"),
        (["data.format=template", "data.template='{instruction!r}'"], "its places can be"),
        (["data.format=template", "data.template='a { b'"], "is no template"),
        (["data.format=template", "data.template='{input}'"], "needs a place {instruction}"),
        (["data.template='{instruction}'"], "is given, but data.format is alpaca"),
    ):
        assert main(["check", str(config), *words]) == 2
        assert text in " ".join(capsys.readouterr().err.split()), words
