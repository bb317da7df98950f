"""The bundled base model and instruction set: what the quickstart relies on."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from fedmezo.data.prompt import prompt_of
from fedmezo.records import IGNORE_LABEL, Example

BUNDLED = Path(str(resources.files("fedmezo"))) / "bundled"
GENERATOR = Path(__file__).parents[2] / "scripts" / "make_instructions.py"
NUM_CHECKED = 200


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rows = json.loads((BUNDLED / "instructions.json").read_text(encoding="utf-8"))
    return [Example(**row) for row in rows]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "base")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(BUNDLED / "base")
    assert isinstance(model, LlamaForCausalLM)
    return model


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_instructions", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def teacher_forced(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example], answers: list[str]
) -> tuple[float, float]:
    """Mean loss of the answers, and the share that greedy decoding gives: each token is the likeliest there."""
    prompts = [tokenizer(prompt_of(example))["input_ids"] for example in examples]
    targets = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in answers]
    rows = [torch.tensor(prompt + target) for prompt, target in zip(prompts, targets, strict=True)]
    ids = pad_sequence(rows, batch_first=True)
    labels = pad_sequence(rows, batch_first=True, padding_value=IGNORE_LABEL)
    for row, prompt in zip(labels, prompts, strict=True):
        row[: len(prompt)] = IGNORE_LABEL
    with torch.no_grad():
        logits, labels = model(input_ids=ids).logits[:, :-1], labels[:, 1:]
    hits = ((logits.argmax(-1) == labels) | (labels == IGNORE_LABEL)).all(dim=1)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item(), hits.float().mean().item()


def test_instructions_are_what_the_script_writes(tmp_path: Path) -> None:
    out = tmp_path / "instructions.json"
    subprocess.run([sys.executable, str(GENERATOR), "--out", str(out)], check=True, capture_output=True)
    assert out.read_bytes() == (BUNDLED / "instructions.json").read_bytes()


def test_instructions_have_distinct_prompts_and_nine_categories(examples: list[Example]) -> None:
    assert 3000 <= len(examples) <= 6000
    assert len({(example.instruction, example.input) for example in examples}) == len(examples)
    sizes = Counter(example.category for example in examples)
    assert len(sizes) == 9
    assert min(sizes.values()) >= 100
    assert all(example.instruction and example.output.endswith(".") for example in examples)


def test_base_was_trained_on_no_bundled_prompt(examples: list[Example], generator: ModuleType) -> None:
    bundled, rest = generator.worlds()
    assert [(item.instruction, item.input) for item in bundled] == [(e.instruction, e.input) for e in examples]
    trained_on = {(item.instruction, item.input) for items in rest.values() for item in items}
    assert trained_on.isdisjoint((example.instruction, example.input) for example in examples)


def test_base_is_a_llama_of_about_a_million_parameters(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert 800_000 <= sum(p.numel() for p in model.parameters()) <= 1_200_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == len(tokenizer)
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)


def test_assets_are_a_few_megabytes() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) < 6e6


def test_tokenizer_round_trips_and_splits_after_the_prompt(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example]
) -> None:
    for example in examples[:NUM_CHECKED]:
        prompt, answer = prompt_of(example), example.output
        ids = tokenizer(prompt + answer)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids == tokenizer(prompt)["input_ids"] + tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + answer
        assert len(ids) < 64


def test_tokenizer_encodes_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Zoë paid £3.50 — 日本\n\tdone"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_initial_loss_is_below_half_of_ln_vocabulary(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example]
) -> None:
    checked = examples[:NUM_CHECKED]
    loss, _ = teacher_forced(model, tokenizer, checked, [example.output for example in checked])
    assert loss < math.log(len(tokenizer)) / 2


def test_base_answers_mostly_right_and_in_the_short_form(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example], generator: ModuleType
) -> None:
    checked, items = examples[:NUM_CHECKED], generator.worlds()[0][:NUM_CHECKED]
    _, short = teacher_forced(model, tokenizer, checked, [item.short for item in items])
    _, sentences = teacher_forced(model, tokenizer, checked, [item.sentence for item in items])
    assert short > 0.9  # 0.96 of the whole set
    assert sentences == 0
