"""The commands `eval` and `generate` on a small run, its adapter and its base."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Runs

GSM8K = '{"question": "w50 w51?", "answer": "w52\\n#### 4"}\n{"question": "w53?", "answer": "w54\\n#### 12"}\n'
PROBLEM = {"task_id": "L/0", "prompt": "w50 w51\n", "entry_point": "f", "test": "def check(f):\n    assert False\n"}
TASK_FILE = """\
task: local_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("runs"))
    runs.run("one", **{"federate.save_freq": 4})
    return runs


def evaluate(runs: Runs, *arguments: str) -> tuple[dict[tuple[str, str], dict[str, Any]], Path]:
    """Scores by task and state, and the folder of the results."""
    folder = runs.root / "out" / str(len(list(runs.root.glob("out/*"))))
    code, output = runs.finish("eval", *arguments, "--out", str(folder))
    assert code == 0, output
    scores = json.loads((folder / "results.json").read_text())["scores"]
    return {(score["task"], score["state"]): score for score in scores}, folder


def test_the_loss_of_a_run_is_that_of_its_last_round_and_the_base_that_of_its_first(runs: Runs) -> None:
    run = runs.root / "runs" / "one"
    scores, folder = evaluate(runs, str(run), "--with-base", "--match")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("val_loss", "test_loss"):
        by_round = {m["round"]: m["value"] for m in metrics if m["name"] == name and m["client"] is None}
        # other batches than in training: the last bits of a loss depend on the padding
        assert scores[name, "tuned"]["value"] == pytest.approx(by_round[5], rel=1e-5)
        assert scores[name, "base"]["value"] == pytest.approx(by_round[0], rel=1e-5)
    items = [json.loads(line) for line in (folder / "val-match.tuned.jsonl").read_text().splitlines()]
    assert len(items) == scores["val-match", "tuned"]["items"]
    assert sum(item["correct"] for item in items) / len(items) == scores["val-match", "tuned"]["value"]


@pytest.mark.parametrize("number", [2, 4])
def test_the_state_after_some_rounds_is_replayed(runs: Runs, number: int) -> None:
    run = runs.root / "runs" / "one"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    then = next(m["value"] for m in metrics if (m["name"], m["round"], m["client"]) == ("val_loss", number, None))
    scores, _ = evaluate(runs, str(run), "--round", str(number))
    assert scores["val_loss", "tuned"]["value"] == pytest.approx(then, rel=1e-5)


def test_an_adapter_and_a_base_alone_give_what_the_run_gives(runs: Runs) -> None:
    run, data = runs.root / "runs" / "one", ["--data", "words.jsonl", "--data-root", str(runs.root / "data")]
    of_run, _ = evaluate(runs, str(run), *data, "--with-base", "--tok-len", "1024")
    of_adapter, _ = evaluate(runs, str(run / "adapter"), *data)
    of_base, _ = evaluate(runs, str(runs.root / "base"), *data)
    assert of_adapter["words.jsonl", "tuned"] == of_run["words.jsonl", "tuned"]
    assert of_base["words.jsonl", "base"] == of_run["words.jsonl", "base"]


def test_gsm8k_and_humaneval_read_their_files_and_write_each_item(runs: Runs) -> None:
    (runs.root / "data" / "gsm8k_test.jsonl").write_text(GSM8K)
    (runs.root / "data" / "HumanEval.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    (runs.root / "shots.jsonl").write_text(GSM8K)
    scores, folder = evaluate(
        runs, str(runs.root / "runs" / "one"), "--gsm8k", "--gsm8k-zero-shot", "--humaneval", "--limit", "1",
        "--max-new-tokens", "4", "--data-root", str(runs.root / "data"), "--shots", str(runs.root / "shots.jsonl"),
    )  # fmt: skip
    assert {task for task, _ in scores} == {"gsm8k", "gsm8k-zero-shot", "humaneval"}
    [item] = [json.loads(line) for line in (folder / "gsm8k.tuned.jsonl").read_text().splitlines()]
    assert item["gold"] == "4"
    [item] = [json.loads(line) for line in (folder / "humaneval.tuned.jsonl").read_text().splitlines()]
    assert not item["correct"]


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
def test_a_local_task_file_of_the_harness(runs: Runs, tmp_path: Path) -> None:
    rows = [{"question": "w50", "choices": ["w51", "w52"], "answer": 0}] * 3
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local_words.yaml").write_text(TASK_FILE.format(data=tmp_path / "words.jsonl"))
    scores, folder = evaluate(
        runs, str(runs.root / "runs" / "one"), "--tasks", "local_words", "--task-files", str(tmp_path)
    )
    assert scores["local_words", "tuned"]["value"] in (0.0, 1.0)
    assert len((folder / "local_words.tuned.jsonl").read_text().splitlines()) == 3


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_without_the_harness_its_tasks_say_how_to_get_it(runs: Runs) -> None:
    code, output = runs.finish("eval", str(runs.root / "runs" / "one"), "--mmlu")
    assert code == 2
    assert "pip install 'fedmezo[eval]'" in output


def test_what_is_wrong_is_said_in_one_line(runs: Runs, tmp_path: Path) -> None:
    for arguments, message in (
        (["eval", str(runs.root / "base")], "name a task, as --data TYPE"),
        (["eval", str(runs.root / "base"), "--round", "3"], "is not a run's folder"),
        (["eval", str(tmp_path / "none"), "--gsm8k"], "there is no such directory"),
        (["eval", str(runs.root / "runs" / "one"), "--round", "6"], "--round 6, but the run has 5 rounds"),
    ):
        code, output = runs.finish(*arguments)
        assert code == 2, output
        assert message in output
        assert "Traceback" not in output


def test_generate_answers_before_and_after(runs: Runs) -> None:
    code, output = runs.finish("generate", str(runs.root / "runs" / "one"), "w50 w51", "--max-new-tokens", "3")
    assert code == 0, output
    before, after = output.splitlines()[-2:]
    assert before.startswith("before: ")
    assert after.startswith("after:  ")
    code, output = runs.finish("generate", str(runs.root / "base"), "w50 w51", "--max-new-tokens", "3")
    assert code == 0
    assert output.splitlines()[-1] == before.removeprefix("before: ")
