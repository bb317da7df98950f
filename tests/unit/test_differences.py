"""What differs from the original on purpose, as docs/differences.md states it: each row's test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fedmezo.config import load_config
from fedmezo.data.partition import partition
from fedmezo.data.prompt import Prompts
from fedmezo.data.sources import load_examples
from fedmezo.data.splitters import Lda, Meta, Splitter
from fedmezo.federation.clients import FirstOrderClients, ZerothOrderClients
from fedmezo.federation.optimizers import OptimizerFactory
from fedmezo.federation.rates import RateStrategy
from fedmezo.models.causal_lm import CausalLM
from fedmezo.records import ClientTask, Example
from fedmezo.runs.evaluate import evaluate
from fedmezo.zo.noise import Noise
from fedmezo.zo.replay import Address
from tests.toy import SIZE, Quadratic, ToyData, two_point
from tests.unit.test_shard import dataset

PAGE = Path(__file__).parents[2] / "docs" / "differences.md"
QUESTION = "How many apples are there?"
OPENING = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    f"Write a response that appropriately completes the request.\n\n### Instruction:\n{QUESTION}\n\n"
)


def test_every_row_names_its_test_and_every_test_its_row() -> None:
    named = re.findall(r"`(test_\w+)`", PAGE.read_text())
    here = [
        name
        for name in globals()
        if name.startswith("test_") and name != "test_every_row_names_its_test_and_every_test_its_row"
    ]
    elsewhere = "test_a_base_is_loaded_as_it_was_published"
    assert f"def {elsewhere}(" in (Path(__file__).parent / "test_models_loading.py").read_text()
    assert sorted(named) == sorted([*here, elsewhere])


def test_gsm8k_prompts(tmp_path: Path) -> None:
    row = {"question": QUESTION, "answer": "Two and two. #### 4"}
    (tmp_path / "gsm8k_train.jsonl").write_text(json.dumps(row))
    [example] = load_examples("gsm8k@llm", tmp_path)
    ours, original = (Prompts(name).whole(example).content for name in ("alpaca", "original"))
    assert "### Input:" not in ours
    assert original == f"{OPENING}### Input:\nNone\n\n### Response:Two and two. The answer is 4"
    asked = load_config(None, ["data.format=original"]).config
    assert asked.data.format == "original"


def test_an_input_that_is_there_is_put_the_same_way() -> None:
    example = Example(QUESTION, "In the basket.", "4", "")
    assert Prompts("original").whole(example) == Prompts().whole(example)


def test_the_train_loss_is_the_mean_of_both() -> None:
    model, estimator, data = Quadratic(), two_point(eps=0.1), ToyData(0, num_batches=1)
    theta = torch.linspace(-1, 1, SIZE)
    work = ZerothOrderClients(model, estimator, 11, "scalars", 1, 0.0)
    [report] = work.run([ClientTask(0, 0, 0.01)], theta, "hash", {0: data})
    z = Noise().directions([Address(11, 0, 0).stream(0)], 0, SIZE)[0].float()
    [batch] = data.batches(0)
    step = estimator.settings.step_size
    plus, minus = (float(model.loss(theta + sign * step * z, batch)) for sign in (1, -1))
    assert report.train_loss == pytest.approx((plus + minus) / 2, rel=1e-6)
    assert abs(plus - minus) > 1e-3  # what the original logs, the first alone, is another number


def test_adapters_are_float32(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    base = LlamaForCausalLM(config).bfloat16().requires_grad_(False)
    model = CausalLM(base, {"adapter_method": "lora", "r": 2, "target_modules": ["q_proj"]}, 0)
    theta = model.flat()
    assert theta.dtype == torch.float32
    model.save(theta, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("splitter", [Lda(0.5), Meta()], ids=["lda", "meta"])
def test_a_client_is_examined_on_its_own_categories(splitter: Splitter) -> None:
    categories = [f"c{i % 6}" for i in range(3000)]
    divided = partition(categories, (0.6, 0.0, 0.4), 3, splitter, np.random.default_rng(1))

    def shares(part: str) -> NDArray[np.float64]:
        """Of each category (columns), what each client has."""
        counts = np.array([np.bincount(divided.category_of[held], minlength=6) for held in divided.parts[part]])
        part_of_each: NDArray[np.float64] = counts / counts.sum(0)
        return part_of_each

    assert np.abs(shares("test") - shares("train")).max() < 0.01


def test_evaluation_is_the_mean_over_examples() -> None:
    class Losses(Quadratic):
        def example_losses(self, theta: torch.Tensor, batch: object) -> list[float]:
            return [float(row[0]) for row in batch.input_ids]  # type: ignore[attr-defined]

    shards = [np.array([3, 1, 2]), np.array([5])]
    assert evaluate(Losses(), torch.zeros(SIZE), dataset(), shards).value == pytest.approx((3 + 1 + 2 + 5) / 4)


def test_back_propagation_follows_the_strategy() -> None:
    rates = RateStrategy("round-wise", 0.02, 0.01)
    assert rates is not None
    config = load_config(None, ["trainer.type=llmtrainer", "train.train_strategy=round-wise", "train.zo={}"]).config
    assert config.train.train_strategy == "round-wise"
    theta, factory = torch.linspace(-1, 1, SIZE), OptimizerFactory("SGD", {})
    work = FirstOrderClients(Quadratic(), factory, 11, 0.0, 1)
    data = {0: ToyData(0, num_batches=1)}
    slow, fast = (work.run([ClientTask(0, 0, rate)], theta, "hash", data)[0].update for rate in (0.01, 0.03))
    assert slow is not None
    assert fast is not None
    torch.testing.assert_close(fast, 3 * slow)


def test_no_break_spaces_leave_codealpaca(tmp_path: Path) -> None:
    row = {"instruction": "Convert\u00a0it", "input": "Python", "output": "def f(x):\n\u00a0\u00a0return x"}
    (tmp_path / "rosetta_alpaca.json").write_text(json.dumps([row]))
    [example] = load_examples("rosetta_alpaca@llm", tmp_path)
    assert (example.instruction, example.output) == ("Convertit", "def f(x):\nreturn x")
